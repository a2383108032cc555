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


def compressed(
    model: nn.Module, states: States, rank: int | None, stored: torch.dtype = torch.float32
) -> tuple[int, list[nn.Module]]:
    """The bytes of what TSV-Compress stores, and its model of every task.

    Args:
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        rank: Of every factor; None for the paper's.
        stored: Number format in which the factors are kept.
    """
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = [{name: state[name] for name in base} for state in states.values()]
    whole, kept = shared_expert(model, states, "average"), _kept(tsv_c(base, own, rank=rank), stored)
    made = _kept(kept, torch.float32)
    return kept.bytes, [
        set_parameters(copy.deepcopy(model), {**whole, **made.expert(base, index)}) for index in range(len(own))
    ]


def layered(
    model: nn.Module, states: States, rank: int, kind: str, stored: torch.dtype = torch.float32
) -> tuple[nn.Module, int]:
    """The model whose linear layers choose experts, by SMILE or Arrow, and the bytes of the experts.

    Args:
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        rank: Of every factor.
        kind: `smile` or `arrow`.
        stored: Number format in which the factors are kept.
    """
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    made, size = set_parameters(copy.deepcopy(model), shared_expert(model, states, "average")), 0
    for name, module in list(made.named_modules()):
        if not isinstance(module, nn.Linear) or f"{name}.weight" not in start:
            continue
        weight = f"{name}.weight"
        changes = [state[weight].to(start[weight]).float() - start[weight].float() for state in states.values()]
        if not any(change.any() for change in changes):
            continue
        found = [truncated_svd(change, min(rank, *change.shape)) for change in changes]
        ups, downs = (
            torch.stack(side).to(stored).float() for side in zip(*((f.up, f.down) for f in found), strict=True)
        )
        with torch.no_grad():
            module.weight.copy_(start[weight])
        biases = None
        if module.bias is not None and f"{name}.bias" in start:
            bias = start[f"{name}.bias"]
            biases = torch.stack([state[f"{name}.bias"].to(bias) - bias for state in states.values()])
            biases = biases.to(stored).to(bias.dtype)
            with torch.no_grad():
                module.bias.copy_(bias)
        gates: Callable[[Tensor], Tensor]
        if kind == "smile":
            gates = partial(smile_gates, directions=nn.functional.normalize(downs, dim=-1))
        else:
            first = torch.stack([prototype_of(up, down) for up, down in zip(ups, downs, strict=True)])
            gates = partial(arrow_gates, prototypes=first, top_k=min(2, len(found)))
        parent: Any = made.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], GatedLinear(module, ups, downs, biases, gates))
        size += stored.itemsize * (ups.numel() + downs.numel() + (0 if biases is None else biases.numel()))
    return made.eval(), size


def scored(
    judge: Judge, model: nn.Module, states: States, kind: str, rank: int, stored: torch.dtype = torch.float32
) -> tuple[Scores, int]:
    """The row of SMILE or Arrow, and the bytes of its experts."""
    made, size = layered(model, states, rank, kind, stored)
    return judge.score(kind, with_heads(made, judge.heads)), size


def _kept(made: Compressed, kind: torch.dtype) -> Compressed:
    """What TSV-Compress stores in a number format."""
    factors = [
        {name: low._replace(up=low.up.to(kind), down=low.down.to(kind)) for name, low in own.items()}
        for own in made.factors
    ]
    return Compressed(factors, [{name: value.to(kind) for name, value in own.items()} for own in made.vectors])
