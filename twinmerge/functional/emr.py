"""EMR-Merging: one elected task vector, and a mask and a rescaler for every task, which must be known to use them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from twinmerge.functional.state import State, check_states, unchanged, working_dtype


class Elected(NamedTuple):
    """What EMR-Merging stores beside the base.

    Attributes:
        vector: Elected task vector by name; what no expert changed is absent.
        masks: For every expert, where its own change has the elected sign, by name; bool.
        rescalers: For every expert, the factor that gives the masked vector the mean size of its own change.
    """

    vector: dict[str, Tensor]
    masks: list[dict[str, Tensor]]
    rescalers: list[float]

    @property
    def bytes(self) -> int:
        """Size of the vector, of the masks at one bit a value, and of the rescalers in float32."""
        bits = sum(mask.numel() for masks in self.masks for mask in masks.values())
        return sum(value.nbytes for value in self.vector.values()) + -(-bits // 8) + 4 * len(self.rescalers)

    def expert(self, pretrained: State, index: int) -> dict[str, Tensor]:
        """Weights for one task, the base plus its rescaled, masked vector, in the types of the base.

        Args:
            pretrained: Base weights by name.
            index: Which expert, from 0.
        """
        made = {name: base.detach().clone() for name, base in pretrained.items()}
        for name, mask in self.masks[index].items():
            change = self.rescalers[index] * mask * self.vector[name]
            made[name] = (pretrained[name].detach().to(change.dtype) + change).to(pretrained[name].dtype)
        return made


def emr(pretrained: State, experts: Sequence[State]) -> Elected:
    r"""Elect, mask and rescale.

    Elect: per value, the sign of the sum of the task vectors, :math:`\gamma = sgn(\sum_t \tau_t)`, and the largest
    magnitude among those of that sign, :math:`\tau = \gamma \max_{t: \gamma \tau_t > 0} |\tau_t|`. Mask:
    :math:`M_t = [\tau_t \tau > 0]`. Rescale: :math:`\lambda_t = \sum |\tau_t| / \sum |M_t \tau|` over the whole model.
    The task's weights are :math:`\theta_0 + \lambda_t M_t \tau`.

    Args:
        pretrained: Base weights :math:`\theta_0` by name.
        experts: At least one state dict of the same names and shapes.

    Raises:
        ValueError: If there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> made = emr({"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, -2.0])}])
        >>> made.vector["w"], made.expert({"w": torch.zeros(2)}, 0)["w"]
        (tensor([ 3., -2.]), tensor([2., 0.]))

    Reference:
        Huang et al. (2024), "EMR-Merging: tuning-free high-performance model merging", arXiv 2405.17461, algorithm 1.
    """
    check_states(pretrained, experts)
    vector: dict[str, Tensor] = {}
    masks: list[dict[str, Tensor]] = [{} for _ in experts]
    own, elected = [0.0] * len(experts), [0.0] * len(experts)
    for name, base in pretrained.items():
        if not base.is_floating_point() or all(unchanged(base, expert[name]) for expert in experts):
            continue
        changes = _changes(base, experts, name)
        # In float64 the sum does not depend on the order of the experts, and so neither does a close election.
        sign = changes.sum(0, dtype=torch.float64).sign().to(changes.dtype)
        agrees = changes * sign > 0
        vector[name] = sign * (changes.abs() * agrees).amax(0)
        for index, mask in enumerate(agrees):
            masks[index][name] = mask
            own[index] += float(changes[index].abs().sum(dtype=torch.float64))
            elected[index] += float((vector[name].abs() * mask).sum(dtype=torch.float64))
    rescalers = [mine / kept if kept else 0.0 for mine, kept in zip(own, elected, strict=True)]
    return Elected(vector, masks, rescalers)


def _changes(base: Tensor, experts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    dtype = working_dtype(base, *(expert[name] for expert in experts))
    wide = base.detach().to(dtype)
    return torch.stack([expert[name].detach().to(base.device, dtype) - wide for expert in experts])
