"""Rows of the merge table for other ways to serve every expert: EMR-Merging, and the twin with a kNN router.

Both see what the twin sees, the input alone: EMR-Merging needs to know the task, and is told the first choice of the
twin's own router; the kNN router reads the features that the twin's router reads, of the same training inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch

from recipes.merge import rows, wemoe
from recipes.merge.baselines import DYNAMIC
from recipes.merge.dynamic import compressed, scored
from recipes.merge.evaluation import Scores, apply_heads
from recipes.merge.routing import train_router
from twinmerge.functional.emr import Elected, emr
from twinmerge.merging import set_parameters, shared_expert
from twinmerge.states import states_of
from twinmerge.twin_parts import Router

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.merge.routing import Features
    from recipes.merge.rows import Judge, Read
    from recipes.merge.schema import Recipe
    from twinmerge.modeling_twin import Head
    from twinmerge.twin_mixin import TwinMixin

RANK = 16  # of experts of tokens where the twin's rank is not one number
Row = TypeVar("Row", bound=Scores)
EMR, KNN, TSV_C, WEMOE = "emr", "routed by knn", "tsv_c", "wemoe"


@dataclass
class Beside(Generic[Row]):
    """Rows, and the bytes that each of them needs.

    Attributes:
        rows: By row name.
        stored: By row name, bytes of the elected vector with masks and rescalers, or of the router.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)

    def sizes(self, base: int, places: Mapping[str, int]) -> dict[str, int]:
        """Bytes of each row.

        EMR-Merging needs the base, what it elected, the heads and the router (the shared expert that the router reads
        is not counted), and so do the others over the base, SMILE, Arrow and WEMoE without the router; the kNN router
        takes the place of the twin's own.

        Args:
            base: Bytes of the base.
            places: Bytes of the twin folder by part.
        """
        picked = dict.fromkeys((EMR, TSV_C), places["router"])
        found = {
            name: base + self.stored[name] + places["heads"] + picked.get(name, 0)
            for name in (EMR, *DYNAMIC)
            if name in self.stored
        }
        if KNN in self.stored:
            found[KNN] = sum(places.values()) - places["router"] + self.stored[KNN]
        return found


def compared(
    judge: Judge,
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    twin: TwinMixin,
    features: Mapping[str, Features],
    read: Read,
    stored: torch.dtype = torch.float32,
) -> Beside[Scores]:
    """The rows that the recipe asks for.

    Args:
        judge: What the rows are measured by.
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        twin: With its router; it is given back.
        features: `train`, `validation` and `test` -> the router's features and task ids.
        read: Router features of the test batches.
        stored: Number format in which the twin is saved, and what the others add to the base too.
    """
    found, router = Beside[Scores](), cast("Router", twin.router)
    for name in judge.recipe.baselines.dynamic:
        if name == WEMOE:
            found.rows[name], found.stored[name] = wemoe.scored(judge, model, states, stored)
        elif name != TSV_C:
            rank = judge.recipe.exclusive.rank or RANK
            found.rows[name], found.stored[name] = scored(judge, model, states, name, rank, stored)
    for name, size, models in told(judge.recipe, model, states, stored):
        with torch.no_grad():
            picked = iter([router(part.to(judge.device)).argmax(-1) for part in read[0]])
        row = judge.score(name, partial(_picked, models, judge.heads, picked))
        found.rows[name] = replace(row, milliseconds=row.milliseconds + read[2])
        found.stored[name] = size
    if judge.recipe.baselines.knn and router.kind != "knn":
        options = replace(judge.recipe.router, kind="knn")
        voting = train_router(options, features, len(states), judge.recipe.seed, judge.folder).router
        twin.router = voting.to(judge.device)
        found.rows[KNN] = rows.routed(judge, twin, read, KNN)["routed"]
        twin.router = router
        found.stored[KNN] = sum(value.nbytes for value in voting.state_dict().values())
    return found


def told(
    recipe: Recipe, model: nn.Module, states: Mapping[str, Mapping[str, Tensor]], stored: torch.dtype
) -> Iterator[tuple[str, int, list[nn.Module]]]:
    """The merges that a recipe asks for and that must know the task: name, bytes, and a model of every task.

    Args:
        recipe: The recipe.
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        stored: Number format in which it is kept.
    """
    if recipe.baselines.emr:
        vector, models = elected(model, states, stored)
        yield EMR, vector.bytes, models
    if TSV_C in recipe.baselines.dynamic:
        yield TSV_C, *compressed(model, states, recipe.exclusive.rank, stored)


def elected(
    model: nn.Module, states: Mapping[str, Mapping[str, Tensor]], stored: torch.dtype = torch.float32
) -> tuple[Elected, list[nn.Module]]:
    """What EMR-Merging stores, and its model of every task.

    Args:
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        stored: Number format in which the elected vector is kept.
    """
    kept: list[Elected] = []
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def first(pretrained: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        made = emr(pretrained, experts)
        kept.append(made._replace(vector={name: value.to(stored) for name, value in made.vector.items()}))
        kept.append(made._replace(vector={name: value.float() for name, value in kept[0].vector.items()}))
        return kept[1].expert(pretrained, 0)

    whole = shared_expert(model, states, first)  # means of batch norms' statistics too, as for every static merge
    return kept[0], [
        set_parameters(copy.deepcopy(model), {**whole, **kept[1].expert(base, index)}) for index in range(len(states))
    ]


def _picked(
    models: Sequence[nn.Module],
    heads: Mapping[str, Head],
    picked: Iterator[Tensor],
    inputs: dict[str, Tensor],
    asked: list[str],
) -> Tensor:
    """Every input by the model that was picked for it, and the head of the question asked."""
    chosen = next(picked)
    mask, labels = inputs.get("attention_mask"), max(head.out_proj.out_features for head in heads.values())
    logits: Tensor | None = None
    for index in sorted(set(chosen.tolist())):
        mine = chosen == index
        states = states_of(models[index], models[index](**{name: value[mine] for name, value in inputs.items()}))
        questions = [question for question, picked in zip(asked, mine.tolist(), strict=True) if picked]
        if logits is None:
            logits = states.tokens.new_zeros((len(asked), labels))
        logits[mine] = apply_heads(states, None if mask is None else mask[mine], questions, heads)
    return cast("Tensor", logits)
