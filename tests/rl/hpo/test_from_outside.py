"""What users hand over from outside: rules, files, numpy's numbers, foreign agents; it is used rightly or refused."""

from pathlib import Path
from typing import Any

import gymnasium
import lightning
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.envs import FlatActions, HybridSimulator, SimulatorEnv, SimulatorVectorEnv, check_simulator, play
from rl.envs.hybrid import relative_gap
from rl.envs.switched_lqr import switched_lqr
from rl.errors import SimulatorError
from rl.hpo import Agent, HPOModule, SeedDataModule, export_policy, load_policy, save_policy

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Presses(HybridSimulator):
    """Three presses that are set up or not, each of which may be under repair; lots of any size."""

    heads, action_dim, observation_dim, horizon = (2, 2, 2), 3, 4, 5

    def sample_noise(self, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        demand = torch.rand(batch, self.horizon, 3, generator=generator, dtype=self.dtype)
        up = torch.rand(batch, self.horizon + 1, 3, generator=generator) > 0.5
        return {"demand": demand, "up": up}

    def reset(self, noise: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"stock": torch.zeros_like(noise["demand"][:, 0]), "up": noise["up"][:, 0]}

    def observe(self, state: dict[str, torch.Tensor], t: int) -> torch.Tensor:
        return torch.cat([state["stock"], torch.full_like(state["stock"][:, :1], t)], 1)

    def action_map(self, raw: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.softplus(raw)

    def mode_mask(self, state: dict[str, torch.Tensor], t: int) -> torch.Tensor:
        return torch.stack([torch.ones_like(state["up"]), state["up"]], -1)

    def step(self, state: Any, mode: Any, action: Any, noise: Any, t: int) -> Any:
        stock = state["stock"] + torch.where(mode == 1, action, 0.0) - noise["demand"][:, t]
        return {"stock": stock, "up": noise["up"][:, t + 1]}, (stock.abs() + 0.5 * (mode == 1)).sum(1)


class Choice(Presses):
    """The same with lots of a single size: nothing but modes is chosen."""

    action_dim = 0

    def action_map(self, raw: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return raw

    def step(self, state: Any, mode: Any, action: Any, noise: Any, t: int) -> Any:
        return super().step(state, mode, torch.ones_like(state["stock"]), noise, t)


def noise_of(simulator: HybridSimulator, batch: int = 4) -> dict[str, torch.Tensor]:
    return simulator.sample_noise(batch, torch.Generator().manual_seed(0))


ONES, LOTS = torch.ones(4, 3, dtype=torch.long), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (lambda up: (ONES, LOTS), r"step 0: mode 1 of head \d is chosen in episode \d, where mode_mask forbids it"),
        (lambda up: (0.5 * up, LOTS), r"step 0: the modes are torch.float32, but they must be a tensor of torch.int64"),
        (lambda up: (up.numpy(), LOTS), "step 0: the modes are a ndarray"),
        (lambda up: (up.long()[:1], LOTS), r"the modes have shape \(1, 3\), but they must be \(4, 3\)"),
        (lambda up: (up.long(), LOTS[:1]), r"the actions have shape \(1, 3\), but they must be a tensor of shape \(4,"),
        (lambda up: (up.long(), None), "the actions are None"),
    ],
)
def test_a_rule_that_decides_what_the_simulator_would_not_is_refused(decision: Any, message: str) -> None:
    with pytest.raises(SimulatorError, match=message):
        play(Presses(), lambda state, t: decision(state["up"]), noise_of(Presses()))


def test_a_rule_within_the_masks_is_played() -> None:
    costs = play(Presses(), lambda state, t: (state["up"].long(), LOTS), noise_of(Presses()))
    noise, stock = noise_of(Presses()), torch.zeros(4, 3)
    for t in range(5):
        up = noise["up"][:, t].float()
        stock = stock + up - noise["demand"][:, t]
        torch.testing.assert_close(costs[:, t], (stock.abs() + 0.5 * up).sum(1))


def test_an_environment_refuses_actions_that_are_none() -> None:
    env, lots = SimulatorEnv(Presses()), np.zeros(3, np.float32)
    _, info = env.reset(seed=0)
    allowed = info["action_mask"][:, 1]
    assert 0 < allowed.sum() < 3
    for mode, parameters, message in (
        (1 - allowed, lots, "is chosen in episode 0, where mode_mask forbids it"),
        (0.7 * allowed, lots, "mode is array.*must be whole numbers, 3 an episode"),
        (allowed, np.zeros(2), "parameters is array.*must be numbers, 3 an episode"),
        (allowed, np.full(3, np.nan), "must be finite"),
    ):
        with pytest.raises(SimulatorError, match=message):
            env.step({"mode": mode, "parameters": parameters})
    flat = FlatActions(env)
    flat.reset(seed=0)
    favours = np.concatenate([np.tile([0.0, 1.0], 3), lots]).astype(np.float32)
    assert flat.action(favours)["mode"].tolist() == allowed.tolist()  # type: ignore[index]
    flat.step(favours)


def test_an_agent_asks_its_own_environment_for_the_mask_and_no_other() -> None:
    policy = HPOModule(Presses(), hidden=[4]).policy
    for env in (SimulatorEnv(Presses()), FlatActions(SimulatorEnv(Presses())), SimulatorVectorEnv(Presses(), 3)):
        agent, (seen, info) = Agent(policy, env), env.reset(seed=1)
        for _ in range(4):
            told, _ = agent.predict(seen, deterministic=True, action_masks=info["action_mask"])
            found, _ = agent.predict(seen, deterministic=True)
            assert str(found) == str(told)
            seen, *_, info = env.step(found)
        with pytest.raises(ValueError, match="trained with mode masks, but none is given"):
            agent.predict(seen + 1)


def test_stable_baselines_evaluates_a_masked_policy() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy

    env = gymnasium.wrappers.TimeLimit(SimulatorEnv(Presses()), 100)
    agent = Agent(HPOModule(Presses(), hidden=[4]).policy, env)
    rewards, lengths = evaluate_policy(agent, env, n_eval_episodes=3, warn=False, return_episode_rewards=True)
    assert lengths == [5, 5, 5]
    assert max(rewards) < 0


class Line(gymnasium.Env):
    """An environment of somebody else's, in the terms of `switched_lqr`."""

    observation_space = spaces.Box(-9, 9, (2,))
    action_space = spaces.Tuple([spaces.Discrete(2), spaces.Box(-99, 99, (2,))])


def test_a_saved_policy_is_an_agent_where_actions_are_feasible_ones(tmp_path: Path) -> None:
    policy = HPOModule(switched_lqr(2, 2), hidden=[4]).policy
    save_policy(policy, tmp_path / "policy.safetensors")
    saved = load_policy(tmp_path / "policy.safetensors")
    seen = np.array([1.0, -0.5], np.float32)
    mode, values = Agent(saved, Line(), parameters="all").predict(seen, deterministic=True)[0]
    wanted = policy.act(seen)
    assert mode == int(wanted.mode)
    np.testing.assert_allclose(values, wanted.parameters.numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"takes raw parameters and maps them itself; play it with rl\.envs\.play"):
        Agent(saved, SimulatorEnv(switched_lqr(2, 2)))


def test_sizes_of_numpy_are_sizes(tmp_path: Path) -> None:
    simulator = switched_lqr(2, 2)
    for name in ("n_modes", "action_dim", "observation_dim", "horizon"):
        setattr(simulator, name, np.int64(getattr(simulator, name)))
    check_simulator(simulator)
    module = HPOModule(simulator, hidden=[np.int64(4)], learning_rate=np.float64(1e-3), discount=np.float32(0.5))
    assert module.hparams["discount"] == 0.5
    trainer = lightning.Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, SeedDataModule(1, 8, group_size=8, validation_episodes=8, test_episodes=8))
    trainer.save_checkpoint(tmp_path / "plane.ckpt")
    assert HPOModule.load_from_checkpoint(tmp_path / "plane.ckpt", simulator=simulator).hparams == module.hparams
    save_policy(module.policy, tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").act([0.1, 0.2]).mode == module.policy.act([0.1, 0.2]).mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": np.array([2, 2])}, "heads is array.*must be a tuple"),
        ({"n_modes": 1, "action_dim": 0}, "there is nothing to decide"),
        ({"heads": (1, 1), "action_dim": 0}, "there is nothing to decide"),
    ],
)
def test_a_declaration_without_a_decision_is_refused(change: dict[str, object], message: str) -> None:
    simulator = Presses()
    for name, value in {**({"heads": ()} if "n_modes" in change else {}), **change}.items():
        setattr(simulator, name, value)
    with pytest.raises(SimulatorError, match=message):
        check_simulator(simulator)


def test_the_gap_of_rewards_is_above_0_where_they_are_less() -> None:
    assert relative_gap(-90.0, -100.0) == pytest.approx(0.1)
    assert relative_gap(110.0, 100.0) == pytest.approx(0.1)

    class Earning(Presses):
        def step(self, state: Any, mode: Any, action: Any, noise: Any, t: int) -> Any:
            following, cost = super().step(state, mode, action, noise, t)
            return following, cost - 100

    data = SeedDataModule(1, 8, group_size=8, validation_episodes=8, test_episodes=8)
    module = HPOModule(Earning(), hidden=[4], reference=-101.0)
    found = lightning.Trainer(**QUIET).test(module, data, verbose=False)[0]
    assert found["test/cost"] > -100  # worse than -101
    assert found["test/gap"] == pytest.approx((found["test/cost"] + 101) / 101, rel=1e-4)
    with pytest.raises(ValueError, match="reference is 0, but gaps are in units of it"):
        HPOModule(Earning(), hidden=[4], reference=0.0)


def test_a_checkpoint_of_another_simulator_is_refused_in_one_sentence(tmp_path: Path) -> None:
    trainer = lightning.Trainer(max_epochs=1, **QUIET)
    trainer.fit(
        HPOModule(switched_lqr(2, 2), hidden=[4]),
        SeedDataModule(1, 8, group_size=8, validation_episodes=8, test_episodes=8),
    )
    trainer.save_checkpoint(tmp_path / "plane.ckpt")
    with pytest.raises(
        ValueError, match="the checkpoint is of another simulator or of other networks: its policy"
    ) as error:
        HPOModule.load_from_checkpoint(tmp_path / "plane.ckpt", simulator=Presses())
    assert "\n" not in str(error.value)
    HPOModule.load_from_checkpoint(tmp_path / "plane.ckpt", simulator=switched_lqr(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_a_policy_without_a_continuous_part(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    policy = HPOModule(Choice(), hidden=[4], estimator="score").policy
    torch.onnx.export(export_policy(policy), dynamo=True).save(str(tmp_path / "policy.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    seen = torch.rand(5, 4)
    logits, actions = session.run(None, {"observation": seen.numpy(), "mode": np.zeros((5, 3), np.int64)})
    torch.testing.assert_close(torch.from_numpy(logits).log_softmax(-1), policy.log_probs(seen))
    assert actions.shape == (5, 1, 0)
