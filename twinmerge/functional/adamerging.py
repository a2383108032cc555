"""AdaMerging: coefficients of task arithmetic that make the merged model sure of its answers to unlabelled inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gapbridge.arguments import Count
from twinmerge.functional.state import State, check_states, unchanged

# The logits of a batch of every task, by the weights and the number of the step; differentiable in the weights.
Logits = Callable[[Mapping[str, Tensor], int], Sequence[Tensor]]


class Adapted(NamedTuple):
    """What AdaMerging finds.

    Attributes:
        weights: Merged weights by name, in the types of the base.
        coefficients: Of every expert by name of the tensor, shape (T,); the same for all where they are by task.
        entropies: Sum of the tasks' mean entropies before every step.
    """

    weights: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    entropies: list[float]


def adamerging(
    pretrained: State,
    experts: Sequence[State],
    *,
    logits: Logits,
    layers: bool = True,
    initial: float = 0.3,
    steps: Count = 500,
    rate: float = 1e-3,
) -> Adapted:
    r"""Task arithmetic, :math:`\theta = \theta_0 + \sum_t \lambda_t^l \tau_t^l`, with learned coefficients.

    The sum over tasks of the mean entropy of the merged model's answers to unlabelled inputs is made small by Adam. The
    coefficients are cut to [0, 1], as in the authors' code.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        logits: Gives the logits of a batch of every task, each of shape (rows, labels), from weights by name and the
            number of the step.
        layers: A coefficient for every expert and tensor (layer-wise AdaMerging); else one an expert (task-wise).
        initial: Value that all coefficients start from, in [0, 1].
        steps: Of Adam.
        rate: Of Adam.

    Returns:
        The weights and coefficients after the last step.

    Raises:
        ValueError: If a number is out of range, there is no expert, names or shapes differ, or a weight is NaN or
            infinite.

    Reference:
        Yang et al. (2024), "AdaMerging: adaptive model merging for multi-task learning", arXiv 2310.02575, equations 3
        to 6 and appendix B.
    """
    if not 0 <= initial <= 1 or not rate > 0:
        raise ValueError(f"initial is {initial} and rate {rate}, but they must be in [0, 1] and above 0")
    check_states(pretrained, experts)
    changed = [
        n for n, b in pretrained.items() if b.is_floating_point() and not all(unchanged(b, e[n]) for e in experts)
    ]
    vectors = {
        n: torch.stack([e[n].detach().to(pretrained[n].device).float() for e in experts])
        - pretrained[n].detach().float()
        for n in changed
    }
    place = next((v.device for v in vectors.values()), torch.device("cpu"))
    raw = torch.full((len(changed) if layers else 1, len(experts)), float(initial), device=place, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=rate)
    entropies = []
    for step in range(steps if changed else 0):
        optimizer.zero_grad()
        loss = torch.stack([entropy(rows) for rows in logits(_merged(pretrained, vectors, raw), step)]).sum()
        entropies.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    final = raw.detach().clamp(0, 1)
    weights = {n: v.detach().clone() for n, v in pretrained.items()}
    weights.update({n: v.to(pretrained[n].dtype) for n, v in _merged(pretrained, vectors, final, whole=False).items()})
    return Adapted(weights, {n: final[i if layers else 0] for i, n in enumerate(changed)}, entropies)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the softmax of every row, in nats."""
    logs = F.log_softmax(logits.float(), -1)
    return -(logs.exp() * logs).sum(-1).mean()


def _merged(pretrained: State, vectors: Mapping[str, Tensor], raw: Tensor, *, whole: bool = True) -> dict[str, Tensor]:
    """The weights at some coefficients; those that no expert changed only where all are asked for."""
    cut = raw.clamp(0, 1)
    rows = cut.expand(len(vectors), -1)
    made = dict(pretrained) if whole else {}
    for row, (name, vector) in zip(rows, vectors.items(), strict=True):
        made[name] = pretrained[name].detach().float() + torch.tensordot(row, vector, 1)
    return made
