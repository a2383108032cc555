"""Eigenvectors of symmetric matrices in little memory, and powers of Gram matrices on the directions that are real."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor


def eigenvectors(matrix: Tensor, top: int | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, whose content is lost.

    `torch.linalg.eigh` holds the matrix, its copy and two more of its size for work. On the CPU this holds the matrix
    and the vectors alone.

    Args:
        matrix: Shape (k, k), symmetric; on the CPU it is used for work.
        top: How many of the largest are wanted; all by default.

    Returns:
        Values of shape (top,) and vectors of shape (k, top), one a column.

    Example:
        >>> eigenvectors(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))[0]
        tensor([1., 2.])
    """
    count = len(matrix)
    wanted = count if top is None else min(top, count)
    if matrix.device.type != "cpu" or not wanted:
        values, vectors = torch.linalg.eigh(matrix)
        return values[count - wanted :], vectors[:, count - wanted :]
    # The transpose of a matrix in rows is one in columns, which LAPACK takes without a copy.
    found = scipy.linalg.eigh(
        matrix.detach().numpy().T,
        overwrite_a=True,
        check_finite=False,
        driver="evr",
        subset_by_index=None if wanted == count else (count - wanted, count - 1),
    )
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def inverse_power(gram: Tensor, power: float, noise: float) -> tuple[Tensor, Tensor]:
    r"""The inverse power :math:`G^{-p}` of a Gram matrix within the directions that are more than noise.

    Args:
        gram: G, shape (k, k), float64; its content is lost.
        power: p, above 0; one half gives the factor that makes columns orthonormal.
        noise: Eigenvalues up to this share of the largest count as zero.

    Returns:
        The eigenvalues, ascending, those that are noise set to zero; and :math:`G^{-p}`, shape (k, k).
    """
    values, vectors = eigenvectors(gram)
    del gram  # where the caller does not hold it either, its memory is free for the result
    values = torch.where(values > noise * values[-1].clamp(min=0), values, 0.0) if len(values) else values
    vectors.mul_(torch.where(values > 0, values.clamp(min=1e-300) ** (-power / 2), 0.0))
    return values, vectors @ vectors.T
