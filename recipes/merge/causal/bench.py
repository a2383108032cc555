"""What every row of a merged language model is measured by: tasks in tokens, device and number format."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from recipes.merge.causal.scores import batches, score
from recipes.merge.causal.table import LanguageScores
from recipes.merge.evaluation import in_precision
from recipes.merge.kept import Kept

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from recipes.data.language_rows import LanguageTask
    from recipes.merge.causal.encode import Row
    from recipes.merge.causal.scores import Panel, Speaker
    from recipes.merge.precision import Format
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder
    from twinmerge.folders import Expert


@dataclass(frozen=True)
class Bench:
    """The tasks in tokens, and how a model is scored on them.

    Attributes:
        recipe: The recipe.
        folder: The run folder.
        tokenizer: Of the base.
        tasks: All tasks, those that are not merged among them.
        rows: By split and task.
        device: Where models are scored.
        precision: Number format of all forwards, `32` or `bf16`.
        kept: Scores that earlier runs found; None until base and experts are known.
    """

    recipe: Recipe
    folder: RunFolder
    tokenizer: PreTrainedTokenizerBase
    tasks: list[LanguageTask]
    rows: dict[str, dict[str, list[Row]]]
    device: torch.device
    precision: Format = "32"
    kept: Kept | None = None

    @property
    def merged(self) -> list[LanguageTask]:
        """The tasks whose experts are merged."""
        return [task for task in self.tasks if task.name not in self.recipe.unseen]

    def score(
        self,
        name: str,
        speak: Callable[[str], Speaker | Panel],
        split: str = "test",
        tasks: Sequence[LanguageTask] | None = None,
    ) -> LanguageScores:
        """One row of the table.

        Args:
            name: What the row is called.
            speak: Task name -> the model that answers it.
            split: validation or test.
            tasks: All tasks when None.
        """
        chosen, size = self.tasks if tasks is None else tasks, self.recipe.eval_batch_size
        precise = in_precision(self.precision, self.device, score)
        found: dict[str, float] = {}
        spent = 0.0
        total = sum(batches(len(self.rows[split][task.name]), size) for task in chosen)
        with self.folder.phase(f"{split}: {name}", total) as progress:
            for task in chosen:
                speaker, rows = speak(task.name), self.rows[split][task.name]
                start = time.perf_counter()
                options = {"batch_size": size, "seed": self.recipe.seed, "tick": progress.advance}
                found[task.name] = precise(speaker, task, rows, self.tokenizer, **options)
                spent += time.perf_counter() - start
        count = sum(len(self.rows[split][task.name]) for task in chosen)
        lower = frozenset(task.name for task in chosen if task.lower_is_better)
        return LanguageScores(found, 1000 * spent / count, lower)

    def remembering(self, model: nn.Module, experts: Mapping[str, Expert]) -> Bench:
        """The bench with the scores that earlier runs found of this base and these experts."""
        judged = [[task.name, task.metric, task.generation] for task in self.tasks]
        rows = {split: self.rows[split] for split in ("validation", "test")}
        backend = getattr(self.tokenizer, "backend_tokenizer", None)  # says how tokens become text, too
        words = [str(self.tokenizer), self.tokenizer.get_vocab(), "" if backend is None else backend.to_str()]
        states = {task: expert.state for task, expert in experts.items()}
        given = [judged, rows, words, self.recipe.seed, self.recipe.eval_batch_size, str(self.device)]
        return replace(self, kept=Kept(self.folder, model, states, *given))

    def score_once(
        self,
        name: str,
        speak: Callable[[], Callable[[str], Speaker | Panel]],
        *of: object,
        split: str = "test",
        tasks: Sequence[LanguageTask] | None = None,
    ) -> LanguageScores:
        """One row of the table, whose model is made only where no earlier run has scored it.

        Args:
            name: What the row is called.
            speak: Makes what `score` takes.
            of: What decides the model, beside the base and the experts; nothing for a score that is not kept.
            split: validation or test.
            tasks: All tasks when None.
        """
        chosen = self.tasks if tasks is None else tasks
        key = (self.precision, split, [task.name for task in chosen], *of)
        if of and self.kept and (found := self.kept.find(*key)):
            return LanguageScores(*found, frozenset(task.name for task in chosen if task.lower_is_better))
        scores = self.score(name, speak(), split, tasks)
        if of and self.kept:
            self.kept.keep(scores.tasks, scores.milliseconds, *key)
        return scores
