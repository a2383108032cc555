r"""Value functions: which share of a conditional shift a subset of variables explains, as a ratio of two means.

For the covariate shift and the outcome shift alike,

.. math:: v(s) = 1 - \frac{num(s)}{den}

with den the mean square of the whole shift, num(s) the mean square of what remains of it when only the subset s has
shifted. This file has the influence values of num and den. Paper: Singh et al. (2024), arXiv 2402.14254.
"""

import numpy as np
from numpy.typing import NDArray

from explain.functional.rows import Floats, Rows, quantile

CAP_QUANTILE = 0.99


def covariate_rows(
    loss: Rows, mu_s: Rows, mu_sw: Rows, ratio_s: Floats, mu_x: Rows, mu_xw: Rows, ratio_x: Floats
) -> Rows:
    r"""Influence values of the numerator of v_Z(s); for the empty subset they are those of the denominator.

    With :math:`d = \mu_{\cdot s0}(w) - \mu_{\cdot10}(w)`:

    .. math::
        P_0\,2d\,[(\ell-\mu_{\cdot0s})\pi_s - (\ell-\mu_{\cdot\cdot0})\pi]
        + P_1\,\{d^2 + 2d\,[(\mu_{\cdot0s}-\mu_{\cdot s0}) - (\mu_{\cdot\cdot0}-\mu_{\cdot10})]\}

    Args:
        loss: Loss of every row, shape (n_0,) and (n_1,).
        mu_s: Expected source loss given (w, z_s), E[loss | w, z_s, source].
        mu_sw: Its mean over the target's z_s given w, the expected loss when only z_s has shifted.
        ratio_s: Density ratio of (w, z_s) at the source rows.
        mu_x: Expected source loss given all features.
        mu_xw: Its mean over the target's z given w, the expected loss when all of z has shifted.
        ratio_x: Density ratio of all features at the source rows.

    Returns:
        Influence values, shape (n_0,) and (n_1,).

    Reference:
        Equations (21) and (28).
    """
    left = Rows(mu_sw.source - mu_xw.source, mu_sw.target - mu_xw.target)
    source = 2 * left.source * ((loss.source - mu_s.source) * ratio_s - (loss.source - mu_x.source) * ratio_x)
    inner = (mu_s.target - mu_sw.target) - (mu_x.target - mu_xw.target)
    return Rows(source, left.target**2 + 2 * left.target * inner)


def outcome_denominator_rows(loss: Rows, mu_0: Rows, mu_1: Rows, ratio_x: Floats) -> Rows:
    r"""Influence values of the denominator of v_Y, the mean square of the outcome shift in the target.

    .. math:: P_1[(\ell-\mu_0)^2 - (\ell-\mu_1)^2] - 2 P_0[(\mu_1-\mu_0)(\ell-\mu_0)\,\pi]

    Args:
        loss: Loss of every row, shape (n_0,) and (n_1,).
        mu_0: Expected loss given all features under the source's outcome distribution.
        mu_1: The same under the target's.
        ratio_x: Density ratio of all features at the source rows.

    Returns:
        Influence values, shape (n_0,) and (n_1,).

    Reference:
        Equation (7), rewritten as a difference of squared errors.
    """
    source = -2 * (mu_1.source - mu_0.source) * (loss.source - mu_0.source) * ratio_x
    return Rows(source, (loss.target - mu_0.target) ** 2 - (loss.target - mu_1.target) ** 2)


def outcome_rows(
    table: Floats, labels: NDArray[np.int64], mu_1: Floats, p_s: Floats, gain: Floats | None = None
) -> Floats:
    r"""Influence values of the numerator of v_Y(s) at the target rows, for finitely many outcomes.

    With A = (w, z_s, source risk), :math:`\mu_s = \sum_y \ell(x,y)\,p_s(y|A)`, :math:`\xi = \mu_1 - \mu_s` and
    :math:`g(A,y) = E_1[\xi\,\ell(X,y)\,|\,A]`:

    .. math:: P_1\{(\ell-\mu_s)^2 - (\ell-\mu_1)^2 - 2\,[g(A,Y) - \sum_y g(A,y)\,p_s(y|A)]\}

    The bracket replaces the paper's average over all pairs of rows: integrating its phantom rows against their density
    ratio is an expectation given A, and a regression on A estimates it without ratio, phantoms or calls of the model.

    Args:
        table: Loss of the target rows for every label, shape (n_1, C).
        labels: Codes of their labels, shape (n_1,).
        mu_1: Expected loss given all features under the target's outcome distribution, shape (n_1,).
        p_s: Probability of every label given A in the target, shape (n_1, C).
        gain: g, shape (n_1, C), up to a constant in y; not given where it is constant: for two classes with losses that
            differ by the same amount everywhere, as the 0-1 loss.

    Returns:
        Influence values, shape (n_1,).

    Reference:
        Equation (6), with the V-statistic as a nested regression.
    """
    rows = np.arange(len(labels))
    loss = table[rows, labels]
    mu_s = (table * p_s).sum(1)
    values: Floats = (loss - mu_s) ** 2 - (loss - mu_1) ** 2
    if gain is not None:
        values = values - 2 * (gain[rows, labels] - (gain * p_s).sum(1))
    return values


def risk_coefficient(
    table: Floats,
    mu_1: Floats,
    p_1: Floats,
    p_s: Floats,
    slope: Floats,
    gain: Floats | None = None,
    gain_slope: Floats | None = None,
) -> Floats:
    r"""How the numerator of v_Y(s) answers to a change of the source risk q that A = (w, z_s, q) conditions on.

    The source risk is itself estimated. An error h(x) of it moves the numerator by E_1[c(X) h(X)] with

    .. math::
        c = -2\,\{\sum_y (\xi\,\ell_y - g_y)\,\partial_q p_s(y|A) + \sum_y \partial_q g_y\,(p_1(y) - p_s(y|A))\}

    so its first-order effect is removed, and enters the interval, through the source rows
    :math:`P_0[\pi\,c\,(1[Y = k] - p_0(k|X))]`, see :func:`risk_rows`. For the 0-1 loss of two classes
    :math:`c = -2\,\xi\,\delta\,\partial_q p_s`.

    Args:
        table: Loss of the source rows for every label, shape (n_0, C).
        mu_1: Expected loss given all features under the target's outcome distribution, at the source rows.
        p_1: Probability of every label given all features in the target, at the source rows, shape (n_0, C).
        p_s: Probability of every label given A in the target, at the source rows, shape (n_0, C).
        slope: Derivative of p_s by q, shape (n_0, C).
        gain: g of :func:`outcome_rows` at the source rows, where it is used.
        gain_slope: Its derivative by q.

    Returns:
        c, shape (n_0,).

    Reference:
        Not in the paper, which takes the binned risk as known. Derivative of a functional of a regression on an
        estimated regressor, as in Hahn and Ridder (2013), "Asymptotic variance of semiparametric estimators with
        generated regressors".
    """
    xi = mu_1 - (table * p_s).sum(1)
    weight = xi[:, None] * table
    coefficient = (weight * slope).sum(1)
    if gain is not None and gain_slope is not None:
        coefficient = coefficient + (gain_slope * (p_1 - p_s)).sum(1) - (gain * slope).sum(1)
    return np.asarray(-2 * coefficient)


def risk_rows(ratio_x: Floats, coefficient: Floats, residual: Floats, weights: Floats | None = None) -> Floats:
    r"""Influence values at the source rows that correct a numerator of v_Y for the estimated source risk.

    A few source rows far out in the target can carry most of its variance, so :math:`\pi c` is cut off at the 99 %
    quantile of its magnitude (from 100 rows on).

    Args:
        ratio_x: Density ratio of all features at the source rows, shape (n_0,).
        coefficient: c of :func:`risk_coefficient`, shape (n_0,).
        residual: Outcome minus its estimated source risk, held out, shape (n_0,).
        weights: Weights of the rows, for the quantile; equal when not given.

    Returns:
        :math:`\pi\,c\,(Y - p_0)`, shape (n_0,).
    """
    weight = ratio_x * coefficient
    cap = quantile(np.abs(weight), CAP_QUANTILE, weights)  # the largest below 100 rows
    return np.asarray(np.clip(weight, -cap, cap) * residual)


def loss_level_rows(loss: Floats, mu_1: Floats, mu_s: Floats) -> Floats:
    r"""Influence values of the numerator of v_Y(s) at the target rows when only one loss per row is known.

    An extension for outcomes of any kind: the partial shift replaces E[loss | x] itself, :math:`\mu_s = E_1[\ell|A]`
    with A = (w, z_s, source's expected loss).

    .. math:: P_1[(\ell-\mu_s)^2 - (\ell-\mu_1)^2]

    Its coefficient of :func:`risk_rows` is :math:`-2(\mu_1-\mu_s)\,\partial_q\mu_s`.

    Args:
        loss: Loss of the target rows, shape (n_1,).
        mu_1: Expected loss given all features in the target.
        mu_s: Expected loss given A in the target.

    Returns:
        Influence values, shape (n_1,).
    """
    return (loss - mu_s) ** 2 - (loss - mu_1) ** 2


def curvature(estimates: Floats, weights: Floats | None = None) -> float:
    r"""Second-order bias of a debiased mean square: what it misses as the function that is squared is estimated.

    A one-step estimate of :math:`E_1[d(X)^2]` with d replaced by an estimate has the bias
    :math:`-E_1[(\hat d - d)^2]`, next to products with errors of density ratios. Its variance part is estimated by the
    delete-a-group jackknife, from the estimates of the K folds:

    .. math:: E_1\Big[\sum_k (\hat d_k(X) - \bar d(X))^2\Big]

    Args:
        estimates: The estimate from the training rows of every fold, at all target rows, shape (K, n_1).
        weights: Weights of the rows; equal when not given.

    Returns:
        What to add to the mean square; 0 or more.

    Reference:
        Not in the paper. The jackknife: Shao and Wu (1989), "A general theory for jackknife variance estimation".
    """
    return float(np.average(((estimates - estimates.mean(0)) ** 2).sum(0), weights=weights))
