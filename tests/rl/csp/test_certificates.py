"""The worst case of policies from anywhere: certified where the game is tabular, else an estimate that says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.csp import SeatPolicy, TablePolicy, certify, load_policy, pairs_of, play, record_target, save_policy
from rl.csp.dataset import TargetData
from rl.envs import FileGame, SpielGame, VaultMaze
from rl.envs.spiel import sequence_form
from rl.envs.vault_maze import behaviour, true_guard
from rl.exact import Free, Intervals, MarkovGame, Pinned, certified_sets, solve_extensive, worst_case, worst_episode
from tests.rl.csp.test_policies_out import Push

MAZE = VaultMaze()
PLAN = np.eye(3)[[0, 0, 0, 2, 0, 0, 0]] * 0.8 + 0.2 / 3


def guard(episodes: int, seed: int = 0) -> TargetData:
    generator = torch.Generator().manual_seed(seed)
    return record_target(MAZE, MAZE.policy(behaviour()), MAZE.policy(true_guard()), episodes, generator)


def random_game(generator: np.random.Generator, S: int = 4, A: int = 2, B: int = 2) -> MarkovGame:
    transition = generator.dirichlet(np.ones(S), size=(S, A, B))
    return MarkovGame(transition, generator.normal(size=(S, A, B)), 0.9, np.eye(S)[0])


def test_episodes_that_end_are_worth_what_the_endless_solver_says() -> None:
    for sets in ([Pinned(row) for row in true_guard()], [Free(2)] * 7, certified_sets(MAZE.exact, 40 * true_guard())):
        found = worst_episode(MAZE.exact, PLAN, sets, MAZE.terminal, MAZE.horizon)
        assert found == pytest.approx(worst_case(MAZE.exact, PLAN, sets).value, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_episodes_that_are_cut_are_worth_their_steps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    game = random_game(generator)
    plan, target = (generator.dirichlet(np.ones(2), size=4) for _ in range(2))
    step = np.einsum("sa,sb,sabt->st", plan, target, game.transition)
    reward = np.einsum("sa,sb,sab->s", plan, target, game.reward)
    law, value = game.start, 0.0
    for t in range(3):
        value += 0.9**t * float(law @ reward)
        law = law @ step
    nothing = np.zeros(4, dtype=bool)
    assert worst_episode(game, plan, [Pinned(row) for row in target], nothing, 3) == pytest.approx(value)
    # Known by intervals only: no plan and no target within them is worth less, and none of both is worth it all.
    lower, upper = (plan - 0.1).clip(0), (plan + 0.1).clip(None, 1)
    within = [Intervals(*row) for row in zip(lower, upper, strict=True)]
    bound = worst_episode(game, within, [Free(2)] * 4, nothing, 3)
    for _ in range(50):
        first = (plan[:, 0] + generator.uniform(-0.1, 0.1, 4)).clip(lower[:, 0], upper[:, 0])
        first = first.clip(1 - upper[:, 1], 1 - lower[:, 1])
        other = np.stack([first, 1 - first], axis=1)
        assert worst_episode(game, other, [Free(2)] * 4, nothing, 3) >= bound - 1e-9
    assert bound < worst_episode(game, plan, [Free(2)] * 4, nothing, 3)


def test_a_policy_whose_law_is_known_is_certified_exactly() -> None:
    data = guard(300)
    counts = MAZE.state_counts(data.pairs().observations, data.pairs().actions)
    exact = worst_case(MAZE.exact, PLAN, certified_sets(MAZE.exact, counts)).value
    verdict = certify(TablePolicy(MAZE.observations, PLAN), data, MAZE)
    assert verdict.is_certified
    assert verdict.value == pytest.approx(exact, abs=1e-6)
    assert verdict.against_anyone is not None
    assert verdict.likely is not None
    assert verdict.against_anyone < verdict.value < verdict.likely < MAZE.exact.value(PLAN, true_guard())
    assert f"at least {verdict.value:.4f}" in str(verdict)
    assert "its probabilities are known" in str(verdict)
    assert "a target that learns, changes or answers to us" in str(verdict)


def test_a_function_is_certified_by_its_draws_and_never_above() -> None:
    data = guard(300)
    exact = certify(TablePolicy(MAZE.observations, PLAN), data, MAZE)
    verdict = certify(MAZE.policy(PLAN), data, MAZE)
    assert verdict.is_certified
    assert exact.value - 0.03 < verdict.value <= exact.value
    assert "20000 draws a state" in str(verdict)
    few = certify(MAZE.policy(PLAN), data, MAZE, draws=100)
    assert few.value < verdict.value


class Model:
    """What Stable-Baselines3's models have of what is used here."""

    def __init__(self, table: Any) -> None:
        self.table, self.policy = torch.as_tensor(table), self

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        law = self.table[torch.from_numpy(observation).argmax(1)]
        return (law.argmax(1) if deterministic else torch.multinomial(law, 1)[:, 0]).numpy(), None


class Telling(Model):
    """One that tells its law too."""

    def get_distribution(self, observation: torch.Tensor) -> Any:
        class Distribution:
            distribution = torch.distributions.Categorical(self.table[observation.argmax(1)])

        return Distribution()


def test_a_model_of_stable_baselines_is_certified() -> None:
    data = guard(300)
    exact = certify(TablePolicy(MAZE.observations, PLAN), data, MAZE).value
    assert certify(Telling(PLAN), data, MAZE).value == pytest.approx(exact, abs=1e-6)
    assert certify(Telling(np.eye(3)[[2] * 7]), data, MAZE).value == pytest.approx(0.3)
    likeliest = np.eye(3)[PLAN.argmax(1)]
    wanted = certify(TablePolicy(MAZE.observations, likeliest), data, MAZE).value
    assert certify(Telling(PLAN), data, MAZE, deterministic=True).value == pytest.approx(wanted, abs=1e-6)
    torch.manual_seed(0)  # the model draws by itself
    assert exact - 0.03 < certify(Model(PLAN), data, MAZE).value <= exact + 1e-9


@pytest.mark.parametrize("ours", [0, 1])
def test_a_policy_of_a_tree_is_certified_exactly(ours: int) -> None:
    pytest.importorskip("pyspiel")
    game, form = SpielGame("kuhn_poker", ours), sequence_form("kuhn_poker")
    nash = solve_extensive(form, seat=ours)
    policies = []
    for seat, laws in zip(game.seats, (form.behaviour(ours, nash.plan), {}), strict=True):
        keys, looks, legal = game.information_states(seat)
        table = np.zeros(legal[:, 0].shape)
        for row, key, allowed in zip(table, keys, legal[:, 0].numpy(), strict=True):
            row[allowed] = laws.get(key, np.full(allowed.sum(), 1 / allowed.sum()))
        policies.append(TablePolicy(looks[:, 0], table))
    lived = play(game, policies, 3000, torch.Generator().manual_seed(0))
    verdict = certify(policies[0], pairs_of(lived, game.seats[1]), game)
    assert verdict.is_certified
    assert verdict.against_anyone == pytest.approx(nash.value, abs=1e-6)  # -1/18 for the first to move
    uniform = form.realisation(1 - ours, {})
    true = form.value(ours, nash.plan, uniform)
    assert nash.value < verdict.value <= true
    assert "of 6 information sets of the game" in str(verdict)


def test_certified_values_of_cut_episodes_are_those_of_episodes() -> None:
    game = FileGame(
        transition=np.ones((1, 2, 2, 1)), reward=[[[1.0, 1.0], [0.0, 2.0]]], start=[1.0], terminal=[], horizon=3
    )
    assert not game.ends()
    assert VaultMaze().ends()
    data = record_target(
        game, game.policy(np.array([[1.0, 0.0]])), game.policy(np.array([[0.5, 0.5]])), 5, torch.Generator()
    )
    assert certify(game.policy(np.array([[1.0, 0.0]])), data, game).value == pytest.approx(1 + 0.99 + 0.99**2, abs=0.01)


def test_elsewhere_nothing_is_called_certified() -> None:
    game, generator = Push(), torch.Generator().manual_seed(0)

    def still(seen: torch.Tensor, mask: Any, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(*seen.shape[:2], 2)

    def left(seen: torch.Tensor, mask: Any, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(*seen.shape[:2], 1, generator=generator).clamp(-1, 1)

    data = record_target(game, still, left, 6, generator)
    few = {"iterations": 1, "episodes": 8, "test_episodes": 32}
    verdict = certify(still, data, game, **few)
    assert not verdict.is_certified
    assert (verdict.likely, verdict.against_anyone) == (None, None)
    assert "Nothing is certified, as the game is neither tabular nor a tree of OpenSpiel" in str(verdict)
    assert "no promise" in str(verdict)


class Reaching(Model):
    """A model of real actions between 0 and 10, as its own environment takes them."""

    action_space = spaces.Box(0, 10, (2,), np.float64)

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        return np.full((len(observation), 2), self.table), None


def test_a_models_actions_are_taken_in_the_units_of_its_space() -> None:
    game = Push()
    data = record_target(
        game,
        lambda seen, mask, generator: torch.zeros(*seen.shape[:2], 2),
        lambda seen, mask, generator: torch.zeros(*seen.shape[:2], 1),
        6,
        torch.Generator().manual_seed(0),
    )
    few = {"iterations": 1, "episodes": 8, "test_episodes": 32}
    wanted = certify(lambda seen, mask, generator: torch.full((*seen.shape[:2], 2), -0.5), data, game, **few)
    assert certify(Reaching(2.5), data, game, **few).value == pytest.approx(wanted.value)
    with pytest.raises(ValueError, match=r"is outside Box\(0.0, 10.0"):
        certify(Reaching(11.0), data, game, **few)


class Remembering(Model):
    """A model that gives back a state, as recurrent ones do."""

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, Any]:
        return super().predict(observation, deterministic)[0], (np.zeros(1),)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    data = guard(5)
    symmetric = FileGame(payoff=[[0, 1], [1, 0]])
    save_policy(SeatPolicy.of(symmetric, "target", hidden=[4]), tmp_path / "theirs.safetensors", symmetric, "target")
    records = record_target(symmetric, *[symmetric.policy(np.full((2, 2), 0.5))] * 2, 3, torch.Generator())
    with pytest.raises(ValueError, match="is a policy of the seat 'target'; give one of the seat 'agent'"):
        certify(load_policy(tmp_path / "theirs.safetensors"), records, symmetric)
    with pytest.raises(ValueError, match="its predict gives a state, a memory of the episode"):
        certify(Remembering(PLAN), data, MAZE)
    for wrong in (tmp_path / "data.npz", {}, None):
        with pytest.raises(ValueError, match="data: expected text or a TargetData or a Pairs, got"):
            certify(Model(PLAN), wrong, MAZE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="game: expected a BatchedGame"):
        certify(Model(PLAN), data, "rl.envs.VaultMaze")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'iteration'"):
        certify(Model(PLAN), data, MAZE, iteration=3)
    with pytest.raises(ValueError, match="the policy is a str; give one of this package"):
        certify("policy.pt", data, MAZE)
    with pytest.raises(ValueError, match="actions from 7 to 7; this seat has 0 to 2"):
        certify(lambda seen, mask, generator: torch.full(seen.shape[:2], 7), data, MAZE)
    with pytest.raises(ValueError, match="failure"):
        certify(MAZE.policy(PLAN), data, MAZE, failure=0.0)
    remembers = SeatPolicy.of(MAZE, "agent", hidden=[4], memory=2)
    few = {"iterations": 1, "episodes": 4, "test_episodes": 8}
    assert "the policy has a memory" in str(certify(remembers, data, MAZE, **few))
