r"""Shapley attribution as one fixed linear map: from the values of subsets of players to one value for each player.

Shapley values solve a weighted least squares problem: fit the values v(s) by an additive game, under the constraints
that the empty and the full subset are fitted exactly, with the Shapley kernel as weights::

    min  sum_s w(s) (v(s) - phi_0 - sum_{j in s} phi_j)^2     w(s) = 1 / C(p - 2, |s| - 1),   0 < |s| < p

As the weights do not depend on v, the solution is a matrix: phi = A v. Whatever is known about the values passes
through it, in particular every row of their influence functions, with all covariances between subsets.

**Sampled subsets.** Up to 10 or so players all 2^p subsets are valued. Above, the normal equations are estimated.
Subsets of size 1 and p - 1 carry the most weight each (w = 1) and are few, so they always enter with exactly that
weight. The sizes 2 ... p - 2 together weigh M = sum_k p (p - 1) / (k (p - k)); from them N subsets are drawn from the
kernel itself (size k with probability proportional to 1 / (k (p - k)), then uniformly), each with its complement. A
subset drawn c times gets the weight M c / N. Its expectation is w(s), so the matrix and the right-hand side of the
normal equations are unbiased and the estimate converges to the Shapley values; an additive game is recovered exactly
by any draw.
"""

import math

import numpy as np
from numpy.typing import NDArray

MAX_EXACT = 16  # 65 536 subsets, each a column of the map

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]


def subsets(p: int) -> Masks:
    """All subsets of p players, the empty one first and the full one last.

    Args:
        p: Number of players, from 1 to 16.

    Returns:
        Membership of every player in every subset, shape (2**p, p); row i is the binary code of i, lowest bit first.

    Raises:
        ValueError: If p is out of range.

    Example:
        >>> subsets(2).tolist()
        [[False, False], [True, False], [False, True], [True, True]]
    """
    if not 1 <= p <= MAX_EXACT:
        raise ValueError(
            f"{p} players cannot be enumerated: give from 1 to {MAX_EXACT}, group the columns or sample subsets"
        )
    codes = np.arange(2**p)
    return (codes[:, None] >> np.arange(p) & 1).astype(bool)


def sample_subsets(
    p: int, draws: int, rng: np.random.Generator, *, batches: int = 10
) -> tuple[Masks, NDArray[np.int64]]:
    """Draw subsets from the Shapley kernel, in pairs of a subset and its complement.

    The empty and the full subset, all single players and all leave-one-outs are always among them, with count 0: they
    enter :func:`shapley_map` with their exact weight, not with a sampled one. Below 4 players they are all there is.

    Args:
        p: Number of players, at least 2.
        draws: Pairs to draw, at least one for each batch; they are dealt to the batches in turn.
        rng: Source of randomness.
        batches: Independent batches for :func:`sampling_variance`, at least 5.

    Returns:
        The distinct subsets, shape (n, p), sorted by size and then by membership, and how often each batch drew each of
        them, shape (batches, n).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> masks, counts = sample_subsets(6, 40, np.random.default_rng(0))
        >>> masks[0].any(), masks[-1].all(), int(counts.sum())
        (np.False_, np.True_, 80)
    """
    if p < 2:
        raise ValueError(f"{p} player leaves nothing to sample: give at least 2")
    if batches < 5:
        raise ValueError(f"batches is {batches}, but a variance between batches needs at least 5")
    if draws < batches:
        raise ValueError(f"draws is {draws}, but every one of the {batches} batches needs at least one draw")
    sizes = np.arange(p + 1)
    forced = [np.tri(1, p, -1 - p, dtype=bool), np.eye(p, dtype=bool), ~np.eye(p, dtype=bool), np.ones((1, p), bool)]
    drawn = np.zeros((0, p), dtype=bool)
    if p >= 4:
        inner = sizes[2:-2]
        odds = 1 / (inner * (p - inner))
        size = rng.choice(inner, size=draws, p=odds / odds.sum())
        rank = rng.random((draws, p)).argsort(1).argsort(1)
        drawn = rank < size[:, None]
    batch = np.arange(len(drawn)) % batches
    every = np.concatenate([*forced, drawn, ~drawn])
    masks, where = np.unique(every, axis=0, return_inverse=True)
    counts = np.zeros((batches, len(masks)), dtype=np.int64)
    np.add.at(counts, (np.tile(batch, 2), where.reshape(-1)[len(every) - 2 * len(drawn) :]), 1)
    order = np.lexsort([*masks.T[::-1], masks.sum(1)])
    return masks[order], counts[:, order]


def shapley_map(masks: Masks, counts: NDArray[np.int64] | None = None) -> Floats:
    r"""The matrix A with phi = A v, the constrained weighted least squares solution in closed form.

    With u = v - v(empty), H = sum w z z^T, b = sum w z u and T = u(full):

    .. math:: \phi = H^{-1} \left(b - \mathbf 1 \frac{\mathbf 1^T H^{-1} b - T}{\mathbf 1^T H^{-1} \mathbf 1}\right),
        \qquad \phi_0 = v(\emptyset)

    Args:
        masks: Subsets in any order, shape (n, p): all 2**p of them, or those of :func:`sample_subsets`.
        counts: For sampled subsets how often each was drawn, shape (n,) (the sum over batches); not given for all.

    Returns:
        A, shape (p + 1, n): row 0 picks v(empty), row j gives player j. Rows 1 ... p sum to v(full) - v(empty).

    Raises:
        ValueError: If subsets are missing or repeated, or counts do not fit.

    Example:
        >>> game = [0.0, 1.0, 2.0, 5.0]  # v(empty), v({1}), v({2}), v({1, 2})
        >>> (shapley_map(subsets(2)) @ game).tolist()
        [0.0, 2.0, 3.0]

    Reference:
        Charnes, Golany, Keane and Rousseau (1988), "Extremal principle solutions of games in characteristic function
        form"; Williamson and Feng (2020), "Efficient nonparametric statistical inference on population feature
        importance using Shapley values", arXiv 2006.09481. The weight is per subset: 1 / C(p-2, |s|-1).
    """
    masks = np.asarray(masks, dtype=bool)
    n, p = masks.shape
    if len(np.unique(masks, axis=0)) != n:
        raise ValueError("a subset is listed twice: give every subset once, with its count")
    sizes = masks.sum(1)
    if not (sizes[sizes.argsort()[[0, -1]]] == [0, p]).all():
        raise ValueError("the empty and the full subset must be among the subsets: they are the two constraints")
    weights = _weights(masks, sizes, counts)
    empty, full = int(sizes.argmin()), int(sizes.argmax())

    inside: Floats = np.zeros((p, n))  # phi = inside @ u
    if p == 1:
        inside[0, full] = 1.0
    else:
        z = masks.astype(np.float64)
        weighted = z.T * weights
        ones_and_b = np.linalg.solve(weighted @ z, np.column_stack([np.ones(p), weighted]))
        ones, b = ones_and_b[:, 0], ones_and_b[:, 1:]
        missing = b.sum(0)
        missing[full] -= 1.0
        inside = b - np.outer(ones, missing) / ones.sum()
    inside[:, empty] = 0.0
    inside[:, empty] = -inside.sum(1)
    first = np.zeros((1, n))
    first[0, empty] = 1.0
    return np.concatenate([first, inside])


def sampling_variance(masks: Masks, counts: NDArray[np.int64], values: Floats) -> Floats:
    r"""Variance of Shapley values that comes from sampling subsets, the values of subsets taken as given.

    Every batch alone gives an estimate; the pooled estimate has the variance of their mean,
    :math:`\sum_b (\phi_b - \bar\phi)^2 / (L (L - 1))`. Small batches make it a little too large.

    Args:
        masks: Subsets of :func:`sample_subsets`, shape (n, p).
        counts: Their counts by batch, shape (L, n) with L at least 5.
        values: v of every subset, shape (n,).

    Returns:
        Variance of phi, shape (p + 1,), to be added to the variance from the rows; 0 for v(empty).

    Raises:
        ValueError: If there are fewer than 5 batches.

    Example:
        >>> masks, counts = sample_subsets(5, 20, np.random.default_rng(0))
        >>> bool(sampling_variance(masks, counts, masks @ np.arange(5.0)).max() < 1e-20)  # additive: no error at all
        True
    """
    batches = len(counts)
    if counts.ndim != 2 or batches < 5:
        raise ValueError(
            f"counts have the shape {counts.shape}, but a variance needs (batches, subsets), 5 batches or more"
        )
    estimates = np.stack([shapley_map(masks, count) @ values for count in counts])
    variance: Floats = estimates.var(0, ddof=1) / batches
    return variance


def _weights(masks: Masks, sizes: NDArray[np.int64], counts: NDArray[np.int64] | None) -> Floats:
    """Weight of every subset in the least squares problem; 0 for the empty and the full one, which are constraints."""
    n, p = masks.shape
    inner = (sizes > 0) & (sizes < p)
    if counts is None:
        if n != 2**p:
            raise ValueError(f"{n} of the {2**p} subsets of {p} players are given: give all, or counts of sampled ones")
        return np.array([1 / math.comb(p - 2, k - 1) if 0 < k < p else 0.0 for k in sizes.tolist()])
    counts = np.asarray(counts)
    if counts.shape != (n,) or counts.min() < 0:
        raise ValueError(f"counts have the shape {counts.shape}, but {n} subsets need one count of 0 or more each")
    always = inner & ((sizes == 1) | (sizes == p - 1))
    if always.sum() != (2 * p if p > 2 else p * (p - 1)):
        raise ValueError("sampled subsets must hold every single player and every leave-one-out: use sample_subsets")
    if p < 4:
        return np.where(always, 1.0, 0.0)
    middle = inner & ~always
    drawn = counts * middle
    if not drawn.sum():
        raise ValueError("no subset of 2 to p - 2 players was drawn, so the middle of the kernel is missing")
    mass = sum(p * (p - 1) / (k * (p - k)) for k in range(2, p - 1))
    weights: Floats = always + mass * drawn / drawn.sum()
    return weights
