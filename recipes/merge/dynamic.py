"""Rows of the merge table for other dynamic merges, on the twin's inputs and with factors of the twin's rank.

TSV-Compress needs to know the task and is told the first choice of the twin's router, as EMR-Merging is. SMILE and
Arrow choose experts for every token and linear layer by themselves and need no router; what is no linear layer is the
mean of the experts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recipes.merge.evaluation import with_heads
from twinmerge.functional.arrow import arrow_gates, prototype_of
from twinmerge.functional.factorize import truncated_svd
from twinmerge.functional.smile import low_rank_sum, smile_gates
from twinmerge.functional.tsv_c import Compressed, tsv_c
from twinmerge.merging import set_parameters, shared_expert

if TYPE_CHECKING:
    from recipes.merge.evaluation import Scores
    from recipes.merge.rows import Judge

States = Mapping[str, Mapping[str, Tensor]]


class GatedLinear(nn.Module):
    """A linear layer of the base with low-rank experts that every token has some of.

    Args:
        layer: Of the base.
        ups: Left factors, shape (T, m, k).
        downs: Right factors, shape (T, k, n).
        biases: What the experts add to the bias, shape (T, m); None without a bias.
        gates: Weights (..., T) of the experts from inputs (..., n).
    """

    def __init__(
        self, layer: nn.Linear, ups: Tensor, downs: Tensor, biases: Tensor | None, gates: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.layer, self.ups, self.downs, self.biases, self.gates = layer, ups, downs, biases, gates

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output with what the experts add."""
        weights = self.gates(inputs.float()).to(inputs.dtype)
        added = low_rank_sum(inputs, weights, self.ups.to(inputs.dtype), self.downs.to(inputs.dtype))
        if self.biases is not None:
            added = added + weights @ self.biases.to(inputs.dtype)
        out: Tensor = self.layer(inputs) + added
        return out


def compressed(model: nn.Module, states: States, rank: int | None) -> tuple[Compressed, list[nn.Module]]:
    """What TSV-Compress stores, and its model of every task."""
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = [{name: state[name] for name in base} for state in states.values()]
    whole, made = shared_expert(model, states, "average"), tsv_c(base, own, rank=rank)
    return made, [
        set_parameters(copy.deepcopy(model), {**whole, **made.expert(base, index)}) for index in range(len(own))
    ]


def layered(model: nn.Module, states: States, rank: int, kind: str) -> tuple[nn.Module, int]:
    """The model whose linear layers choose experts, by SMILE or Arrow, and the bytes of the experts.

    Args:
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        rank: Of every factor.
        kind: `smile` or `arrow`.
    """
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    made, stored = set_parameters(copy.deepcopy(model), shared_expert(model, states, "average")), 0
    for name, module in list(made.named_modules()):
        if not isinstance(module, nn.Linear) or f"{name}.weight" not in start:
            continue
        weight = f"{name}.weight"
        changes = [state[weight].to(start[weight]).float() - start[weight].float() for state in states.values()]
        if not any(change.any() for change in changes):
            continue
        found = [truncated_svd(change, min(rank, *change.shape)) for change in changes]
        ups, downs = torch.stack([low.up for low in found]), torch.stack([low.down for low in found])
        with torch.no_grad():
            module.weight.copy_(start[weight])
        biases = None
        if module.bias is not None and f"{name}.bias" in start:
            bias = start[f"{name}.bias"]
            biases = torch.stack([state[f"{name}.bias"].to(bias) - bias for state in states.values()])
            with torch.no_grad():
                module.bias.copy_(bias)
        gates: Callable[[Tensor], Tensor]
        if kind == "smile":
            gates = partial(smile_gates, directions=nn.functional.normalize(downs, dim=-1))
        else:
            first = torch.stack([prototype_of(low.up, low.down) for low in found])
            gates = partial(arrow_gates, prototypes=first, top_k=min(2, len(found)))
        parent: Any = made.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], GatedLinear(module, ups, downs, biases, gates))
        stored += ups.nbytes + downs.nbytes + (0 if biases is None else biases.nbytes)
    return made.eval(), stored


def scored(judge: Judge, model: nn.Module, states: States, kind: str, rank: int) -> tuple[Scores, int]:
    """The row of SMILE or Arrow, and the bytes of its experts."""
    made, stored = layered(model, states, rank, kind)
    return judge.score(kind, with_heads(made, judge.heads)), stored
