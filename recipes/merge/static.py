"""The rows of static merges: every candidate on validation, and the best of each method on test."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from recipes.merge.baselines import SHARED, Candidates, deciding, told, trials, tune
from recipes.merge.evaluation import Scores, evaluate, with_heads
from twinmerge.merging import set_parameters, shared_expert
from twinmerge.recalibration import recalibrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from recipes.merge.baselines import Options, Tuned
    from recipes.merge.evaluation import Counted, Model
    from recipes.merge.rows import Judge

States = Mapping[str, Mapping[str, "Tensor"]]


def static(judge: Judge, model: nn.Module, states: States, held: Scores) -> tuple[Tuned, dict[str, Scores]]:
    """The best candidate of every static merge on validation, that of the shared expert where it is tuned, and rows.

    Args:
        judge: What the rows are measured by.
        model: The base.
        states: Task -> the expert's parameters.
        held: The experts on validation, to which scores are normalised.
    """
    folder, parts = judge.folder, judge.data.parts("validation")
    grid = [*judge.recipe.baselines.grid(), *judge.recipe.shared.grid()]
    merges, tried = _Merges(judge, model, states), trials(grid, len(parts))
    steps = sum(count * len(part) for count, part in zip(tried, parts, strict=True))
    with folder.phase("validation: static candidates", steps) as progress:

        def validate(method: str, options: Options, part: int) -> float:
            return merges.validated(method, options, part, progress.advance).normalised(held)

        best = tune(grid, validate, len(parts))
    if len(parts) > 1:
        folder.say(
            f"static merges: {tried[0]} candidates on a quarter of the validation rows, the better {tried[1]} on half, "
            f"{tried[2]} on all"
        )
    return best, {method: merges.row(method, options) for method, (_, options) in best.items() if method != SHARED}


class _Merges:
    """Candidates by method and options, scored once: neither in this run nor in a later one again."""

    def __init__(self, judge: Judge, model: nn.Module, states: States) -> None:
        self.judge, self.work = judge, copy.deepcopy(model)
        self.parts = judge.data.parts("validation")
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.candidates = Candidates(
            named, lambda method, options: shared_expert(model, states, method, **options), judge.recipe.seed
        )
        self.counted: dict[tuple[str, str], tuple[list[int], Counted]] = {}
        held = judge.batches["validation"]
        several = [batch for batch in held if len(next(iter(batch.values()))) > 1]  # one input has no variance
        batches = (several or held)[:4]
        self.few = [{k: v.to(judge.device) for k, v in b.items() if k not in ("labels", "task")} for b in batches]
        self.anew = judge.recipe.training.statistics == "trained"
        if self.anew:
            count = sum(len(next(iter(batch.values()))) for batch in self.few)
            judge.folder.say(f"static merges: running statistics are taken anew from {count} validation inputs")

    def model(self, method: str, options: Options) -> Model:
        """A merged model with the experts' heads."""
        made = set_parameters(self.work, self.candidates(self._merge(method), options))
        if self.anew:
            recalibrate(made, self.few)
        return with_heads(made, self.judge.heads)

    def validated(self, method: str, options: Options, part: int, tick: Callable[[], object]) -> Scores:
        """The score on all parts of the validation rows up to one."""
        judge, decides = self.judge, deciding(self._merge(method), options, self.judge.recipe.seed)
        key = (judge.precision, "parts", part, *decides)
        if decides and (found := judge.kept.find(*key)):
            for _ in self.parts[part]:
                tick()
            return Scores(*found)
        answer = judge.precise(self.model(method, options))
        seen, counted = self.counted.setdefault((method, told(options)), ([], {}))
        for missing in range(len(seen), part):  # an earlier run has scored it
            evaluate(answer, judge.tasks, self.parts[missing], lambda: None, judge.device, counted)
            seen.append(missing)
        scores = evaluate(answer, judge.tasks, self.parts[part], tick, judge.device, counted)
        seen.append(part)
        if decides:
            judge.kept.keep(scores.tasks, scores.milliseconds, *key)
        return scores

    def row(self, method: str, options: Options) -> Scores:
        """The row of a candidate."""
        make, decides = partial(self.model, method, options), deciding(method, options, self.judge.recipe.seed)
        return self.judge.score_once(method, make, *decides) if decides else self.judge.score(method, make())

    def _merge(self, method: str) -> str:
        return self.judge.recipe.shared.method if method == SHARED else method
