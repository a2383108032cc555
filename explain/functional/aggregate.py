r"""The three aggregate terms: how much of a performance gap each factor of the joint distribution carries.

With :math:`E_{abc}` the expectation of the loss under :math:`p_a(w)\,p_b(z|w)\,p_c(y|w,z)` (0 source, 1 target),
the gap telescopes:

    baseline  :math:`\Lambda_W = E_{100} - E_{000}`
    covariate :math:`\Lambda_Z = E_{110} - E_{100}`
    outcome   :math:`\Lambda_Y = E_{111} - E_{110}`
"""

import numpy as np

from explain.functional.rows import Floats, Rows, stack

AGGREGATE_TERMS = ("baseline", "covariate", "outcome")


def shifted_rows(loss: Floats, mu: Rows, ratio: Floats) -> Rows:
    r"""Influence values of the expected loss when the distribution of some features is the target's.

    .. math:: P_0[(\ell-\mu)\,\pi] + P_1\,\mu

    Right to first order when either the regression on these features or their density ratio is.

    Args:
        loss: Loss of the source rows, shape (n_0,).
        mu: Expected source loss given the features, at the rows of both domains.
        ratio: Density ratio of the features at the source rows, shape (n_0,).

    Returns:
        Influence values, shape (n_0,) and (n_1,).
    """
    return Rows((loss - mu.source) * ratio, mu.target)


def expectation_rows(loss: Rows, mu_x: Rows, mu_w: Rows, ratio_x: Floats, ratio_w: Floats) -> Rows:
    r"""Uncentred influence values of the expected losses E_000, E_100, E_110 and E_111, by one-step correction.

    .. math::
        \hat E_{100} = P_0[(\ell-\mu_{\cdot00})\,\pi_{100}] + P_1\,\mu_{\cdot00}, \qquad
        \hat E_{110} = P_0[(\ell-\mu_{\cdot\cdot0})\,\pi_{110}] + P_1\,\mu_{\cdot\cdot0}

    Each is right to first order when either its regression or its density ratio is.

    Args:
        loss: Loss of every row, shape (n_0,) and (n_1,).
        mu_x: Expected source loss given all features, E[loss | w, z, source].
        mu_w: Expected source loss given the baseline features, E[loss | w, source].
        ratio_x: Density ratio p_1(w, z) / p_0(w, z) at the source rows, shape (n_0,).
        ratio_w: Density ratio p_1(w) / p_0(w) at the source rows.

    Returns:
        Influence values, shape (4, n_0) and (4, n_1); their :func:`~explain.functional.rows.mean` are the expectations.

    Reference:
        Singh et al. (2024), "A hierarchical decomposition for explaining ML performance discrepancies",
        arXiv 2402.14254, section 4.1 and equations (22) to (24).
    """
    first, last = Rows(loss.source, np.zeros_like(loss.target)), Rows(np.zeros_like(loss.source), loss.target)
    return stack([first, *(shifted_rows(loss.source, mu, pi) for mu, pi in ((mu_w, ratio_w), (mu_x, ratio_x))), last])


def aggregate_terms(expectations: Floats) -> Floats:
    """Differences of consecutive expectations: baseline, covariate and outcome term; they sum to the whole gap.

    Args:
        expectations: E_000, E_100, E_110, E_111 along the first axis, shape (4, ...): estimates or influence values.

    Returns:
        The three terms, shape (3, ...).

    Example:
        >>> import numpy as np
        >>> aggregate_terms(np.array([1.0, 2.0, 4.0, 3.0]))
        array([ 1.,  2., -1.])
    """
    return np.diff(expectations, axis=0)
