"""Truncated singular value decomposition with an error certificate, for exclusive experts of any size.

Three routes, tried in this order until one is certified:

``krylov``
    Randomised block Lanczos bidiagonalisation in the working precision: a Gaussian sketch with oversampling, every new
    block orthogonalised by QR against all former ones. It needs a few passes over the matrix and converges much faster
    than power iteration on the flat spectra of task vectors.
``gram``
    Eigenvectors of the smaller Gram matrix in float64, summed over row blocks, so a tall embedding never needs more
    than one block and an ``n x n`` matrix beside its factors. Optimal unless the residual is below float64's own noise.
``svd``
    Full reduced SVD in float64.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from twinmerge.functional.eigen import eigenvectors

_OVERSAMPLING = 8
_MAX_BLOCKS = 8  # a fixed bound on passes over the matrix; slower convergence than this goes to the Gram route
_BLOCK_ELEMENTS = 2**22  # what a row block may hold: 32 MiB in float64
_ROUNDING = 16.0  # a relative residual below this many machine epsilons is rounding, not approximation


class LowRank(NamedTuple):
    r"""A rank-r approximation ``up @ down`` of an ``m x n`` matrix, as stored in an artefact and as a LoRA pair.

    The singular values are folded in half and half, :math:`up = U\sqrt\Sigma`, :math:`down = \sqrt\Sigma V^T`: both
    factors then have entries of the same size, which is what half precision storage and fine-tuning by gradient want.

    Attributes:
        up: Left factor, shape (m, r), orthogonal columns sorted by singular value.
        down: Right factor, shape (r, n), orthogonal rows.
        residual: Relative Frobenius error, ||D - up @ down|| / ||D||, in [0, 1].
        route: How it was found: "krylov", "gram", "svd", "zero" (a zero matrix) or "product" (from LoRA factors).
    """

    up: Tensor
    down: Tensor
    residual: float
    route: str

    @property
    def singular_values(self) -> Tensor:
        """The r singular values in float64, descending."""
        return self.down.double().square().sum(1)

    def dense(self) -> Tensor:
        """The approximation as a matrix of shape (m, n)."""
        return self.up @ self.down


def truncated_svd(matrix: Tensor, rank: int, *, tolerance: float = 0.01, seed: int = 0) -> LowRank:
    r"""Best rank-r approximation of a matrix, up to a small, certified excess.

    The Frobenius residual is :math:`\|D - D_r\|^2 = \|D\|^2 - \sum_{i \le r} \sigma_i^2` for any orthogonal
    projection, so it costs nothing; where the difference would cancel it is computed from the product instead. The work
    is done in float32 (float64 for a float64 matrix), scaled by a power of two when the entries are extreme.

    Args:
        matrix: D, shape (m, n), floating point.
        rank: r, between 1 and min(m, n).
        tolerance: Accepted excess of the residual over that of the best rank-r approximation, as a fraction of it,
            above 0. The route "krylov" stops when the extrapolated gain of further passes is below it; the other
            routes are optimal.
        seed: Seed of the Gaussian sketch, drawn on the CPU; the global generator is not touched.

    Returns:
        A :class:`LowRank` in float32 (float64 for a float64 matrix) on the matrix's device.

    Raises:
        ValueError: If the matrix is not a finite floating point matrix or the rank or tolerance is out of range.

    Example:
        >>> low = truncated_svd(torch.outer(torch.arange(1.0, 5), torch.ones(3)), rank=1)
        >>> low.up.shape, low.down.shape, low.residual < 1e-6
        (torch.Size([4, 1]), torch.Size([1, 3]), True)

    Reference:
        Halko, Martinsson and Tropp (2011), "Finding structure with randomness", arXiv 0909.4061, algorithm 5.1;
        Musco and Musco (2015), "Randomized block Krylov methods", arXiv 1504.05477, algorithm 2.
    """
    dtype, exponent = _working_form(matrix)
    if isinstance(rank, bool) or not 1 <= rank <= min(matrix.shape):
        raise ValueError(
            f"the rank is {rank}, but a matrix of shape {tuple(matrix.shape)} takes ranks from 1 to {min(matrix.shape)}"
        )
    if not tolerance > 0:
        raise ValueError(f"the tolerance is {tolerance}, but the accepted excess residual must be above 0, as in 0.01")
    rows, columns = matrix.shape
    if exponent is None:
        zeros = matrix.new_zeros((rows + columns, rank), dtype=dtype)
        return LowRank(zeros[:rows], zeros[rows:].T, 0.0, "zero")

    tall = matrix.detach() if rows >= columns else matrix.detach().T
    blocks = _Blocks(tall, 2.0**-exponent, dtype)
    total = blocks.squared_norm()
    left, right, residual, route = _factorize(blocks, rank, total, tolerance, seed)

    half = 2.0 ** (exponent // 2)
    root = torch.linalg.vector_norm(left, dim=0).sqrt()
    left = left.mul_(torch.where(root > 0, half / root, 0.0))
    right = right * (root * half)
    up, down = (left, right) if rows >= columns else (right, left)
    return LowRank(up.to(dtype).contiguous(), down.T.to(dtype).contiguous(), residual, route)


def spectrum(matrix: Tensor, limit: int | None = None) -> Tensor:
    """Singular values of a matrix, descending, for the choice of ranks.

    Args:
        matrix: D, shape (m, n), floating point.
        limit: How many leading values are wanted, between 1 and min(m, n); all when not given. A small limit costs a
            few passes over the matrix and gives lower bounds (:func:`truncated_svd`), all values cost its Gram matrix
            in float64.

    Returns:
        Singular values in float64, shape (min(m, n),) or (limit,). Values below 1e-8 of the largest are noise.

    Raises:
        ValueError: As :func:`truncated_svd`.

    Example:
        >>> spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0]))).tolist()
        [3.0, 2.0, 1.0]
    """
    if limit is not None:
        return truncated_svd(matrix, limit).singular_values
    _, exponent = _working_form(matrix)
    if exponent is None:
        return matrix.new_zeros(min(matrix.shape), dtype=torch.float64)
    tall = matrix.detach() if matrix.shape[0] >= matrix.shape[1] else matrix.detach().T
    squares: Tensor = torch.linalg.eigvalsh(_Blocks(tall, 2.0**-exponent, torch.float64).gram())
    return squares.clamp(min=0).sqrt().flip(0) * 2.0**exponent


def _working_form(matrix: Tensor) -> tuple[torch.dtype, int | None]:
    """Working dtype and the even power of two that brings extreme entries to about 1 (None for a zero matrix)."""
    if matrix.dim() != 2 or not matrix.is_floating_point() or matrix.numel() == 0:
        raise ValueError(
            f"a tensor of shape {tuple(matrix.shape)} and type {matrix.dtype} cannot be factorised: "
            "give a non-empty floating point matrix (flatten a convolution to (out, in * height * width))"
        )
    low, high = torch.aminmax(matrix.detach())
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        raise ValueError("the matrix contains NaN or infinite values, and only finite weights can be factorised")
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    if largest == 0:
        return dtype, None
    if 1e-8 < largest < 1e8:
        return dtype, 0
    bound = 126 if dtype == torch.float32 else 1022  # the scale itself must be a normal number
    exponent = max(-bound, min(bound, math.frexp(largest)[1]))
    return dtype, exponent - exponent % 2


class _Blocks:
    """Row blocks of a tall matrix, scaled and in the working precision, made one at a time when the matrix is large."""

    def __init__(self, tall: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.tall, self.scale, self.dtype = tall, scale, dtype
        self.shape = tall.shape
        self.height = max(1, _BLOCK_ELEMENTS // tall.shape[1])
        self.whole = self._upcast(tall) if tall.shape[0] <= self.height else None

    def _upcast(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.dtype)
        return rows if self.scale == 1.0 else rows * self.scale

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self.whole is not None:
            yield slice(None), self.whole
            return
        for start in range(0, self.shape[0], self.height):
            rows = slice(start, start + self.height)
            yield rows, self._upcast(self.tall[rows])

    def times(self, right: Tensor) -> Tensor:
        """D @ right, shape (m, k)."""
        result = right.new_empty((self.shape[0], right.shape[1]))
        for rows, block in self:
            torch.mm(block, right, out=result[rows])
        return result

    def transposed_times(self, left: Tensor) -> Tensor:
        """D^T @ left, shape (n, k)."""
        result = left.new_zeros((self.shape[1], left.shape[1]))
        for rows, block in self:
            result.addmm_(block.T, left[rows])
        return result

    def gram(self) -> Tensor:
        """D^T @ D, shape (n, n)."""
        result = self.tall.new_zeros((self.shape[1], self.shape[1]), dtype=self.dtype)
        for _, block in self:
            result.addmm_(block.T, block)
        return result

    def squared_norm(self) -> float:
        """||D||^2."""
        return math.fsum(_squared_norm(block) for _, block in self)

    def squared_error(self, left: Tensor, right: Tensor) -> float:
        """||D - left @ right^T||^2 by subtraction."""
        return math.fsum(_squared_norm(torch.addmm(block, left[rows], right.T, alpha=-1)) for rows, block in self)


def _squared_norm(matrix: Tensor) -> float:
    """Sum of squares: along the contiguous dimension in the matrix's precision, and over the other in float64."""
    along = 1 if matrix.stride(1) == 1 else 0
    return float(torch.linalg.vector_norm(matrix, dim=along).double().square().sum())


def _factorize(
    blocks: _Blocks, rank: int, total: float, tolerance: float, seed: int
) -> tuple[Tensor, Tensor, float, str]:
    """Left factor with the singular values (m, r), orthonormal right factor (n, r), relative residual and route."""
    rounding = _ROUNDING * torch.finfo(blocks.dtype).eps
    found = _krylov(blocks, rank, total, tolerance, seed)
    if found is not None:
        left, right, certified = found
        residual = _residual(blocks, left, right, total)
        if certified or residual <= rounding:
            return left, right, residual, "krylov"

    exact = blocks if blocks.dtype == torch.float64 else _Blocks(blocks.tall, blocks.scale, torch.float64)
    total = exact.squared_norm()
    right = eigenvectors(exact.gram(), rank)[1].flip(1)
    left = exact.times(right)
    residual = _residual(exact, left, right, total)
    # Eigenvalues of the Gram matrix carry an error of about eps * total, so residuals above 1e-6 are optimal.
    if residual > 1e-6 or residual <= rounding:
        return left, right, residual, "gram"

    U, S, Vh = torch.linalg.svd(torch.cat([block for _, block in exact]), full_matrices=False)
    left, right = U[:, :rank] * S[:rank], Vh[:rank].T
    return left, right, _residual(exact, left, right, total), "svd"


def _residual(blocks: _Blocks, left: Tensor, right: Tensor, total: float) -> float:
    """Relative residual of the projection D V V^T = left V^T, from the certificate unless it would cancel."""
    rest = total - _squared_norm(left)
    if rest < 1e4 * torch.finfo(blocks.dtype).eps * total:
        rest = blocks.squared_error(left, right)
    return min(1.0, math.sqrt(rest / total))


def _krylov(
    blocks: _Blocks, rank: int, total: float, tolerance: float, seed: int
) -> tuple[Tensor, Tensor, bool] | None:
    r"""Block Lanczos: orthonormal blocks Q_1, Q_2, ... of the space spanned by (D^T D)^j D^T \Omega, and W = D Q.

    The energy E_s = sum of the r largest eigenvalues of W^T W grows with every block towards the optimum. Its
    growth shrinks by a factor at every block; the sum of that geometric series, doubled because the factor drifts
    upwards on flat spectra, is what is still missing. The iteration stops when it fits into the tolerance.

    Returns:
        Left factor, right factor and whether the tolerance is certified; None when the matrix is too small for the
        method to pay.
    """
    rows, columns = blocks.shape
    width = rank + _OVERSAMPLING
    most = min(_MAX_BLOCKS, (2 * columns) // (3 * width))
    if most < 3:
        return None
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.randn((rows, width), generator=generator, dtype=blocks.dtype).to(blocks.tall.device)
    Q = torch.linalg.qr(blocks.transposed_times(sketch))[0]
    W = blocks.times(Q)
    T = W.T @ W
    noise = 4 * torch.finfo(blocks.dtype).eps * total  # error of an energy computed from T
    room_per_rest = (1 + tolerance) ** 2 - 1
    energies: list[float] = []
    certified = False
    for count in range(1, most + 1):
        values, vectors = torch.linalg.eigh(T)
        energies.append(float(values[-rank:].double().sum()))
        rest = total - energies[-1]
        if room_per_rest * rest <= noise:  # nothing more can be certified in this precision
            break
        if count >= 2:
            growth = max(0.0, energies[-1] - energies[-2])
            former = energies[-2] - energies[-3] if count >= 3 else 2 * growth
            missing = 2 * growth**2 / (former - growth) if former > growth else (0.0 if growth == 0 else math.inf)
            if missing + noise <= room_per_rest * (rest - missing):
                certified = True
                break
        if count == most:
            break
        block = blocks.transposed_times(W[:, -width:])
        for _ in range(2):  # the second round removes what rounding left of the former blocks
            block = torch.linalg.qr(block - Q @ (Q.T @ block))[0]
        image = blocks.times(block)
        cross = W.T @ image
        T = torch.cat([torch.cat([T, cross], 1), torch.cat([cross.T, image.T @ image], 1)])
        Q, W = torch.cat([Q, block], 1), torch.cat([W, image], 1)
    top = vectors[:, -rank:].flip(1)
    return W @ top, Q @ top, certified
