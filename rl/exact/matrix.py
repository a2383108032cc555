"""Matrix games: the best plan against the worst distribution of a consistent set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog

from rl.exact.sets import ConsistentSet, Free, Rows

Array = NDArray[np.float64]
_MAX_CUTS = 1000


class MatrixSolution(NamedTuple):
    """A plan of ours, (A,), the target's worst answer to it, (B,), and the value against it."""

    plan: Array
    answer: Array
    value: float


def solve_matrix(payoff: ArrayLike, consistent: ConsistentSet | None = None, tolerance: float = 1e-9) -> MatrixSolution:
    r"""The plan with the best worst value, :math:`\max_x \min_{m \in U} x^T M m`.

    A pure plan whose worst answer leaves us no better reply is a saddle and ends the search. Otherwise a polytope is
    one linear programme, the dual of the inner minimum joined to the outer maximum: :math:`\max\, v + h \cdot w + k
    \cdot u` subject to :math:`v 1 + H^T w + K^T u \le M^T x`, :math:`u \ge 0`. Any other set is met by cutting planes:
    the programme over the worst answers found so far, until its value and the worst value of its plan agree.

    Args:
        payoff: M, what we get, (A, B).
        consistent: U; every distribution if None, and then the value is that of the game.
        tolerance: How far the value may be below the optimum; linear programmes are as exact as their solver.

    Returns:
        The plan, the target's worst answer to it and the value against that answer.

    Raises:
        ValueError: If the payoff is no matrix of finite numbers.

    Example:
        >>> from rl.exact.sets import TotalVariation
        >>> rock_paper_scissors = [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
        >>> round(solve_matrix(rock_paper_scissors, TotalVariation([0.5, 0.3, 0.2], 0.05)).value, 9)
        0.2

    Reference:
        Kelley (1960), "The cutting-plane method for solving convex programs".
    """
    M = np.asarray(payoff, dtype=np.float64)
    if M.ndim != 2 or not M.size or not np.isfinite(M).all():
        raise ValueError(
            f"the payoff has shape {M.shape}, but it must be a matrix (our actions, theirs) of finite numbers"
        )
    U = Free(M.shape[1]) if consistent is None else consistent
    answers = np.stack([U.worst(row) for row in M])
    worsts = (M * answers).sum(1)
    best = int(worsts.argmax())
    if (M @ answers[best]).max() <= worsts[best] + 1e-13:
        return MatrixSolution(np.eye(len(M))[best], answers[best], float(worsts[best]))
    if (rows := U.rows()) is not None:
        return _scored(M, _polytope_plan(M, rows), U)
    columns = list((M @ answers.T).T)
    for _ in range(_MAX_CUTS):
        plan, upper = maxmin(np.stack(columns, axis=1))
        solution = _scored(M, plan, U)
        if upper - solution.value <= tolerance:
            return solution
        columns.append(M @ solution.answer)
    raise RuntimeError(
        f"cutting planes left a gap of {upper - solution.value:.2g} after {_MAX_CUTS} cuts, above the tolerance "
        f"{tolerance:.2g}; raise the tolerance"
    )


def maxmin(payoff: Array) -> tuple[Array, float]:
    """The plan (A,) with the best worst value over the columns of (A, B), and the programme's value."""
    A, B = payoff.shape
    constraint = np.hstack([-payoff.T, np.ones((B, 1))])
    solution = linear_programme(np.append(np.zeros(A), 1.0), constraint, np.append(np.ones(A), 0.0)[None], [1.0], A)
    return _distribution(solution[:A]), float(solution[A])


def linear_programme(
    gain: Array,
    at_most_zero: Array | scipy.sparse.spmatrix,
    equal: Array | scipy.sparse.spmatrix,
    bound: ArrayLike,
    positive: int | NDArray[np.bool_],
) -> Array:
    """Maximise gain . z subject to at_most_zero z <= 0 and equal z = bound.

    Args:
        gain: (n,).
        at_most_zero: (m, n), dense or sparse.
        equal: (k, n), dense or sparse.
        bound: (k,).
        positive: How many of the first variables are at least 0, or which ones; the rest are free.

    Returns:
        A maximiser z, (n,).

    Raises:
        RuntimeError: If the solver finds none.
    """
    signed = np.arange(len(gain)) < positive if isinstance(positive, int) else positive
    result = linprog(
        -gain,
        A_ub=at_most_zero,
        b_ub=np.zeros(at_most_zero.shape[0]),
        A_eq=equal,
        b_eq=bound,
        bounds=np.column_stack([np.where(signed, 0, -np.inf), np.full(len(gain), np.inf)]),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0:
        raise RuntimeError(f"the linear programme of the game was not solved: {result.message}")
    solution: Array = result.x
    return solution


def _polytope_plan(M: Array, rows: Rows) -> Array:
    """The plan of the one linear programme; variables are x (A), v, the equalities' w and the inequalities' u."""
    (A, B), columns = M.shape, rows.columns
    target = np.zeros((columns, 1))
    target[:B] = 1
    payoff = np.zeros((columns, A))
    payoff[:B] = M.T
    constraint = np.hstack([-payoff, target, rows.equal.T, rows.least.T])
    gain = np.concatenate([np.zeros(A), [1.0], rows.equal_bound, rows.least_bound])
    signed = np.zeros(len(gain), dtype=bool)
    signed[:A] = True
    signed[len(gain) - len(rows.least_bound) :] = True
    simplex = (np.arange(len(gain)) < A).astype(np.float64)[None]
    return _distribution(linear_programme(gain, constraint, simplex, [1.0], signed)[:A])


def _scored(M: Array, plan: Array, U: ConsistentSet) -> MatrixSolution:
    """A plan with its worst answer and the value against it."""
    cost = plan @ M
    answer = U.worst(cost)
    return MatrixSolution(plan, answer, float(cost @ answer))


def _distribution(weights: Array) -> Array:
    """Weights without a solver's rounding below 0."""
    clipped: Array = weights.clip(min=0) / weights.clip(min=0).sum()
    return clipped
