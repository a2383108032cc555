"""Other dynamic merges of language models beside the twin: what they make is that of `recipes.merge.compared`.

All see what the twin sees, the prompt alone. EMR-Merging and TSV-Compress must know the task and are told the first
choice of the twin's router; the kNN router reads the features of the twin's own; the gates of WEMoE read the prompt,
and what they said is held while the answer is. SMILE and Arrow choose experts by token as they are read and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from recipes.merge import wemoe
from recipes.merge.causal.scores import Panel, Speaker, next_logits, places
from recipes.merge.causal.table import LanguageScores
from recipes.merge.compared import KNN, RANK, TSV_C, WEMOE, Beside, told
from recipes.merge.dynamic import layered
from recipes.merge.routing import train_router
from twinmerge.states import body_of

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.merge.causal.with_data import Rows
    from recipes.merge.routing import Features
    from twinmerge.twin_mixin import TwinMixin
    from twinmerge.twin_parts import Router

States = Mapping[str, Mapping[str, "Tensor"]]


def compared(
    rows: Rows, states: States, twin: TwinMixin, features: Mapping[str, Features], stored: torch.dtype
) -> Beside[LanguageScores]:
    """The rows that the recipe asks for.

    Args:
        rows: The base, and the rows of the tasks.
        states: Task -> the expert's parameters.
        twin: With its router; it is given back.
        features: `train`, `validation` and `test` -> the router's features and task ids.
        stored: Number format in which the twin is saved, and what the others add to the base too.
    """
    bench, found, pad = rows.bench, Beside[LanguageScores](), rows.pad
    recipe, router = bench.recipe, cast("Router", twin.router)
    for name in recipe.baselines.dynamic:
        if name == WEMOE:
            speaker, size = gated(rows, states, stored)
        elif name != TSV_C:
            made, size = layered(rows.model, states, recipe.exclusive.rank or RANK, name, stored)
            speaker = Speaker(made, pad)
        else:
            continue
        found.rows[name], found.stored[name] = bench.score(name, partial(_always, speaker)), size
    for name, size, models in told(recipe, rows.model, states, stored):
        panel = Panel([Speaker(one, pad) for one in models], Speaker(twin, pad, twin.route))
        found.rows[name], found.stored[name] = bench.score(name, partial(_always, panel)), size
    if recipe.baselines.knn and router.kind != "knn":
        options = replace(recipe.router, kind="knn")
        voting = train_router(options, features, len(states), recipe.seed, bench.folder).router
        twin.router = voting.to(bench.device)
        found.rows[KNN] = bench.score(KNN, partial(_always, Speaker(twin, pad, twin.route)))
        twin.router = router
        found.stored[KNN] = sum(value.nbytes for value in voting.state_dict().values())
    return found


def gated(rows: Rows, states: States, stored: torch.dtype) -> tuple[Speaker, int]:
    """WEMoE with its gates learned, and the bytes of what it stores beside the base.

    Args:
        rows: The base, and the rows of the tasks.
        states: Task -> the expert's parameters.
        stored: Number format in which the experts' changes are kept.
    """
    recipe, batches = rows.bench.recipe, rows.prompts()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        made, gates, size = wemoe.ensembled(rows.model, states, stored)
    model: Any = made

    def answers(step: int) -> Iterator[Tensor]:
        for prompts in batches:
            ids, mask = prompts[step % len(prompts)]
            with _masked(gates, mask):
                logits = next_logits(model, model, ids, mask)
            yield logits

    wemoe.learn(gates, answers, recipe.baselines.data_steps, rows.bench.folder)
    return speaker_of(model, gates, rows.pad), size


def speaker_of(model: Any, gates: Sequence[wemoe.Gate], pad: int) -> Speaker:
    """A model with gates, which read the prompt and then keep to what they said.

    Args:
        model: Of `recipes.merge.wemoe.ensembled`.
        gates: Its gates.
        pad: Token that fills a batch.
    """

    def route(ids: Tensor, mask: Tensor) -> Tensor:
        with _masked(gates, mask):
            body_of(model)(input_ids=ids, attention_mask=mask, use_cache=False, **places(model, mask))
        return torch.stack([cast("Tensor", gate.weights) for gate in gates], 1)

    @contextmanager
    def hold(weights: Tensor) -> Iterator[None]:
        for gate, own in zip(gates, weights.unbind(1), strict=True):
            gate.held = own
        try:
            yield
        finally:
            for gate in gates:
                gate.held = None

    return Speaker(model, pad, route, hold)


@contextmanager
def _masked(gates: Sequence[wemoe.Gate], mask: Tensor) -> Iterator[None]:
    """Which tokens of a batch the gates read."""
    for gate in gates:
        gate.mask = mask
    try:
        yield
    finally:
        for gate in gates:
            gate.mask = None


def _always(speaker: Speaker | Panel, task: str) -> Speaker | Panel:
    return speaker
