"""What a rollout keeps, and the simulators that it refuses: one sentence that names the step and the tensor."""

import dataclasses

import pytest
import torch

from rl.envs.switched_lqr import SwitchedLQR, switched_lqr
from rl.errors import SimulatorError
from rl.hpo.module import HPOModule
from rl.hpo.policies import HybridPolicy
from rl.hpo.rollout import Draws, rollout

POLICY = HybridPolicy(2, 2, 2, (8,))
PLANT = switched_lqr(2, 2)
NOISE = PLANT.sample_noise(6, torch.Generator().manual_seed(0))
GUMBEL = -torch.empty(6, 20, 2).exponential_(generator=torch.Generator().manual_seed(1)).log()


def broken(step):
    """The plant with another step."""
    plant = switched_lqr(2, 2)
    plant.step = lambda *arguments: step(*SwitchedLQR.step(plant, *arguments), arguments[-1])
    return plant


def test_a_rollout_is_replayed_bit_by_bit():
    one, two = (rollout(PLANT, POLICY, NOISE, Draws(GUMBEL)) for _ in range(2))
    assert one.costs.shape == (6, 20)
    assert one.observations.shape == (6, 21, 2)
    assert torch.equal(one.costs, two.costs)
    assert one.modes.float().std() > 0


def test_gumbel_noise_samples_the_law_of_the_modes():
    many = PLANT.sample_noise(1, torch.Generator().manual_seed(0))["initial"].expand(20000, -1)
    gumbel = -torch.empty(20000, 20, 2).exponential_(generator=torch.Generator().manual_seed(2)).log()
    with torch.no_grad():
        roll = rollout(PLANT, POLICY, {"initial": many}, Draws(gumbel))
        expected = POLICY.log_probs(many[:1]).exp()[0, 1].item()
    assert roll.modes[:, 0].float().mean().item() == pytest.approx(expected, abs=0.015)


def test_branches_agree_with_the_steps_taken():
    roll = rollout(PLANT, POLICY, NOISE, Draws(GUMBEL), branch=True)
    index = roll.modes[..., None]
    torch.testing.assert_close(roll.branch_costs.gather(-1, index)[..., 0], roll.costs)
    following = roll.branch_observations.gather(2, index[..., None].expand(-1, -1, -1, 2))[:, :, 0]
    torch.testing.assert_close(following, roll.observations[:, 1:])
    assert not roll.branch_costs.requires_grad


def test_straight_through_is_exact_forward():
    plain, relaxed = (rollout(PLANT, POLICY, NOISE, Draws(GUMBEL), relaxed=r) for r in (None, 0.5))
    torch.testing.assert_close(plain.costs, relaxed.costs, rtol=1e-5, atol=1e-3)
    (slope,) = torch.autograd.grad(relaxed.costs.sum(), POLICY.discrete[-1].bias)
    assert slope.abs().sum() > 0


def test_windows_detach_the_state_and_keep_where():
    roll = rollout(PLANT, POLICY, NOISE, Draws(GUMBEL), window=8)
    assert roll.tail_steps.tolist() == [8, 16]
    torch.testing.assert_close(roll.tails, roll.observations[:, [8, 16]])
    assert roll.tails.requires_grad
    early = torch.autograd.grad(roll.costs[:, 8].sum(), roll.tails, allow_unused=True, retain_graph=True)
    assert early[0] is None  # what follows a window does not reach back into it


def test_late_actions_are_cut_off():
    roll = rollout(PLANT, POLICY, NOISE, Draws(GUMBEL), last_live=0, cross_term=False)
    assert not roll.costs.requires_grad


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda s, c, t: (s, c / (t != 3)), "step 3: the cost is inf in 6 of 6 episodes"),
        (lambda s, c, t: (s, c * float("nan") if t == 2 else c), "step 2: the cost is nan"),
        (lambda s, c, t: ({"x": s["x"] / (t != 4)}, c), "step 5: the observation is"),
        (lambda s, c, t: ({"x": s["x"].detach()}, c), "step 0: the state 'x' carries no gradient"),
        (lambda s, c, t: ({"x": s["x"][:3]}, c), r"step 0: state 'x' has shape \(3, 2\) in a batch of 6"),
        (lambda s, c, t: (s, c.mean()), r"step 0: the cost has shape \(\)"),
        (lambda s, c, t: (s, c.detach() if t == 19 else c), "step 19: the cost carries no gradient"),
    ],
)
def test_a_simulator_that_breaks_the_protocol_is_refused(step, message):
    with pytest.raises(SimulatorError, match=message):
        rollout(broken(step), POLICY, NOISE, Draws(GUMBEL), cross_term=False)


def test_a_horizon_of_nothing_is_refused():
    plant = switched_lqr(2, 2)
    plant.horizon = 0
    with pytest.raises(SimulatorError, match="horizon is 0"):
        rollout(plant, POLICY, NOISE, Draws(GUMBEL))
    with pytest.raises(SimulatorError, match="horizon is 0"):
        HPOModule(plant)


def test_masked_modes_are_never_chosen_and_leave_finite_gradients():
    plant = switched_lqr(2, 2)
    plant.mode_mask = lambda state, t: torch.tensor([[True, t % 2 == 0]]).expand(len(state["x"]), -1)
    roll = rollout(plant, POLICY, NOISE, Draws(GUMBEL), branch=True)
    assert (roll.modes[:, 1::2] == 0).all()
    assert (roll.modes[:, ::2] == 1).any()
    assert roll.masks.shape == (6, 20, 2)
    allowed = roll.log_probs.gather(-1, roll.modes[..., None]).sum()
    grads = torch.autograd.grad(allowed + roll.costs.sum(), list(POLICY.discrete.parameters()))
    assert all(g.isfinite().all() for g in grads)
    assert dataclasses.is_dataclass(roll)
