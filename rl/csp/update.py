r"""The whole update of Constrained Self-Play: advantages, clipped losses, data term, constraint.

One side of the game learns at a time, from episodes of both. The agent maximises our reward :math:`r`; the proxy, which
stands for the target, maximises :math:`-r` and is held to the target's data :math:`D`:

.. math::
   L_\pi &= -E[\min(\rho A, clip(\rho) A)] - c_H E[H(\pi)] + c_V L_V \\
   L_\mu &= -E[\min(\rho^\mu A^\mu, clip(\rho^\mu) A^\mu)] - c_H E[H(\mu)] + c_V L_V^\mu + C L_D(\mu)

with generalised advantages :math:`A` of each side's own reward and :math:`L_D` the negative log-likelihood of the data,
or a divergence from a model of them. They are one function here, :func:`side_loss`: the agent is the side with C = 0.

That the proxy's reward is minus ours and that it is held to the data is the paper's; the losses' exact form is our
reconstruction.

Reference:
    Wu et al. (2023), "Conservative Offline Policy Adaptation in Multi-Agent Games", algorithm 1 (by name); Schulman et
    al. (2017), "Proximal Policy Optimization", arXiv 1707.06347, equation 7; Schulman et al. (2016), arXiv 1506.02438,
    equation 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Divergence = Literal["nll", "forward", "reverse"]
Reduce = Callable[[Tensor], Tensor]  # the mean over processes


class Law(Protocol):
    """A law of actions, one for each observation."""

    dimension: int

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability or log-density of actions (...)."""

    def entropy(self) -> Tensor:
        """Entropy (...)."""

    def kl(self, other: object) -> Tensor:
        """KL(self, other) (...)."""


class ValueModel(Protocol):
    """The value of a side; `rl.csp.policies.Critic` is one."""

    def __call__(self, central: Tensor) -> Tensor:
        """Values in standard units."""

    def value(self, central: Tensor) -> Tensor:
        """Values in units of reward."""

    def follow(self, targets: Tensor, live: Tensor, reduce: Reduce) -> Tensor:
        """Move the units towards those of the targets, and return the targets in them."""


class Experience(NamedTuple):
    """What a side lived through in N episodes of at most T steps, with P players of observation length O.

    Attributes:
        observations: Of its players, (T, N, P, O).
        actions: int64 (T, N, P) or float (T, N, P, D).
        masks: Legal actions (T, N, P, A), or None.
        log_probs: Of the actions when they were taken, (T, N, P).
        memories: Of a recurrent policy before each step, (T, N, P, H), or None.
        central: What its critic sees, (T, N, S).
        rewards: Of this side, (T, N).
        live: Whether the step was played, boolean (T, N).
        active: Whether each player was there and decided, boolean (T, N, P), or None where all always do.
    """

    observations: Tensor
    actions: Tensor
    masks: Tensor | None
    log_probs: Tensor
    memories: Tensor | None
    central: Tensor
    rewards: Tensor
    live: Tensor
    active: Tensor | None = None


class DataBatch(NamedTuple):
    """Observations and actions of the target: B sequences of length L (1 unless the policy is recurrent).

    Attributes:
        observations: (L, B, O).
        actions: int64 (L, B) or float (L, B, D).
        masks: Legal actions (L, B, A), or None.
        weights: Of each pair, summing to 1, (L, B).
        model: Law (L, B) of a frozen policy fitted to the data, or None; the two divergences compare with it.
    """

    observations: Tensor
    actions: Tensor
    masks: Tensor | None
    weights: Tensor
    model: Law | None = None


@dataclass(frozen=True)
class Settings:
    """Coefficients of one update.

    Attributes:
        discount: In (0, 1].
        trace: Lambda of the advantages, in [0, 1].
        clip: PPO's epsilon, above 0.
        entropy: c_H, weight of the entropy bonus.
        value: c_V, weight of the value loss.
        coefficient: C, weight of the data term; at 0 the term is not computed.
        divergence: nll, forward KL(model, proxy) or reverse KL(proxy, model).
        epochs: Passes over the episodes.
        minibatches: Steps of a pass.
        chunk: Length of the sequences that a recurrent policy is trained on; 1 for any other.
    """

    discount: float
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    coefficient: float = 0.0
    divergence: Divergence = "nll"
    epochs: int = 4
    minibatches: int = 1
    chunk: int = 1


# ------------------------------------------------------------------ advantages


def gae(rewards: Tensor, values: Tensor, live: Tensor, discount: float, trace: float) -> Tensor:
    r"""Generalised advantages :math:`A_t = \sum_k (\gamma\lambda)^k \delta_{t+k}`, with no value after the last step.

    Args:
        rewards: (T, N).
        values: Of the states before each step, (T, N).
        live: Whether the step was played, boolean (T, N); once false it stays false.
        discount: :math:`\gamma`.
        trace: :math:`\lambda`.

    Returns:
        Advantages (T, N), 0 where nothing was played.

    Example:
        >>> gae(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), 0.5, 1.0).tolist()
        [[2.0], [2.0]]
    """
    found = torch.zeros_like(values)
    running = next_value = torch.zeros_like(values[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + discount * next_value - values[t]
        running = torch.where(live[t], delta + discount * trace * running, 0.0)
        next_value = torch.where(live[t], values[t], 0.0)
        found[t] = running
    return found


def masked_mean(values: Tensor, weights: Tensor, reduce: Reduce = lambda x: x) -> Tensor:
    """Weighted mean; with ``reduce`` its gradient, averaged over processes, is that of the mean over all of them."""
    return (values * weights).sum() / reduce(weights.sum()).clamp(min=1e-8)


def standardise(values: Tensor, weights: Tensor, reduce: Reduce = lambda x: x) -> Tensor:
    """Mean 0 and deviation 1 over the weighted entries of all processes; 0 elsewhere."""
    mean = reduce(masked_mean(values, weights, reduce))
    deviation = reduce(masked_mean((values - mean).square(), weights, reduce)).sqrt()
    return (values - mean) / deviation.clamp(min=1e-6) * (weights > 0)


# ------------------------------------------------------------------ losses


def clipped_surrogate(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    r""":math:`\min(\rho A, clip(\rho, 1-\epsilon, 1+\epsilon) A)`, to be maximised, elementwise.

    Example:
        >>> clipped_surrogate(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.tensor([2.0, 2.0]), 0.2).tolist()
        [2.0, 2.4000000953674316]
    """
    ratio = (log_probs - old).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def data_term(law: Law, data: DataBatch, divergence: Divergence = "nll") -> Tensor:
    r"""L_D, weighted over pairs and divided by the number of action dimensions.

    ``nll``: :math:`-\log \mu(b|o)`, up to a constant the forward divergence from the empirical policy. ``forward``:
    :math:`KL(\hat\alpha \| \mu)` from a frozen model, of less variance. ``reverse``: :math:`KL(\mu \| \hat\alpha)`,
    which keeps to the model's support.

    Args:
        law: The proxy's at the data's observations.
        data: The pairs.
        divergence: See above.

    Returns:
        A scalar in nats a dimension.

    Raises:
        ValueError: If a divergence has no model.
    """
    if divergence == "nll":
        each = -law.log_prob(data.actions)
    elif data.model is None:
        raise ValueError(f"the data term '{divergence}' compares with a model of the target; give one, or use 'nll'.")
    else:
        each = data.model.kl(law) if divergence == "forward" else law.kl(data.model)
    return (each * data.weights).sum() / law.dimension


def next_coefficient(
    coefficient: float, excess: float, slack: float, *, rate: float = 0.5, floor: float = 10.0, ceiling: float = 1e3
) -> float:
    r"""One dual step, :math:`C \leftarrow clip(C \exp(\eta\, clip((L_D - L_D^* - \epsilon) / \epsilon, -1, 1)))`.

    The floor matters: a constraint that relaxes before the agent knows the covered states may never bind again, as the
    agent no longer goes there.

    Args:
        coefficient: C, above 0.
        excess: :math:`L_D(\mu) - L_D^*` in nats, over the best fit.
        slack: :math:`\epsilon`, the accepted excess, above 0.
        rate: :math:`\eta`.
        floor: Lowest C.
        ceiling: Highest C.

    Example:
        >>> round(next_coefficient(20.0, excess=0.5, slack=0.02), 3)
        32.974
        >>> next_coefficient(10.0, excess=0.0, slack=0.02)
        10.0
    """
    step = max(-1.0, min(1.0, (excess - slack) / slack))
    return max(floor, min(ceiling, coefficient * math.exp(rate * step)))


# ------------------------------------------------------------------ the update


def update_side(
    policy: Callable[..., tuple[Law, Tensor | None]],
    critic: ValueModel,
    experience: Experience,
    settings: Settings,
    descend: Callable[[Tensor], None],
    generator: torch.Generator,
    *,
    draw_data: Callable[[], DataBatch] | None = None,
    reduce: Reduce = lambda x: x,
) -> dict[str, Tensor]:
    """Improve one side: advantages once, then a few passes of clipped minibatch steps.

    Args:
        policy: ``policy(observations, masks, memories)`` gives the law and the next memories.
        critic: ``critic(central)`` in standard units, ``critic.value`` in units of reward, ``critic.follow(targets)``.
        experience: What the side lived through.
        settings: Coefficients.
        descend: Takes a loss, goes one step down its gradient.
        generator: For the order of minibatches.
        draw_data: Gives pairs of the target for the data term; not called when C is 0.
        reduce: Mean over processes.

    Returns:
        Means over the steps: `policy_loss`, `value_loss`, `entropy`, `clip_fraction`, `kl` (of the step), `data`.
    """
    live = experience.live.float()
    with torch.no_grad():
        values = critic.value(experience.central)
        raw = gae(experience.rewards, values, experience.live, settings.discount, settings.trace)
        targets = critic.follow(raw + values, live, reduce)
    decides = live[..., None].expand_as(experience.log_probs)
    if experience.active is not None:  # nor does what stands for a player that has left or waits
        decides = decides * experience.active
    if experience.masks is not None:  # a forced move teaches nothing and must not dilute the means
        decides = decides * (experience.masks.sum(-1) > 1)
    advantages = standardise(raw[..., None].expand_as(decides), decides, reduce)
    whole = {
        "observations": experience.observations,
        "actions": experience.actions,
        "masks": experience.masks,
        "memories": experience.memories,
        "old": experience.log_probs,
        "central": experience.central,
        "live": live,
        "decides": decides,
        "advantages": advantages,
        "targets": targets,
        "sure": policy.confidence(experience.observations) if hasattr(policy, "confidence") else None,
        "active": experience.active if experience.memories is not None else None,  # only a memory depends on it
    }
    chunks = _chunks(whole, settings.chunk)
    reports = []
    for _ in range(settings.epochs):
        for part in _minibatches(chunks, settings.minibatches, generator):
            data = draw_data() if draw_data is not None and settings.coefficient > 0 else None
            loss, report = side_loss(policy, critic, part, settings, data=data, reduce=reduce)
            descend(loss)
            reports.append(report)
    return {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}


def side_loss(
    policy: Callable[..., tuple[Law, Tensor | None]],
    critic: ValueModel,
    part: dict[str, Any],
    settings: Settings,
    *,
    data: DataBatch | None = None,
    reduce: Reduce = lambda x: x,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch: surrogate, entropy, value and data term; and what to log of it.

    Args:
        policy: As in :func:`update_side`.
        critic: As in :func:`update_side`.
        part: Sequences (L, B, ...): observations, actions, masks, memories, old (log-probabilities), central, live,
            decides, advantages, targets, sure (a gate's confidence, or None) and active (of a recurrent policy whose
            players may wait, or None).
        settings: Coefficients.
        data: Pairs of the target, or None without a data term.
        reduce: Mean over processes.
    """
    known = {name: part[name] for name in ("sure", "active") if part.get(name) is not None}
    law, _ = policy(part["observations"], part["masks"], part["memories"], **known)
    log_probs = law.log_prob(part["actions"])
    surrogate = clipped_surrogate(log_probs, part["old"], part["advantages"], settings.clip)
    policy_loss = -masked_mean(surrogate, part["decides"], reduce)
    entropy = masked_mean(law.entropy(), part["decides"], reduce)
    value_loss = masked_mean((critic(part["central"]) - part["targets"]).square(), part["live"], reduce)
    loss = policy_loss - settings.entropy * entropy + settings.value * value_loss
    data_loss = torch.zeros_like(policy_loss)
    if data is not None:
        data_loss = data_term(policy(data.observations, data.masks, None)[0], data, settings.divergence)
        loss = loss + settings.coefficient * data_loss
    with torch.no_grad():
        difference = log_probs - part["old"]
        clipped = ((difference.exp() - 1).abs() > settings.clip).float()
        report = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "clip_fraction": masked_mean(clipped, part["decides"], reduce),
            "kl": masked_mean(difference.exp() - 1 - difference, part["decides"], reduce),
            "data": data_loss,
        }
        return loss, {name: value.detach() for name, value in report.items()}


def _chunks(whole: dict[str, Tensor | None], length: int) -> dict[str, Tensor | None]:
    """Cut (T, N, ...) into sequences (length, B, ...) and drop those in which nothing was played.

    Of the memories only that at the start of each sequence is kept, (B, P, H).
    """
    live = whole["live"]
    if live is None:
        raise ValueError("the experience does not say which steps were played; give `live`.")

    def cut(x: Tensor) -> Tensor:
        if gap := -len(x) % length:
            x = torch.cat([x, x.new_zeros(gap, *x.shape[1:])])
        return x.reshape(-1, length, *x.shape[1:]).transpose(0, 1).flatten(1, 2)

    kept = cut(live).any(0).nonzero().squeeze(1)
    parts = {name: None if x is None else cut(x)[:, kept] for name, x in whole.items()}
    memories = parts["memories"]
    masks = parts["masks"]
    if memories is not None:
        parts["memories"] = memories[0]
    if masks is not None:  # a padded step must have a legal action too
        parts["masks"] = masks | ~masks.any(-1, keepdim=True)
    return parts


def _minibatches(
    chunks: dict[str, Tensor | None], count: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor | None]]:
    """All sequences in a random order, dealt out to ``count`` minibatches."""
    if count == 1:
        yield chunks
        return
    live = chunks["live"]
    size = 0 if live is None else live.shape[1]
    order = torch.randperm(size, generator=generator)
    for index in order.chunk(count):
        yield {
            name: None if x is None else (x[index] if name == "memories" else x[:, index]) for name, x in chunks.items()
        }
