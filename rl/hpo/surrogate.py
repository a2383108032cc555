r"""The HPO estimator: scalars of a live rollout whose gradient is the mixed pathwise and score-function gradient.

With the noise and the sampled modes :math:`x_t` held fixed, a state is a smooth function of the continuous policy
:math:`\kappa`. Differentiating :math:`J = E \sum_t g^t c_t` as a product of mode probabilities and costs gives

.. math::
    \nabla J = E \sum_t g^t \nabla c_t \;+\; E \sum_t \nabla \log \pi_\phi(x_t \mid s_t(\kappa)) \, g^t A_t ,

the pathwise part through the live rollout, and the score-function part with *detached* advantages and *live* states.
For the discrete policy :math:`\phi` the second sum is the ordinary policy gradient; what it gives :math:`\kappa`
through :math:`s_t` is the **cross term**: how a moved state changes which modes are chosen.

:func:`mixed_surrogate` is that estimator. What keeps it unbiased, and what does not, stands in each argument; the
rows were checked against exact enumeration (tests/rl/hpo/test_surrogate.py, benchmarks/hpo_unbiased.py).

Reference:
    Alvo, Russo and Kanoria (2026), "Policy Optimization in Hybrid Discrete-Continuous Action Spaces via Mixed
    Gradients", arXiv 2605.14297, theorem 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """The two parts of the estimator, one number an episode; minimise the mean of their sum.

    Attributes:
        pathwise: Costs through the live rollout, (batch,).
        score: Score functions of the modes times detached advantages, (batch,).
    """

    pathwise: Tensor
    score: Tensor

    @property
    def total(self) -> Tensor:
        """The surrogate, (batch,)."""
        return self.pathwise + self.score


def mixed_surrogate(
    costs: Tensor,
    log_probs: Tensor,
    modes: Tensor,
    advantages: Tensor,
    *,
    discount: float = 1.0,
    tails: Tensor | None = None,
    decisions: int | None = None,
    counted_from: int = 0,
) -> Surrogate:
    r"""The mixed gradient of the expected cost.

    .. math:: L = \sum_t g^t c_t + \sum_k g^{t_k} V(s_{t_k}) + \sum_t g^t \log \pi(x_t \mid s_t) \, sg(A_t)

    The gradient's expectation is exact whether the continuous actions are deterministic or reparametrised
    (:math:`b = \mu + \sigma \varepsilon`). It is not when a score of the continuous action is added to a live path:
    that counts its effect twice.

    Args:
        costs: Live costs (batch, T). Detached, only the score part is left, biased for the continuous policy.
        log_probs: Log-probabilities of all modes (batch, T, J), or with heads (batch, T, H, J). Evaluated on *live*
            states they carry the cross term,
            **unbiased**; on *detached* states (``cross_term=off``) the discrete gradient stays unbiased and the
            continuous one loses the cross term, which fades as the modes approach a best response.
        modes: Sampled modes, int64 (batch, T), or with heads (batch, T, H), whose log-probabilities add up:
            **unbiased** as for one head, for the law is their product.
        advantages: (batch, T), or (batch, T, J) of all modes for the one-step branching over modes, in which
            :math:`\sum_j \pi_j sg(A_j)` replaces the sampled term and with it the noise of sampling. Detached here.
            Any baseline that is a function of the past keeps the estimator **unbiased**; see :func:`advantages_of`
            for the estimates. Branching is unbiased with the exact value function, and as biased as the value used.
        discount: g of the objective, in (0, 1]. **Unbiased** for the g-discounted cost when the advantages are
            discounted alike; 1 with discounted advantages (the practical choice) optimises the undiscounted cost with
            a variance reduction that biases the score part.
        tails: Live values (batch, windows, 2) of :func:`window_tails` at the ends of short windows, after which the
            states of the rollout were detached. **Unbiased** with the exact value function of the frozen policy,
            otherwise as biased as the value.
        decisions: How many are scored, from the first; None scores all. **Unbiased** for the policy of these.
        counted_from: Costs before this step, of a warm-up, are left out of the pathwise part. **Unbiased** for those
            that count if the advantages leave them out too; else the modes of the warm-up are judged by more.

    Returns:
        Both parts, (batch,) each.
    """
    weights = discount ** torch.arange(costs.shape[1], device=costs.device, dtype=costs.dtype)
    pathwise = (weights * costs)[:, counted_from:].sum(1)
    if tails is not None:
        pathwise = pathwise + tails.sum(1)
    advantages = advantages.detach()
    if advantages.dim() == 3:
        # A mode that may not be chosen has probability 0, and 0 times its advantage is 0.
        terms = (log_probs.exp() * advantages).sum(-1)
    else:
        terms = mode_log_probs(log_probs, modes, heads=modes.dim() > costs.dim()) * advantages
    return Surrogate(pathwise, (weights * terms)[:, :decisions].sum(1))


def window_tails(values: Tensor, steps: Tensor, discount: float = 1.0) -> Tensor:
    r"""Weigh the live values at the ends of windows: :math:`g^{t_k} V(s_{t_k})`.

    Args:
        values: Values of the states in which windows end, live in the states and frozen in their own parameters,
            (batch, windows). A value whose parameters are not frozen is trained to be low: wrong.
        steps: The step of each, (windows,).
        discount: g of the objective.

    Returns:
        (batch, windows).
    """
    return values * discount ** steps.to(values.dtype)


def advantages_of(costs: Tensor, values: Tensor, *, discount: float = 1.0, trace: float = 1.0) -> Tensor:
    r"""Generalised advantage estimates, detached: :math:`A_t = \sum_k (g \lambda)^k (c + g V' - V)_{t + k}`.

    Zero values and ``trace`` 1 give the plain cost-to-go. With ``trace`` 1 the estimator is **unbiased for any
    values**; with ``trace`` below 1 only for exact ones.

    Args:
        costs: (batch, T); live or not, their gradient is never used. (A live advantage is a bug: 46 % error.)
        values: (batch, T + 1); the last is 0 where the episode truly ends, or else bootstraps.
        discount: g, in (0, 1].
        trace: Lambda, in [0, 1].

    Returns:
        Advantages (batch, T), in the unit of costs: positive is worse than expected.

    Example:
        >>> advantages_of(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 4))
        tensor([[6., 5., 3.]])

    Reference:
        Schulman et al. (2016), "High-dimensional continuous control using generalized advantage estimation".
    """
    costs, values = costs.detach(), values.detach()
    surprises = costs + discount * values[:, 1:] - values[:, :-1]
    found, following = [], torch.zeros_like(surprises[:, 0])
    for surprise in surprises.unbind(1)[::-1]:
        following = surprise + discount * trace * following
        found.append(following)
    return torch.stack(found[::-1], 1)


def branched_advantages(log_probs: Tensor, costs: Tensor, values: Tensor, *, discount: float = 1.0) -> Tensor:
    r"""Advantages of all modes from one step of each: :math:`A_j = Q_j - \sum_i \pi_i Q_i, Q_j = c_j + g V(s'_j)`.

    Args:
        log_probs: (batch, T, J).
        costs: Cost of each mode in the visited state under the episode's own noise, (batch, T, J).
        values: Value of the state after it, (batch, T, J). **Unbiased** if exact, else as biased as they are.
        discount: g.

    Returns:
        (batch, T, J), detached.
    """
    q = (costs + discount * values).detach()
    return q - (log_probs.detach().exp() * q).sum(-1, keepdim=True)


def clipped_surrogate(log_prob: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    r"""PPO's clipped reuse of a rollout, for costs: :math:`\max(r A, clip(r, 1 - \epsilon, 1 + \epsilon) A)`.

    At the first step, where :math:`r = \exp(\log\pi - \log\pi_{old}) = 1`, its gradient is that of
    :math:`\log\pi \, A`: **unbiased**. Later steps are biased for the gain of using a rollout again, on detached states
    only: the continuous policy's path is on-policy and is used up by its one step.

    Args:
        log_prob: Of the actions taken, under the present policy; any shape.
        old: Of the same under the policy that acted.
        advantages: In costs, positive is worse.
        clip: Epsilon, above 0.

    Returns:
        Of the same shape; minimise its mean.

    Example:
        >>> clipped_surrogate(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.tensor([2.0, -1.0]), 0.2)
        tensor([ 2.0000, -1.2000])

    Reference:
        Schulman et al. (2017), "Proximal policy optimization algorithms", arXiv 1707.06347, equation 7.
    """
    ratio = (log_prob - old).clamp(-20, 20).exp()
    return torch.maximum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def entropy(log_probs: Tensor, *, heads: bool = False) -> Tensor:
    """Entropy in nats of the modes' law (..., J) -> (...); as a bonus it moves the optimum, so let it fade: **biased**.

    Give it log-probabilities of detached states, or it pulls on the continuous policy.

    Args:
        log_probs: (..., J), or (..., H, J).
        heads: The law is a product of H heads', whose entropies add up.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5]).log())
        tensor(0.6931)
    """
    found = -(log_probs.exp() * log_probs.masked_fill(log_probs.isinf(), 0.0)).sum(-1)
    return found.sum(-1) if heads else found


def mode_log_probs(log_probs: Tensor, modes: Tensor, *, heads: bool = False) -> Tensor:
    """Log-probability of the modes taken: (..., J) and (...) -> (...), with heads (..., H, J) and (..., H) -> (...)."""
    found = log_probs.gather(-1, modes.unsqueeze(-1)).squeeze(-1)
    return found.sum(-1) if heads else found
