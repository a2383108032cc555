"""Environments of others: every space that the guide names, and what would spoil training without a word."""

import gymnasium
import numpy as np
import pytest
import torch

from rl.csp.dataset import check_dataset
from rl.csp.recorder import Recorder
from rl.envs.check_batched import check_game
from rl.envs.check_parallel import check_parallel_env
from rl.envs.parallel import ParallelGame
from tests.rl.envs.test_parallel import SIDES, Duel, Flawed, check


class Spaced(Duel):
    """Observations and actions of any space; four steps."""

    def __init__(self, looks, moves, **flaws):
        super().__init__(**flaws)
        self.spaces = looks, moves

    def observation_space(self, agent):
        return self.spaces[0]

    def action_space(self, agent):
        return self.spaces[1]

    def looks(self):
        return {agent: self.spaces[0].sample() for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, list(self.possible_agents)
        self.spaces[0].seed(seed)
        return self.looks(), {agent: dict(self.flaws.get("info", {})) for agent in self.agents}

    def step(self, actions):
        assert all(self.spaces[1].contains(action) for action in actions.values())
        self.time += 1
        paid = dict.fromkeys(self.flaws.get("paid", self.agents), 1.0)
        ended = dict.fromkeys(self.agents, self.time == 4)
        self.agents = [] if self.time == 4 else self.agents
        return self.looks(), paid, ended, dict.fromkeys(ended, False), {agent: {} for agent in ended}


BOX, TWO = gymnasium.spaces.Box(-5, 5, (2,), np.float32), gymnasium.spaces.Discrete(2)
LOOKS = {
    "a dictionary": gymnasium.spaces.Dict({"kind": gymnasium.spaces.Discrete(3), "place": BOX}),
    "a tuple": gymnasium.spaces.Tuple([BOX, gymnasium.spaces.MultiBinary(2)]),
    "a number": gymnasium.spaces.Discrete(4, start=2),
    "a picture": gymnasium.spaces.Box(0, 255, (2, 2, 1), np.uint8),
}
MOVES = {
    "several bits": gymnasium.spaces.MultiBinary(3),
    "a dictionary": gymnasium.spaces.Dict({"where": TWO, "how": gymnasium.spaces.Discrete(3, start=1)}),
    "a tuple of boxes": gymnasium.spaces.Tuple([BOX, gymnasium.spaces.Box(0, 1, (1,), np.float32)]),
}


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("moves", MOVES)
def test_every_space_that_the_guide_names_is_played_and_recorded(looks, moves):
    def make():
        return Spaced(LOOKS[looks], MOVES[moves])

    assert len(check_parallel_env(make, **SIDES, horizon=8)) == 3
    game = ParallelGame(make, **SIDES, horizon=8)
    assert len(check_game(game)) == 3
    env = Recorder(make(), SIDES["target"])
    MOVES[moves].seed(0)
    for episode in range(3):
        first = env.reset(seed=episode)[0]["dragon"]
        while env.agents:
            env.step({name: env.action_space(name).sample() for name in env.agents})
    flat = gymnasium.spaces.flatten(LOOKS[looks], first).astype(np.float32)
    np.testing.assert_allclose(env.data().observation[-4], flat)
    assert check_dataset(env.data(), game)[0] == "12 steps of target in 3 episodes"
    beyond = torch.from_numpy(np.stack([flat, flat + 300]))
    assert game.impossible("target", beyond).tolist() == [False, True]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Spaced(gymnasium.spaces.Dict({"action_mask": gymnasium.spaces.MultiBinary(2), "seen": BOX}), TWO),
            "observes action_mask, seen; beside action_mask there must be observation alone",
        ),
        (lambda: Spaced(BOX, TWO, info={"action_mask": [1, 0]}), "is told its legal actions in infos"),
    ],
)
def test_masks_that_nobody_would_read_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_parallel_env(make, **SIDES, horizon=8)
    with pytest.raises(ValueError, match=sentence):
        ParallelGame(make, **SIDES, horizon=8).reset(1, torch.Generator())


def test_a_step_without_our_reward_is_refused():
    game = ParallelGame(lambda: Spaced(BOX, TWO, paid=["dragon"]), **SIDES, horizon=8)
    for tried in (lambda: check_game(game), lambda: check_parallel_env(game.new_environment, **SIDES, horizon=8)):
        with pytest.raises(ValueError, match="the environment pays knight nothing for a step that it took"):
            tried()


def test_an_environment_that_inherits_its_render_says_how_it_would_draw():
    aec = pytest.importorskip("pettingzoo").AECEnv
    game = ParallelGame(lambda: Rendering(aec.render), **SIDES, horizon=7)
    with pytest.raises(NotImplementedError, match="rendered nothing; give arguments"):
        game.frame(game.reset(1, torch.Generator()), 0)


class Rendering(Duel):
    def __init__(self, render):
        super().__init__()
        self.render = lambda: render(self)


class Rewarded(Duel):
    """An environment that pays the same whatever its unseeded start shows."""

    def step(self, actions):
        looks, _, *rest = super().step(actions)
        return looks, {"knight": 1.0, "dragon": -1.0}, *rest


def test_chance_that_is_only_seen_is_told_too():
    with pytest.raises(ValueError, match="must seed all chance"):
        check(lambda: Rewarded(unseeded=True))
    with pytest.raises(ValueError, match="draw all chance from the generator"):
        check_game(ParallelGame(lambda: Rewarded(unseeded=True), **SIDES, horizon=7))


def test_chance_that_is_not_seeded_is_refused_or_told():
    for tell in (
        lambda **how: check(lambda: Duel(unseeded=True), **how),
        lambda **how: check_game(Flawed("chance"), **how),
    ):
        with pytest.raises(ValueError, match=r"with the same .* differ"):
            tell()
        assert tell(must_repeat=False)[-1].startswith("warning: two episodes with the same")
