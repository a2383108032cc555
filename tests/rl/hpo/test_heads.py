"""Several heads through module, policy, policy file and agent; unbiased by enumeration as one head is."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from benchmarks import hpo_factored as toy
from rl.envs import LotSizing, SimulatorEnv, SimulatorVectorEnv
from rl.envs.hybrid import HybridSimulator, play, reported_cost
from rl.hpo import Agent, HPOModule, HybridPolicy, SeedDataModule, load_policy, save_policy
from rl.hpo.known_optima import best_known
from rl.hpo.policies import network_sizes
from rl.hpo.surrogate import entropy, mode_log_probs

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]


class Switches(HybridSimulator):
    """Two heads of unequal size and no continuous part: the cost is the distance from a hidden choice."""

    heads = (2, 3)
    action_dim, observation_dim, horizon, report = 0, 1, 4, "total"

    def sample_noise(self, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"start": torch.rand(batch, 1, generator=generator)}

    def reset(self, noise: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"s": noise["start"]}

    def observe(self, state: dict[str, torch.Tensor], t: int) -> torch.Tensor:
        return state["s"]

    def mode_mask(self, state: dict[str, torch.Tensor], t: int) -> torch.Tensor:
        allowed = torch.ones(len(state["s"]), 2, 3, dtype=torch.bool)
        allowed[:, 1, 0] = t % 2 == 0
        return allowed

    def step(self, state: Any, mode: Any, action: Any, noise: Any, t: int) -> Any:
        cost = (mode[:, 0] != 1) + torch.tensor([0.0, 2.0, 0.5])[mode[:, 1]]
        return {"s": state["s"]}, cost.float()


def fit(module: HPOModule, epochs: int = 1, updates: int = 2) -> dict[str, float]:
    data = SeedDataModule(updates, 32, group_size=32, validation_episodes=32, test_episodes=64)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    return {name: float(cost) for name, cost in trainer.test(module, data, verbose=False)[0].items()}


def test_the_gradient_is_exact_and_wrong_forms_are_not() -> None:
    rows = {row["form"]: row for row in toy.errors()}
    assert max(row["rel_error"] for row in rows.values() if row["unbiased"]) < 1e-10
    assert min(row["rel_error"] for row in rows.values() if not row["unbiased"]) > 0.05
    cut = rows["no cross term: scores on detached states"]
    assert cut["rel_error_discrete"] < 1e-10
    assert cut["rel_error_continuous"] > 0.05


def test_log_probabilities_and_entropies_of_heads_add_up() -> None:
    law = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]).log()
    taken = mode_log_probs(law, torch.tensor([[1, 2]]), heads=True)
    assert taken.exp().item() == pytest.approx(0.25)
    joint = (law[0, 0, :2, None] + law[0, 1]).flatten()
    assert entropy(law, heads=True).item() == pytest.approx(-(joint.exp() * joint).sum().item())


def test_policy_laws_are_those_of_each_head_alone() -> None:
    policy = HybridPolicy(4, 1, 2, [8], heads=(2, 3, 1))
    seen = torch.randn(5, 4)
    law, logits = policy.log_probs(seen), policy.discrete(seen)
    torch.testing.assert_close(law[:, 0, :2], logits[:, :2].log_softmax(-1))
    torch.testing.assert_close(law[:, 1], logits[:, 2:5].log_softmax(-1))
    assert (law[:, 0, 2] == -torch.inf).all()
    assert (law[:, 2, 0] == 0).all()
    one, other = (policy.raw_actions(seen, torch.tensor([[0, m, 0]]).expand(5, 3)) for m in (0, 2))
    assert one.shape == (5, 1, 2)
    assert not torch.equal(one, other)  # the continuous part knows what all heads chose
    with pytest.raises(ValueError, match="give mode"):
        policy.raw_actions(seen)


@pytest.mark.parametrize("estimator", ["mixed", "score"])
def test_modes_alone_are_learned(estimator: Any) -> None:
    module = HPOModule(Switches(), hidden=(8,), estimator=estimator, discrete_rate=0.2, diagnose_every=5, reuse=2)
    assert fit(module, 1, 12)["test/cost"] == pytest.approx(2 * 0 + 2 * 0.5)  # 0 allowed in every other step only
    mode, nothing = module.policy.act([0.3], mask=torch.ones(2, 3))
    assert (mode.tolist(), tuple(nothing.shape)) == ([1, 0], (0,))


@pytest.mark.parametrize("options", [{}, {"cross": "auto"}, {"estimator": "score"}, {"estimator": "pathwise"}])
def test_every_estimator_trains_heads_beside_numbers(options: Any) -> None:
    module = HPOModule(LotSizing([10.0, 6.0], 30.0, horizon=6), hidden=(8,), diagnose_every=1, **options)
    before = {name: value.clone() for name, value in module.policy.named_parameters()}
    assert fit(module)["test/cost"] > 0
    moved = {
        name.split(".")[0] for name, value in module.policy.named_parameters() if not torch.equal(value, before[name])
    }
    assert {"continuous", "critic"} <= moved


@pytest.mark.parametrize("options", [{"branch": True}, {"estimator": "straight_through"}])
def test_what_would_step_every_combination_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="the simulator has 2 heads, and every combination"):
        HPOModule(LotSizing([10.0, 6.0], 30.0), **options)


def test_a_policy_of_heads_acts_saves_and_loads(tmp_path: Path) -> None:
    module = HPOModule(LotSizing([10.0, 6.0, 8.0], 40.0, horizon=4), hidden=(8,))
    seen = 2 * torch.rand(7, 3)
    chosen = module.policy.act(seen)
    assert (chosen.mode.shape, chosen.parameters.shape) == ((7, 3), (7, 3))
    assert module.policy.act(seen[0]).mode.shape == (3,)
    save_policy(module.policy, tmp_path / "lots.safetensors")
    loaded = load_policy(tmp_path / "lots.safetensors")
    assert loaded.heads == (2, 2, 2)
    for one, other in zip(loaded.act(seen), chosen, strict=True):
        torch.testing.assert_close(one, other)
    draws = [
        p.act(seen, deterministic=False, generator=torch.Generator().manual_seed(3)) for p in (loaded, module.policy)
    ]
    assert torch.equal(draws[0].mode, draws[1].mode)
    only = loaded.act(seen, mask=torch.tensor([[True, False], [True, True], [False, True]]).expand(7, 3, 2))
    assert (only.mode[:, 0] == 0).all()
    assert (only.mode[:, 2] == 1).all()
    with pytest.raises(ValueError, match=r"it must be \(7, 3, 2\) and allow a mode"):
        loaded.act(seen, mask=torch.zeros(7, 3, 2))


def test_unequal_heads_without_numbers_are_saved_too(tmp_path: Path) -> None:
    module = HPOModule(Switches(), hidden=(8,))
    save_policy(module.policy, tmp_path / "switches.safetensors")
    mask = torch.ones(3, 2, 3)
    assert torch.equal(
        load_policy(tmp_path / "switches.safetensors").act(torch.rand(3, 1), mask).mode,
        module.policy.act(torch.rand(3, 1), mask).mode,
    )


def test_an_agent_of_heads_acts_in_environments() -> None:
    module = HPOModule(LotSizing([10.0, 6.0, 8.0], 40.0, horizon=4), hidden=(8,))
    for env in (SimulatorEnv(module.simulator), SimulatorVectorEnv(module.simulator, 2)):
        seen, _ = env.reset(seed=0)
        action, _ = Agent(module.policy, env).predict(seen)
        env.step(action)
    env = SimulatorEnv(Switches())
    seen, info = env.reset(seed=0)
    policy = HPOModule(Switches(), hidden=(8,)).policy
    action, _ = Agent(policy, env).predict(seen, action_masks=torch.as_tensor(info["action_mask"]))
    assert env.action_space.contains(action)


def test_networks_of_ones_own_see_the_modes() -> None:
    sizes = network_sizes(3, 1, 3, (2, 2, 2))
    own = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in sizes.items()})
    assert sizes["continuous"] == (9, 3)
    simulator = LotSizing([10.0, 6.0, 8.0], 40.0, horizon=4)
    parts = torch.nn.Module()
    for name, child in own.items():
        parts.add_module(name, child)
    fit(HPOModule(simulator, networks=parts))
    parts.continuous = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"networks.continuous fails on observations of shape \(2, 3, 9\)"):
        HPOModule(simulator, networks=parts)


def test_the_best_heuristic_of_lot_sizing_is_above_the_bound() -> None:
    simulator = LotSizing([10.0, 6.0, 8.0], 40.0, setup_time=1.0, horizon=30)
    noise = simulator.sample_noise(200, torch.Generator().manual_seed(1))
    best = best_known(simulator, noise)
    assert best is not None
    assert best.others["lower bound"] < best.cost < 1.2 * best.others["lower bound"]
    never = play(simulator, lambda state, t: (torch.zeros(200, 3, dtype=torch.long), torch.zeros(200, 3)), noise)
    assert reported_cost(simulator, never).mean() > 3 * best.cost
