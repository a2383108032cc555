"""TSV-Compress: every task's matrices by their leading singular directions; the task must be known to use them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from twinmerge.functional.factorize import LowRank, truncated_svd
from twinmerge.functional.state import State, check_states, unchanged, working_dtype


class Compressed(NamedTuple):
    """What TSV-Compress stores beside the base.

    Attributes:
        factors: For every expert, low-rank forms of its task matrices by name.
        vectors: For every expert, its task vectors of what is no matrix, by name.
    """

    factors: list[dict[str, LowRank]]
    vectors: list[dict[str, Tensor]]

    @property
    def bytes(self) -> int:
        """Size of all of it."""
        low = sum(one.up.nbytes + one.down.nbytes for own in self.factors for one in own.values())
        return low + sum(value.nbytes for own in self.vectors for value in own.values())

    def expert(self, pretrained: State, index: int) -> dict[str, Tensor]:
        """Weights for one task, the base plus its compressed task vector, in the types of the base.

        Args:
            pretrained: Base weights by name.
            index: Which expert, from 0.
        """
        made = {name: base.detach().clone() for name, base in pretrained.items()}
        changes = {name: low.dense() for name, low in self.factors[index].items()} | self.vectors[index]
        for name, change in changes.items():
            base = pretrained[name].detach()
            made[name] = (base.to(change.dtype) + change.view(base.shape)).to(base.dtype)
        return made


def tsv_c(pretrained: State, experts: Sequence[State], *, rank: int | None = None) -> Compressed:
    r"""Keep :math:`U_k \Sigma_k V_k^T` of every task matrix, with :math:`k = \min(m, n) / T` for T tasks.

    All tasks together then take about the room of one model. What is no matrix is kept whole.

    Args:
        pretrained: Base weights by name.
        experts: At least one state dict of the same names and shapes.
        rank: k, at least 1, instead of the paper's; at most the shorter side is kept.

    Raises:
        ValueError: If the rank is below 1, there is no expert, names or shapes differ, or a weight is NaN or infinite.

    Reference:
        Gargiulo et al. (2024), "Task singular vectors: reducing task interference in model merging", arXiv 2412.00081,
        section 3.2 (TSV-Compress).
    """
    if rank is not None and rank < 1:
        raise ValueError(f"the rank is {rank}, but it must be at least 1")
    check_states(pretrained, experts)
    made = Compressed([{} for _ in experts], [{} for _ in experts])
    for index, expert in enumerate(experts):
        for name, base in pretrained.items():
            if not base.is_floating_point() or unchanged(base, expert[name]):
                continue
            dtype = working_dtype(base, expert[name])
            change = expert[name].detach().to(base.device, dtype) - base.detach().to(dtype)
            if change.dim() != 2:
                made.vectors[index][name] = change
                continue
            kept = min(*change.shape, max(1, min(change.shape) // len(experts)) if rank is None else rank)
            made.factors[index][name] = truncated_svd(change, kept, tolerance=1e-3)
    return made
