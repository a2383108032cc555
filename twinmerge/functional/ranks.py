"""Rank policies: how many singular directions of every tensor an exclusive expert keeps."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)
Shape = tuple[int, int]


def choose_ranks(
    shapes: Mapping[K, Shape],
    *,
    rank: int | None = None,
    density: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    spectra: Mapping[K, Tensor] | None = None,
    bytes_per_value: int = 4,
) -> dict[K, int]:
    """Rank of every tensor under exactly one policy.

    Args:
        shapes: Shape (m, n) of every matrix, by any key, such as (task, tensor name).
        rank: The same number everywhere, cut to min(m, n) where a matrix is smaller.
        density: Fraction of min(m, n) in (0, 1], see :func:`rank_from_density`.
        energy: Fraction of the squared Frobenius norm in (0, 1], see :func:`rank_from_energy`; needs ``spectra``.
        budget: Bytes for all factors together, see :func:`ranks_from_budget`; needs ``spectra``.
        spectra: All singular values of every matrix, descending, from :func:`~twinmerge.functional.factorize.spectrum`.
        bytes_per_value: Size of one stored number.

    Returns:
        A rank by key, at least 1; under a budget it can be 0, which leaves that tensor to the shared expert.

    Raises:
        ValueError: If not exactly one policy is given, its value is out of range, or it lacks the spectra.

    Example:
        >>> choose_ranks({"query": (8, 8), "types": (2, 8)}, rank=3)
        {'query': 3, 'types': 2}
    """
    given = {"rank": rank, "density": density, "energy": energy, "budget": budget}
    named = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"the rank policy is {' and '.join(named) or 'missing'}: give exactly one of {', '.join(given)}"
        )
    if rank is not None:
        widest = max((min(shape) for shape in shapes.values()), default=0)
        if isinstance(rank, bool) or not 1 <= rank <= widest:
            raise ValueError(
                f"the rank is {rank}, but the largest matrix takes a rank from 1 to {widest}, its smaller side: give "
                "one of these, or a density such as 0.1, which is a share of every matrix's own"
            )
        return {key: min(rank, *shape) for key, shape in shapes.items()}
    if density is not None:
        return {key: rank_from_density(shape, density) for key, shape in shapes.items()}
    if spectra is None or spectra.keys() != shapes.keys():
        raise ValueError(f"the rank policy {named[0]} needs the singular values of exactly the tensors in `shapes`")
    if energy is not None:
        return {key: rank_from_energy(spectra[key], energy) for key in shapes}
    return ranks_from_budget(shapes, spectra, budget or 0, bytes_per_value=bytes_per_value)


def rank_from_density(shape: Shape, density: float) -> int:
    """Rank max(1, floor(density * min(m, n))), the paper's rule with the tensors it would drop kept at rank 1.

    Args:
        shape: (m, n).
        density: Fraction in (0, 1]; the paper's "90 % sparsity" is 0.1.

    Returns:
        A rank between 1 and min(m, n).

    Raises:
        ValueError: If the density is outside (0, 1].

    Example:
        >>> rank_from_density((768, 3072), 0.1), rank_from_density((2, 384), 0.1)
        (76, 1)
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density is {density}, but it must be above 0 and at most 1, as in 0.1")
    return max(1, int(density * min(shape)))


def rank_from_energy(singular_values: Tensor, energy: float) -> int:
    """Smallest rank whose leading values hold a fraction of the squared Frobenius norm.

    Args:
        singular_values: All of them, descending, shape (min(m, n),).
        energy: Fraction in (0, 1].

    Returns:
        A rank between 1 and min(m, n).

    Raises:
        ValueError: If the fraction is outside (0, 1].

    Example:
        >>> rank_from_energy(torch.tensor([3.0, 1.0, 0.0]), 0.9), rank_from_energy(torch.tensor([3.0, 1.0, 0.0]), 1.0)
        (1, 2)
    """
    if not 0 < energy <= 1:
        raise ValueError(f"the energy is {energy}, but it must be above 0 and at most 1, as in 0.95")
    captured = singular_values.double().square().cumsum(0)
    return min(int((captured < energy * captured[-1]).sum()) + 1, len(captured))


def ranks_from_budget(
    shapes: Mapping[K, Shape], spectra: Mapping[K, Tensor], budget: int, *, bytes_per_value: int = 4
) -> dict[K, int]:
    r"""Ranks that keep the most squared Frobenius norm over all tensors within a number of bytes.

    One more direction of a tensor costs (m + n) numbers and keeps :math:`\sigma^2`, so directions are bought in the
    order of :math:`\sigma^2 / (m + n)` over all tensors and experts until the bytes are spent. No other choice of the
    same size keeps more. No rank goes past the break-even, where factors would outgrow the matrix.

    Args:
        shapes: (m, n) by key.
        spectra: Singular values by the same keys, descending, at least up to the break-even rank.
        budget: Bytes, above 0.
        bytes_per_value: Size of one stored number.

    Returns:
        A rank by key; 0 leaves the tensor to the shared expert.

    Raises:
        ValueError: If the budget does not buy a single direction.

    Example:
        >>> ranks_from_budget({"a": (8, 8), "b": (8, 8)}, {"a": torch.tensor([3.0, 2, 1, 0, 0, 0, 0, 0]),
        ...     "b": torch.tensor([2.5, 0, 0, 0, 0, 0, 0, 0])}, budget=3 * 16 * 4)
        {'a': 2, 'b': 1}
    """
    keys = list(shapes)
    gains, prices = [], []
    for key in keys:
        m, n = shapes[key]
        squares = spectra[key].double().cpu().square()[: max(1, _break_even(shapes[key]))]
        gains.append(squares)
        prices.append(torch.full_like(squares, min(m + n, m * n) * bytes_per_value))
    owner = torch.arange(len(keys)).repeat_interleave(torch.tensor([len(squares) for squares in gains]))
    gain, price = torch.cat(gains), torch.cat(prices)
    order = (gain / price).argsort(descending=True, stable=True)
    order = order[gain[order] > 0]
    spent = price[order].cumsum(0)
    if len(order) and spent[0] > budget:
        raise ValueError(
            f"the budget is {budget} bytes, but the first direction takes {int(spent[0])} bytes: give at least that"
        )
    bought = torch.bincount(owner[order[spent <= budget]], minlength=len(keys))
    return dict(zip(keys, bought.tolist(), strict=True))


def stored_dense(shape: Shape, rank: int) -> bool:
    """Whether factors of this rank would take more numbers than the matrix itself, rank * (m + n) > m * n.

    Args:
        shape: (m, n).
        rank: A rank between 0 and min(m, n).

    Returns:
        True when the tensor is better stored dense, and then exactly.

    Example:
        >>> stored_dense((768, 768), 384), stored_dense((768, 768), 385)
        (False, True)
    """
    return rank > _break_even(shape)


def _break_even(shape: Shape) -> int:
    """Largest rank at which factors are not larger than the matrix, floor(mn / (m + n))."""
    m, n = shape
    return (m * n) // (m + n)
