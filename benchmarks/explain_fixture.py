"""The estimators against exact enumeration: a discrete population of three binary features, for three losses.

The whole population enters as weighted rows and every nuisance is a cell mean or a ratio of cell probabilities, so all
corrections must vanish and every term must equal its definition, which is computed by enumeration alone.
``max_abs_error`` is the largest difference over all terms of the 0-1, Brier and log loss. Takes a second.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import write_results
from explain.functional import (
    aggregate_terms,
    covariate_rows,
    expectation_rows,
    loss_table,
    mean,
    outcome_denominator_rows,
    outcome_rows,
    probability_bins,
    risk_coefficient,
    risk_rows,
    shapley_map,
    subsets,
)
from explain.functional.rows import Rows

LOSSES = ("zero_one", "brier", "log")
CELLS = np.array(list(itertools.product((0, 1), repeat=3)))  # w, z1, z2
W, Z1, Z2 = CELLS.T
RISK = (0.11 + 0.2 * W + 0.3 * Z1 + 0.25 * Z2, 0.2 + 0.1 * W + 0.1 * Z1 + 0.45 * Z2)
MODEL = 0.15 + 0.15 * W + 0.35 * Z1 + 0.2 * Z2
PLAYERS = ((), (1,), (2,), (1, 2))  # columns of z in every subset, in the order of `subsets(2)`


def bernoulli(p: Any, outcome: Any) -> Any:
    """Probability of an outcome of 0 or 1."""
    return np.where(np.asarray(outcome) == 1, p, 1 - np.asarray(p))


def p_w(domain: int) -> Any:
    """P(w) of every cell."""
    return bernoulli((0.5, 0.7)[domain], W)


def p_z(domain: int) -> Any:
    """P(z | w) of every cell."""
    z1 = (0.3 + 0.2 * W, 0.6 + 0.1 * W)[domain]
    z2 = (0.4 + 0.2 * Z1, 0.4 + 0.2 * Z1 + 0.1 * W)[domain]
    return bernoulli(z1, Z1) * bernoulli(z2, Z2)


def cell_sums(values: Any, columns: Sequence[int], *also: Any) -> Any:
    """For every cell the sum over the cells that agree with it in some columns (and further keys)."""
    keys = np.column_stack([CELLS[:, list(columns)], *also])
    agree = (keys[:, None] == keys[None]).all(2)
    return agree @ values


def definitions(kind: str, n_bins: int = 2) -> dict[str, float]:
    """Every term from its definition, by enumeration."""
    table = loss_table(kind, MODEL, 2)  # type: ignore[arg-type]
    mu = [(table * np.stack([1 - risk, risk], 1)).sum(1) for risk in RISK]
    joint = {(a, b): p_w(a) * p_z(b) for a in (0, 1) for b in (0, 1)}
    e000, e100, e110, e111 = joint[0, 0] @ mu[0], joint[1, 0] @ mu[0], joint[1, 1] @ mu[0], joint[1, 1] @ mu[1]
    found = {"baseline": e100 - e000, "covariate": e110 - e100, "outcome": e111 - e110}

    def shifted(s: Sequence[int]) -> Any:
        """E[loss | w] when z_s has the target's and the rest the source's distribution."""
        partial = cell_sums(p_z(1), [0, *s]) * p_z(0) / cell_sums(p_z(0), [0, *s])
        return cell_sums(partial * mu[0], [0])

    weight = joint[1, 1]
    whole = weight @ (shifted(()) - shifted((1, 2))) ** 2
    v_z = [1 - weight @ (shifted(s) - shifted((1, 2))) ** 2 / whole for s in PLAYERS]
    bins = np.minimum((RISK[0] * n_bins).astype(int), n_bins - 1)
    shift = weight @ (mu[1] - mu[0]) ** 2
    v_y = []
    for s in PLAYERS[:3]:
        p_s = cell_sums(weight * RISK[1], [0, *s], bins) / cell_sums(weight, [0, *s], bins)
        mu_s = (table * np.stack([1 - p_s, p_s], 1)).sum(1)
        v_y.append(1 - weight @ (mu[1] - mu_s) ** 2 / shift)
    v_y.append(1.0)
    return found | _named("covariate", v_z, whole) | _named("outcome", v_y, shift)


def _named(kind: str, v: Sequence[float], size: float) -> dict[str, float]:
    """Values, their Shapley shares by averaging over both orders, and the size of the shift."""
    empty, one, two, both = v
    shares = (empty, (one - empty + both - two) / 2, (two - empty + both - one) / 2)
    names = ("none", "z1", "z2")
    found = {f"{kind} size": size}
    found |= {f"{kind} v({name})": value for name, value in zip(names, v, strict=False)}
    return found | {f"{kind} share {name}": share for name, share in zip(names, shares, strict=True)}


def estimates(kind: str, n_bins: int = 2) -> dict[str, float]:
    """Every term from the estimators' influence values, averaged over the weighted population."""
    X = np.repeat(CELLS, 2, axis=0)  # every cell with both labels
    cell, y = np.repeat(np.arange(8), 2), np.tile([0, 1], 8)
    weights = Rows(*(p_w(d)[cell] * p_z(d)[cell] * bernoulli(RISK[d][cell], y) for d in (0, 1)))
    one_table = loss_table(kind, MODEL[cell], 2)  # type: ignore[arg-type]
    one_loss = one_table[np.arange(16), y]
    loss = Rows(one_loss, one_loss)

    def given(columns: Sequence[int], domain: int, *also: Any) -> Callable[[Any], Any]:
        """Cell means over a domain: the saturated regression on columns, at every row."""
        keys = np.column_stack([X[:, list(columns)], *also])
        mass = (keys[:, None] == keys[None]).all(2) * weights[domain]
        return lambda values: (mass / mass.sum(1, keepdims=True)) @ values

    def ratio(columns: Sequence[int]) -> Any:
        keys = X[:, list(columns)]
        same = (keys[:, None] == keys[None]).all(2)
        return same @ weights.target / (same @ weights.source)

    def twice(values: Any) -> Rows:
        return Rows(values, values)

    everything = (0, 1, 2)
    p = [given(everything, d)(np.stack([1 - y, y], 1)) for d in (0, 1)]
    mu = [(one_table * part).sum(1) for part in p]
    mu_w, mu_xw = given((0,), 0)(loss.source), given((0,), 1)(mu[0])
    pi = ratio(everything)
    rows = expectation_rows(loss, twice(mu[0]), twice(mu_w), pi, ratio((0,)))
    found = dict(zip(("baseline", "covariate", "outcome"), aggregate_terms(mean(rows, weights)).tolist(), strict=True))

    num_z, num_y = np.zeros(4), np.zeros(4)
    bins = probability_bins(n_bins)
    risk = bins(p[0][:, 1])
    for index, s in enumerate(PLAYERS[:3]):
        mu_s = given((0, *s), 0)(loss.source)
        mu_sw = given((0,), 1)(mu_s)
        arguments = twice(mu_s), twice(mu_sw), ratio((0, *s)), twice(mu[0]), twice(mu_xw), pi
        num_z[index] = mean(covariate_rows(loss, *arguments), weights)
        within = given((0, *s), 1, risk)
        p_s = within(np.stack([1 - y, y], 1))
        xi = mu[1] - (one_table * p_s).sum(1)
        gain = within(xi[:, None] * one_table)
        target = outcome_rows(one_table, y, mu[1], p_s, gain)
        slope = np.sin(np.arange(32.0)).reshape(16, 2)  # whatever it is, the correction must vanish
        slope = np.repeat(slope[::2], 2, axis=0)
        coefficient = risk_coefficient(one_table, mu[1], p[1], p_s, slope, gain, slope)
        source = risk_rows(pi, coefficient, y - p[0][:, 1])
        num_y[index] = mean(Rows(source, target), weights)
    size_y = float(mean(outcome_denominator_rows(loss, twice(mu[0]), twice(mu[1]), pi), weights))
    for kind_name, numerators, size in (("covariate", num_z, num_z[0]), ("outcome", num_y, size_y)):
        v = 1 - numerators / size
        found |= {f"{kind_name} size": float(size)}
        found |= {f"{kind_name} v({name})": float(v[i]) for i, name in enumerate(("none", "z1", "z2"))}
        shares = shapley_map(subsets(2)) @ v
        found |= {f"{kind_name} share {name}": float(shares[i]) for i, name in enumerate(("none", "z1", "z2"))}
    return found


def main() -> None:
    """Compare, print and write the figures."""
    rows, worst = [], 0.0
    for kind in LOSSES:
        exact, found = definitions(kind), estimates(kind)
        assert exact.keys() == found.keys()
        for term, value in exact.items():
            error = abs(found[term] - value)
            worst = max(worst, error)
            rows.append({"loss": kind, "term": term, "exact": float(value), "abs_error": float(error)})
            print(f"{kind:9} {term:22} {value:10.6f}  {error:.1e}")
    print(write_results("explain_fixture", {"max_abs_error": worst}, {"terms": rows}, 1))


if __name__ == "__main__":
    main()
