"""The update against calculations by hand and in numpy: advantages, clip, divergences, dual steps, chunks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rl.csp.policies import CategoricalLaw, Critic, GaussianLaw, MixedLaw, SeatPolicy
from rl.csp.update import (
    DataBatch,
    Experience,
    Settings,
    clipped_surrogate,
    data_term,
    gae,
    masked_mean,
    next_coefficient,
    side_loss,
    standardise,
    update_side,
)


def draws(seed):
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 7), discount=st.floats(0.1, 1), trace=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_advantages_are_the_discounted_sum_of_errors(seed, steps, discount, trace):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, steps, 3))
    lengths = rng.integers(1, steps + 1, 3)
    live = np.arange(steps)[:, None] < lengths
    rewards = rewards * live
    expected = np.zeros((steps, 3))
    for n, length in enumerate(lengths):
        for t in range(length):
            for k in range(t, length):
                following = values[k + 1, n] if k + 1 < length else 0.0
                error = rewards[k, n] + discount * following - values[k, n]
                expected[t, n] += (discount * trace) ** (k - t) * error
    found = gae(*map(torch.from_numpy, (rewards, values, live)), discount, trace)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [(1.5, 2.0, 2.4, 0.0), (1.5, -2.0, -3.0, -3.0), (0.5, 2.0, 1.0, 1.0), (0.5, -2.0, -1.6, 0.0), (1.1, 2.0, 2.2, 2.2)],
)
def test_the_clip_stops_what_goes_too_far_in_the_good_direction_only(ratio, advantage, expected, slope):
    log_prob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    value = clipped_surrogate(log_prob, torch.zeros(()), torch.tensor(advantage), 0.2)
    value.backward()
    assert (value.item(), log_prob.grad.item()) == pytest.approx((expected, slope), abs=1e-7)


def test_likelihood_and_divergences_by_hand():
    mu = CategoricalLaw(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log())
    model = CategoricalLaw(torch.tensor([[[0.2, 0.8], [0.5, 0.5]]]).log())
    data = DataBatch(torch.zeros(1, 2, 1), torch.tensor([[0, 1]]), None, torch.tensor([[0.25, 0.75]]))
    forward = [0.2 * math.log(0.4) + 0.8 * math.log(1.6), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)]
    reverse = [0.5 * math.log(2.5) + 0.5 * math.log(0.625), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)]
    assert float(data_term(mu, data)) == pytest.approx(-0.25 * math.log(0.5) - 0.75 * math.log(0.1))
    with pytest.raises(ValueError, match="compares with a model of the target; give one"):
        data_term(mu, data, "forward")
    data = data._replace(model=model)
    assert float(data_term(mu, data, "forward")) == pytest.approx(0.25 * forward[0] + 0.75 * forward[1])
    assert float(data_term(mu, data, "reverse")) == pytest.approx(0.25 * reverse[0] + 0.75 * reverse[1])


def test_real_actions_are_scored_by_dimension_and_agree_with_torch():
    mean, other = torch.randn(2, 1, 4, 3, generator=draws(0))
    actions = torch.randn(1, 4, 3, generator=draws(1))
    law, second = GaussianLaw(mean, torch.tensor([-1.0, 0.0, 0.5])), GaussianLaw(other, torch.tensor([0.0, 0.2, -0.3]))
    peer = torch.distributions.Normal(mean, law.log_std.exp())
    peer_second = torch.distributions.Normal(other, second.log_std.exp())
    torch.testing.assert_close(law.log_prob(actions), peer.log_prob(actions).sum(-1))
    torch.testing.assert_close(law.entropy(), peer.entropy().sum(-1))
    torch.testing.assert_close(law.kl(second), torch.distributions.kl_divergence(peer, peer_second).sum(-1))
    weights = torch.full((1, 4), 0.25)
    found = data_term(law, DataBatch(torch.zeros(1, 4, 1), actions, None, weights))
    torch.testing.assert_close(found, -peer.log_prob(actions).mean())


def test_the_deviation_of_real_actions_has_a_floor():
    policy = SeatPolicy(2, 0, 3, (4,), log_std=-9.0)
    law, _ = policy(torch.zeros(1, 1, 2))
    assert law.log_std.min() == -2


def test_illegal_actions_have_no_part_in_anything():
    masks = torch.tensor([[[True, False, True]]])
    policy = SeatPolicy(2, 3, 0, (4,))
    law, _ = policy(torch.ones(1, 1, 2), masks)
    probabilities = law.log_probs.exp()
    assert probabilities[0, 0, 1] == 0
    p = probabilities[0, 0, [0, 2]]
    torch.testing.assert_close(law.entropy()[0, 0], -(p * p.log()).sum())
    (law.entropy() + law.kl(law)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in policy.parameters())
    many, _ = policy(torch.ones(1, 2000, 2), masks.expand(1, 2000, 3))
    drawn = many.sample(draws(0))
    assert not (drawn == 1).any()
    assert float((drawn == 0).float().mean()) == pytest.approx(p[0].item(), abs=0.04)


def test_the_gate_mixes_probabilities():
    frozen = CategoricalLaw(torch.tensor([[0.5, 0.5]]).log())
    free = CategoricalLaw(torch.tensor([[0.9, 0.1]]).log())
    law = MixedLaw(frozen, free, torch.tensor([0.75]))
    assert float(law.log_prob(torch.tensor([0])).exp()) == pytest.approx(0.75 * 0.5 + 0.25 * 0.9)
    closed = MixedLaw(frozen, free, torch.tensor([1.0]))
    assert float(closed.log_prob(torch.tensor([1])).exp()) == pytest.approx(0.5)


def test_dual_steps():
    assert next_coefficient(20.0, 10.0, 0.02) == pytest.approx(20 * math.exp(0.5))
    assert next_coefficient(20.0, 0.03, 0.02) == pytest.approx(20 * math.exp(0.25))
    assert next_coefficient(20.0, 0.02, 0.02) == pytest.approx(20)
    assert next_coefficient(20.0, 0.0, 0.02) == pytest.approx(20 * math.exp(-0.5))
    assert next_coefficient(12.0, -5.0, 0.02) == 10
    assert next_coefficient(900.0, 5.0, 0.02) == 1000


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_standardised_entries_have_mean_0_and_deviation_1(seed):
    values = 5 + 3 * torch.randn(6, 4, generator=draws(seed), dtype=torch.float64)
    weights = (torch.rand(6, 4, generator=draws(seed + 1)) < 0.7).double()
    weights[0, :2] = 1
    found = standardise(values, weights)
    kept = found[weights > 0]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-9)
    assert float(kept.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not found[weights == 0].any()


def experience(seed=0, *, steps=4, batch=5, players=2, memory=None):
    generator = draws(seed)
    live = torch.arange(steps)[:, None] < torch.tensor([4, 1, 3, 2, 4])[None, :batch]
    masks = torch.ones(steps, batch, players, 3, dtype=torch.bool)
    masks[1, :, 0] = torch.tensor([False, True, False])  # a forced move
    actions = torch.randint(3, (steps, batch, players), generator=generator)
    actions[1, :, 0] = 1
    return Experience(
        observations=torch.randn(steps, batch, players, 4, generator=generator),
        actions=actions,
        masks=masks,
        log_probs=torch.zeros(steps, batch, players),
        memories=None if memory is None else torch.zeros(steps, batch, players, memory),
        central=torch.randn(steps, batch, 6, generator=generator),
        rewards=torch.randn(steps, batch, generator=generator) * live,
        live=live,
    )


def test_the_loss_of_a_side_is_the_formula():
    torch.manual_seed(0)
    policy, critic = SeatPolicy(4, 3, 0, (8,)), Critic(6, (8,))
    lived = experience()
    weights = lived.live.float()
    part = {
        "observations": lived.observations,
        "actions": lived.actions,
        "masks": lived.masks,
        "memories": None,
        "old": lived.log_probs - 1.0,
        "central": lived.central,
        "live": weights,
        "decides": weights[..., None].expand(4, 5, 2),
        "advantages": torch.randn(4, 5, 2),
        "targets": torch.randn(4, 5),
    }
    data = DataBatch(torch.randn(1, 3, 4), torch.tensor([[0, 2, 1]]), None, torch.tensor([[0.2, 0.3, 0.5]]))
    loss, report = side_loss(policy, critic, part, Settings(0.9, entropy=0.3, value=0.7, coefficient=20.0), data=data)

    logits = policy.head(policy.trunk(lived.observations)).masked_fill(~lived.masks, -1e30).detach().double().numpy()
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, lived.actions.numpy()[..., None], -1)[..., 0]
    ratio, advantage = chosen / np.exp(-1.0), part["advantages"].numpy()
    objective = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    live = lived.live.numpy()
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
    value = (critic(lived.central).detach().numpy() - part["targets"].numpy()) ** 2
    q = policy(data.observations)[0].log_probs[0].detach().numpy()
    nll = -(0.2 * q[0, 0] + 0.3 * q[1, 2] + 0.5 * q[2, 1])
    expected = -objective[live].mean() - 0.3 * entropy[live].mean() + 0.7 * value[live].mean() + 20 * nll
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(report["data"]) == pytest.approx(nll, rel=1e-5)
    assert float(report["clip_fraction"]) == pytest.approx((np.abs(ratio - 1) > 0.2)[live].mean())


def test_forced_moves_and_unplayed_steps_teach_nothing():
    torch.manual_seed(0)
    policy, critic = SeatPolicy(4, 3, 0, (8,)), Critic(6, (8,))
    lived = experience()
    changed = lived._replace(observations=lived.observations.clone())
    changed.observations[~lived.live] += 9
    changed.observations[1, :, 0] -= 9
    states = []
    for episodes in (lived, changed):
        ours, its = SeatPolicy(4, 3, 0, (8,)), Critic(6, (8,))
        ours.load_state_dict(policy.state_dict())
        its.load_state_dict(critic.state_dict())
        optimizer = torch.optim.SGD([*ours.parameters(), *its.parameters()], 0.1)
        update_side(ours, its, episodes, Settings(0.9, epochs=2), _descend(optimizer), draws(0))
        states.append(torch.cat([x.flatten() for x in ours.parameters()]))
    torch.testing.assert_close(*states)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_a_recurrent_policy_learns_from_the_chunks_what_it_plays(minibatches):
    """At the first step the ratio is 1 everywhere, so chunks with their memories give back the played probabilities."""
    torch.manual_seed(0)
    policy, critic = SeatPolicy(4, 3, 0, (8,), memory=5), Critic(6, (8,))
    lived = experience(memory=5)
    memories, log_probs, before = None, [], []
    with torch.no_grad():
        for t in range(4):
            before.append(torch.zeros(5, 2, 5) if memories is None else memories)
            law, memories = policy(lived.observations[t : t + 1], lived.masks[t : t + 1], memories)
            log_probs.append(law.log_prob(lived.actions[t : t + 1])[0])
    lived = lived._replace(log_probs=torch.stack(log_probs), memories=torch.stack(before))
    report = update_side(
        policy, critic, lived, Settings(0.9, epochs=1, minibatches=minibatches, chunk=3), lambda loss: None, draws(0)
    )
    assert float(report["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(report["clip_fraction"]) == 0


def test_the_critic_follows_the_units_of_its_returns():
    critic = Critic(3, (4,))
    live = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    targets = torch.tensor([[100.0, 300.0], [500.0, 9e9]])
    standard = critic.follow(targets, live, lambda x: x)
    assert masked_mean(standard, live).item() == pytest.approx(0, abs=1e-5)
    assert float(critic.shift) == pytest.approx(300)
    assert float(critic.scale) == pytest.approx(math.sqrt(80000 / 3), rel=1e-5)
    central = torch.randn(5, 3)
    torch.testing.assert_close(critic.value(central), critic.shift + critic.scale * critic(central))


def _descend(optimizer):
    def descend(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return descend
