"""Behaviour cloning: fit a policy to the pairs of a data set, stopping where held-out pairs get less likely."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rl.csp.pairs import Pairs, PairSampler
from rl.csp.update import data_term


def clone(
    policy: nn.Module,
    train: Pairs,
    held_out: Pairs,
    generator: torch.Generator,
    *,
    power: float = 1.0,
    radius: float = 0.0,
    rate: float = 1e-3,
    batch: int = 256,
    epochs: int = 200,
    patience: int = 10,
) -> float:
    """Fit a policy in place by maximum likelihood with Adam.

    Args:
        policy: What is fitted.
        train: Pairs to fit.
        held_out: Pairs that decide when to stop.
        generator: For the batches.
        power: Weights of the states, see `PairSampler`.
        radius: Likewise.
        rate: Of Adam.
        batch: Pairs of a step.
        epochs: Passes at most.
        patience: Passes without a better held-out likelihood after which to stop.

    Returns:
        Negative log-likelihood of the held-out pairs, in nats a dimension.
    """
    sequences = bool(policy.memory)
    sampler = PairSampler(train, power=power, radius=radius, batch=batch, sequences=sequences)
    optimizer = torch.optim.Adam(policy.parameters(), rate)
    best, kept, waited = likelihood(policy, held_out), copy.deepcopy(policy.state_dict()), 0
    for _ in range(epochs):
        for _ in range(max(4, -(-len(train.actions) // batch))):
            data = sampler.draw(generator)
            loss = data_term(policy(data.observations, data.masks, None)[0], data)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            optimizer.step()
        now = likelihood(policy, held_out)
        waited = 0 if now < best - 1e-4 else waited + 1
        if now < best:
            best, kept = now, copy.deepcopy(policy.state_dict())
        if waited >= patience:
            break
    policy.load_state_dict(kept)
    return best


@torch.no_grad()
def likelihood(policy: nn.Module, pairs: Pairs, *, power: float = 1.0, radius: float = 0.0) -> float:
    """Negative log-likelihood of pairs in nats a dimension, all weighted alike unless ``power`` says otherwise."""
    sequences = int(getattr(policy, "memory", 0)) > 0
    where = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
    data = PairSampler(pairs, power=power, radius=radius, sequences=sequences).to(where).whole
    return float(data_term(policy(data.observations, data.masks, None)[0], data))
