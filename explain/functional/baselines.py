"""What else is used to name the variables behind a performance gap: the six methods that the paper compares with.

None of them needs more than two samples, and none has an interval for what the decomposition estimates. They rank
variables of a covariate shift (:func:`mean_change`, :func:`oaxaca_blinder`, :func:`wu_shift`) or of an outcome shift
(:func:`oaxaca_blinder`, :func:`parametric_change`, :func:`parametric_acc`, :func:`random_forest_acc`). Larger absolute
values are more important. The list and the settings are those of Singh et al. (2024), arXiv 2402.14254, section 5.2.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.functional.shapley import shapley_map, subsets

Floats = NDArray[np.float64]


class OaxacaBlinder(NamedTuple):
    """The two halves of an Oaxaca-Blinder decomposition, by variable.

    Attributes:
        covariate: Coefficient in the source times the difference of means, shape (p,): the "explained" part.
        outcome: Mean in the target times the difference of coefficients, shape (p,): the "unexplained" part.
        intercept: Difference of the intercepts, which belongs to no variable.
    """

    covariate: Floats
    outcome: Floats
    intercept: float


def mean_change(source: Floats, target: Floats) -> Floats:
    """MeanChange: one minus the p value of Welch's t test of each variable's mean, target against source.

    Args:
        source: Shape (n_0, p).
        target: Shape (n_1, p).

    Returns:
        Values in [0, 1], shape (p,).

    Example:
        >>> float(mean_change(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))[0])
        0.0
    """
    from scipy.stats import ttest_ind

    return np.asarray(1 - ttest_ind(target, source, equal_var=False).pvalue, dtype=np.float64)


def oaxaca_blinder(source: Floats, source_loss: Floats, target: Floats, target_loss: Floats) -> OaxacaBlinder:
    r"""Oaxaca-Blinder: the difference of mean losses under a linear model of the loss in each domain.

    .. math:: \bar\ell_1 - \bar\ell_0 = \sum_j \beta_{0j}(\bar x_{1j} - \bar x_{0j})
        + \sum_j \bar x_{1j}(\beta_{1j} - \beta_{0j}) + (\alpha_1 - \alpha_0)

    The paper gives it the log odds of the expected 0-1 loss, which only a simulation knows.

    Args:
        source: Features, shape (n_0, p).
        source_loss: Loss of every row, or its expectation on a scale where it is linear, shape (n_0,).
        target: Features, shape (n_1, p).
        target_loss: Shape (n_1,).

    Returns:
        An :class:`OaxacaBlinder`; its parts and the intercept sum to the difference of mean losses exactly.

    Example:
        >>> x = np.arange(4.0)[:, None]
        >>> oaxaca_blinder(x, 2 * x[:, 0], x + 1, 2 * (x[:, 0] + 1)).covariate.round(6)
        array([2.])

    Reference:
        Oaxaca (1973), "Male-female wage differentials in urban labor markets"; Blinder (1973), "Wage discrimination:
        reduced form and structural estimates".
    """
    (alpha_0, beta_0), (alpha_1, beta_1) = _least_squares(source, source_loss), _least_squares(target, target_loss)
    moved = target.mean(0) - source.mean(0)
    return OaxacaBlinder(beta_0 * moved, target.mean(0) * (beta_1 - beta_0), float(alpha_1 - alpha_0))


def wu_shift(
    source_baseline: Floats,
    source: Floats,
    source_loss: Floats,
    target_baseline: Floats,
    target: Floats,
    regressor: Any = None,
) -> Floats:
    r"""WuShift: Shapley values of the change in mean loss when the variables of a subset shift given the baseline.

    The value of a subset is a difference of means and not a share of explained variation,

    .. math:: v(s) = E_{1s0}[\ell] - E_{100}[\ell], \qquad
        E_{1s0}[\ell] = E_1\left[\,E_0[\ell \mid W, Z_s]\,\right],

    estimated by a regression of the source's losses on (w, z_s), averaged over the target's rows.

    Args:
        source_baseline: W, shape (n_0, m).
        source: Z, shape (n_0, p), p up to 16.
        source_loss: Loss of every row, shape (n_0,).
        target_baseline: Shape (n_1, m).
        target: Shape (n_1, p).
        regressor: A scikit-learn regressor; histogram boosting when not given.

    Returns:
        |phi| / sum |phi| as the paper shows it, shape (p,).

    Reference:
        Wu, Wu and Zou (2021), "Explaining medical AI performance disparities across sites with confounder Shapley value
        analysis", arXiv 2111.08168.
    """
    from sklearn.base import clone
    from sklearn.ensemble import HistGradientBoostingRegressor

    regressor = HistGradientBoostingRegressor(random_state=0) if regressor is None else regressor
    masks = subsets(source.shape[1])
    values = np.empty(len(masks))
    for row, mask in enumerate(masks):
        here = np.column_stack([source_baseline, source[:, mask]])
        there = np.column_stack([target_baseline, target[:, mask]])
        values[row] = clone(regressor).fit(here, source_loss).predict(there).mean()
    phi = np.abs(shapley_map(masks) @ (values - values[0]))[1:]
    shares: Floats = phi / phi.sum()
    return shares


def parametric_change(source: Floats, source_label: Floats, target: Floats, target_label: Floats) -> Floats:
    """ParametricChange: the change of each coefficient in a logistic regression of the label with domain interactions.

    Args:
        source: Features, shape (n_0, p).
        source_label: 0 or 1, shape (n_0,).
        target: Features, shape (n_1, p).
        target_label: Shape (n_1,).

    Returns:
        Coefficients of domain times variable, shape (p,), positive where the variable counts more in the target.
    """
    return _interactions(source, source_label, target, target_label)


def parametric_acc(source: Floats, source_loss: Floats, target: Floats, target_loss: Floats) -> Floats:
    """ParametricAcc: as :func:`parametric_change`, for the 0-1 loss in the place of the label.

    Args:
        source: Features, shape (n_0, p).
        source_loss: 0 or 1, shape (n_0,).
        target: Features, shape (n_1, p).
        target_loss: Shape (n_1,).

    Returns:
        Coefficients of domain times variable, shape (p,).
    """
    return _interactions(source, source_loss, target, target_loss)


def random_forest_acc(
    source: Floats, source_loss: Floats, target: Floats, target_loss: Floats, *, seed: int = 0
) -> Floats:
    """RandomForestAcc: impurity importances in a forest of 100 full trees for the loss, given domain and features.

    Args:
        source: Features, shape (n_0, p).
        source_loss: Loss of every row, shape (n_0,).
        target: Features, shape (n_1, p).
        target_loss: Shape (n_1,).
        seed: Of the forest.

    Returns:
        Importances, shape (p,); with the domain's own they sum to 1.

    Reference:
        Breiman (2001), "Random forests".
    """
    from sklearn.ensemble import RandomForestRegressor

    features = np.column_stack([_domain(source, target), np.concatenate([source, target])])
    forest = RandomForestRegressor(random_state=seed).fit(features, np.concatenate([source_loss, target_loss]))
    return np.asarray(forest.feature_importances_[1:], dtype=np.float64)


def _domain(source: Floats, target: Floats) -> Floats:
    return np.repeat([0.0, 1.0], [len(source), len(target)])


def _least_squares(features: Floats, outcome: Floats) -> tuple[float, Floats]:
    design = np.column_stack([np.ones(len(features)), features])
    solution: Floats = np.asarray(np.linalg.lstsq(design, outcome, rcond=None)[0], dtype=np.float64)
    return float(solution[0]), solution[1:]


def _interactions(source: Floats, source_outcome: Floats, target: Floats, target_outcome: Floats) -> Floats:
    """Coefficients of domain times variable in an unpenalised logistic regression, on standardised columns and back."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([source, target])
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)
    domain = _domain(source, target)[:, None]
    model = LogisticRegression(C=np.inf, max_iter=1000)
    model.fit(np.column_stack([domain, scaled, domain * scaled]), np.concatenate([source_outcome, target_outcome]))
    return np.asarray(model.coef_[0, -source.shape[1] :] / np.where(spread > 0, spread, 1.0), dtype=np.float64)
