"""What static merges with data look at in tasks of language models; the merges are those of `recipes.merge.with_data`.

Fisher information and Gram matrices come from training rows as the expert read them. An answer is one of so many tokens
at every place that was learned that it is drawn from the expert's own distribution, and the row's answer is read as
context alone. AdaMerging and WEMoE see validation prompts and nothing of their answers: the entropy is that of the
token that comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from torch.func import functional_call

from recipes.merge.causal.encode import IGNORED
from recipes.merge.causal.scores import Speaker, next_logits
from twinmerge.gathering import input_grams, sampled_fisher_information
from twinmerge.states import body_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from recipes.merge.causal.bench import Bench
    from recipes.merge.causal.encode import Row
    from recipes.merge.causal.table import LanguageScores


class Rows:
    """The rows of language tasks.

    Args:
        bench: What the table is measured by.
        model: The base; left as it is.
        pad: Token that fills a batch.
        changed: Parameters that some expert changed.
        held: The experts on validation, to which scores are normalised.
    """

    def __init__(self, bench: Bench, model: Any, pad: int, changed: Sequence[str], held: LanguageScores) -> None:
        self.bench, self.model, self.pad, self.changed, self.held = bench, model, pad, frozenset(changed), held
        self.recipe, self.folder = bench.recipe, bench.folder

    def information(self, task: str, expert: nn.Module) -> dict[str, Tensor]:
        """Fisher information of an expert at the places that it learned, by draws; of what some expert changed."""
        learned = [row for row in self._of("train", task) if any(label != IGNORED for label in row.labels)]
        speaker = Speaker(expert, self.pad)

        def logits(row: Row) -> Tensor:
            ids, mask = speaker.batch([row.tokens])
            places = [place - 1 for place, label in enumerate(row.labels) if label != IGNORED]
            found: Tensor = expert(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, places]
            return found

        parameters = {n: p.requires_grad_() for n, p in expert.named_parameters() if n in self.changed}
        with self.folder.phase(f"Fisher information: {task}", len(learned)) as progress:
            answers = (partial(logits, row) for row in progress.track(learned))
            return sampled_fisher_information(parameters, answers, seed=self.recipe.seed)

    def grams(self, task: str, expert: nn.Module) -> dict[str, Tensor]:
        """Gram matrices of the inputs of an expert's linear layers; rows of one length are read together, unpadded."""
        model = cast("PreTrainedModel", expert)
        output = model.get_output_embeddings()  # merged by its inputs too, unless it is tied to the embedding
        own = any(one is output and f"{name}.weight" in self.changed for name, one in model.named_modules())
        reader, speaker = model if own else body_of(model), Speaker(expert, self.pad)
        batches = list(self._alike(self._of("train", task)))
        with self.folder.phase(f"Gram matrices: {task}", len(batches)) as progress:
            runs = (
                (partial(reader, input_ids=ids, attention_mask=mask, use_cache=False), None)
                for ids, mask in map(speaker.batch, progress.track(batches))
            )
            return input_grams(model, runs)

    def logits(self) -> Callable[[Mapping[str, Tensor], int], list[Tensor]]:
        """Logits of what comes next after validation prompts of every task, by weights and the number of a step."""

        def found(weights: Mapping[str, Tensor], step: int) -> list[Tensor]:
            run = partial(_called, self.model, dict(weights))
            return [next_logits(self.model, run, *prompts[step % len(prompts)]) for prompts in given]

        given = self.prompts()
        return found

    def prompts(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Batches of validation prompts and their masks, padded on the left, of every merged task."""
        size, speaker, made = self.recipe.training.batch_size, Speaker(self.model, self.pad), []
        for task in self.bench.merged:
            told = sorted((row.tokens[: row.prompt] for row in self._of("validation", task.name)), key=len)
            made.append([speaker.batch(told[start : start + size]) for start in range(0, len(told), size)])
        return made

    def validated(self, name: str, model: nn.Module) -> float:
        """Normalised score of a candidate on validation."""
        speaker = Speaker(model, self.pad)
        scores = self.bench.score(name, lambda _: speaker, "validation", self.bench.merged)
        return scores.normalised(self.held)

    def row(self, name: str, model: nn.Module) -> LanguageScores:
        """Scores of the best candidate on test."""
        speaker = Speaker(model, self.pad)
        return self.bench.score(name, lambda _: speaker)

    def _of(self, split: str, task: str) -> list[Row]:
        return self.bench.rows[split][task][: self.recipe.baselines.data_items]

    def _alike(self, rows: Sequence[Row]) -> Iterator[list[list[int]]]:
        """Batches of rows of one length."""
        size = self.recipe.training.batch_size
        for _, alike in groupby(sorted((row.tokens for row in rows), key=len), key=len):
            told = list(alike)
            yield from (told[start : start + size] for start in range(0, len(told), size))


def _called(model: nn.Module, weights: dict[str, Tensor], **inputs: object) -> Any:
    return functional_call(model, weights, kwargs=inputs)
