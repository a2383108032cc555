"""Parallel environments on either side of the boundary, and one sentence for every bad one."""

import gymnasium
import numpy as np
import pytest
import torch

from rl.csp.policies import ScriptedPolicy
from rl.csp.rollout import play
from rl.envs.check_batched import check_game
from rl.envs.check_parallel import check_parallel_env
from rl.envs.parallel import GameAsParallelEnv, ParallelGame
from rl.envs.petting_zoo import require_parallel
from rl.envs.pursuit import PredatorPrey
from rl.envs.sumo import Sumo
from rl.envs.vault_maze import VaultMaze


class Duel:
    """A user's own environment: two counters, masks for one side, a box for the other; both end after five steps."""

    def __init__(self, **flaws):
        self.possible_agents, self.agents, self.flaws = ["knight", "dragon"], [], flaws

    def observation_space(self, agent):
        box = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
        mask = gymnasium.spaces.MultiBinary(3)
        return box if agent == "dragon" else gymnasium.spaces.Dict({"observation": box, "action_mask": mask})

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(3) if agent == "knight" else gymnasium.spaces.Box(0, 4, (1,), np.float64)

    def looks(self):
        shape = self.flaws.get("shape", (2,))
        look = np.full(shape, self.flaws.get("value", self.score), dtype=np.float32)
        mask = np.array([1, 0, 1]) * self.flaws.get("legal", 1)
        return {"knight": {"observation": look, "action_mask": mask}, "dragon": look}

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(None if self.flaws.get("unseeded") else seed)
        self.score, self.time, self.agents = self.rng.normal(), 0, list(self.possible_agents)
        return self.looks(), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert actions["knight"] != 1
        assert 0 <= actions["dragon"][0] <= 4
        self.time += 1
        self.score = 0.5 * self.score + actions["knight"] - actions["dragon"][0] / 4
        if self.time == 5 and not self.flaws.get("endless"):
            self.agents = []
        paid = {"knight": self.flaws.get("reward", self.score), "dragon": 0.0}
        ended = dict.fromkeys(self.possible_agents, not self.agents)
        return self.looks(), paid, ended, dict.fromkeys(ended, False), {agent: {} for agent in ended}


SIDES = {"ours": ["knight"], "target": ["dragon"]}


@pytest.mark.parametrize(
    "make",
    [
        VaultMaze,
        lambda: VaultMaze("grid"),
        PredatorPrey,
        lambda: PredatorPrey("prey", 2, 2, 1),
        Sumo,
        lambda: ParallelGame(Duel, **SIDES, horizon=7),
    ],
)
def test_every_game_keeps_to_the_protocol(make):
    pytest.importorskip("mujoco")
    assert len(check_game(make())) == 3


def test_a_users_environment_as_a_batched_game():
    game = ParallelGame(Duel, **SIDES, horizon=7)
    assert (dict(game.n_actions), dict(game.action_dim)) == ({"ours": 3, "target": 0}, {"ours": 0, "target": 1})
    generator = torch.Generator().manual_seed(0)
    state = game.reset(3, generator)
    assert game.action_mask(state)["ours"][:, 0].tolist() == [[True, False, True]] * 3
    assert "target" not in game.action_mask(state)
    start = game.observe(state)["ours"][:, 0, 0]
    actions = {"ours": torch.tensor([[2], [0], [2]]), "target": torch.tensor([[[1.0]], [[-1.0]], [[0.0]]])}
    following, reward, done = game.step(state, actions, generator)
    torch.testing.assert_close(reward, 0.5 * start + torch.tensor([1.0, 0.0, 1.5]))
    assert not done.any()
    with pytest.raises(ValueError, match="play one batch at a time"):
        game.step(state, actions, generator)
    for _ in range(4):
        following, _, done = game.step(following, actions, generator)
    assert done.all()


def test_more_episodes_than_copies_are_played_one_batch_after_the_other():
    made = []

    class Counted(Duel):
        def __init__(self):
            super().__init__()
            made.append(self)

    game = ParallelGame(Counted, **SIDES, horizon=7, at_once=5)
    knight = ScriptedPolicy(lambda seen, mask, generator: torch.full(seen.shape[:2], 2))
    dragon = ScriptedPolicy(lambda seen, mask, generator: torch.zeros(*seen.shape[:2], 1))
    episodes = play(game, (knight, dragon), 12, torch.Generator().manual_seed(0))
    assert len(made) == 5
    seeds, expected = torch.Generator().manual_seed(0), []
    for seed in [s for n in (5, 5, 2) for s in torch.randint(2**31, (n,), generator=seeds).tolist()]:
        env, total = Duel(), 0.0
        env.reset(seed=seed)
        while env.agents:
            total += env.step({"knight": 2, "dragon": [2.0]})[1]["knight"]
        expected.append(total)
    torch.testing.assert_close(episodes.returns, torch.tensor(expected))
    with pytest.raises(ValueError, match="6 episodes are to begin, but at_once holds 5 copies"):
        game.reset(6, torch.Generator())
    with pytest.raises(ValueError, match="at_once is 4, but checks begin 5 episodes together"):
        ParallelGame(Duel, **SIDES, horizon=7, at_once=4)


def test_an_environment_without_render_draws_nothing():
    game = ParallelGame(Duel, **SIDES, horizon=7)
    with pytest.raises(NotImplementedError, match="Duel has no render"):
        game.frame(game.reset(1, torch.Generator()), 0)


def test_simple_tag_as_a_batched_game_is_our_predator_prey():
    pytest.importorskip("mpe2")
    names = [f"adversary_{i}" for i in range(3)]
    game = ParallelGame("mpe2.simple_tag_v3.parallel_env", names, ["agent_0"], horizon=25)
    ours = PredatorPrey(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = game.reset(2, generator)
    mine = ours.reset(2, generator)
    for row, env in enumerate(game._environments):
        mine["position"][row] = torch.tensor(np.stack([e.state.p_pos for e in env.unwrapped.world.entities]))
    for t in range(25):
        moves = torch.randint(5, (2, 4), generator=generator)
        state, reward, done = game.step(state, {"ours": moves[:, :3], "target": moves[:, 3:]}, generator)
        mine, expected, ended = ours.step(mine, {"predators": moves[:, :3], "prey": moves[:, 3:]}, generator)
        torch.testing.assert_close(reward, expected)
        assert torch.equal(done, ended)
        if t < 24:
            torch.testing.assert_close(game.observe(state)["ours"], ours.observe(mine)["predators"])


@pytest.mark.parametrize("make", [VaultMaze, PredatorPrey, Sumo])
def test_our_games_pass_petting_zoos_own_test_and_our_check(make, recwarn):
    pytest.importorskip("mujoco")
    api_test = pytest.importorskip("pettingzoo.test").parallel_api_test
    env = GameAsParallelEnv(make())
    api_test(env, num_cycles=60)
    sides = [[n for n in env.possible_agents if n.startswith(seat)] for seat in env.game.seats]
    assert len(check_parallel_env(lambda: GameAsParallelEnv(make()), *sides, horizon=env.game.horizon + 1)) == 3
    env.reset(seed=0)
    assert env.render().ndim == 3


def test_a_game_that_goes_out_and_comes_back_is_the_same():
    game, source = VaultMaze("grid"), torch.Generator().manual_seed(3)
    back = ParallelGame(lambda: GameAsParallelEnv(VaultMaze("grid")), ["agent_0"], ["guard_0"], horizon=4)
    state = back.reset(1, source)
    mine = game.reset(1, source)
    for moves in ((0, 0), (0, 0), (2, 1), (0, 1)):
        actions = [torch.tensor([[move]]) for move in moves]
        state, reward, done = back.step(state, dict(zip(back.seats, actions, strict=True)), source)
        mine, expected, ended = game.step(mine, dict(zip(game.seats, actions, strict=True)), source)
        assert torch.equal(reward, expected)
        assert torch.equal(done, ended)


def check(make=Duel, ours=("knight",), target=("dragon",), **options):
    return check_parallel_env(make, list(ours), list(target), horizon=8, **options)


def test_a_good_environment_passes():
    assert check()[1] == "3 random episodes of at most 5 steps keep to their spaces, without NaN"
    assert check(lambda: Duel(endless=True), must_end=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"make": lambda: Duel(value=np.nan)}, "knight observes NaN"),
        ({"make": lambda: Duel(shape=(3,))}, r"shape \(3,\), but its space has shape \(2,\)"),
        ({"make": lambda: Duel(reward=float("inf"))}, "the reward of knight in step 0 is inf"),
        ({"make": lambda: Duel(reward="much")}, "the reward of knight in step 0 is 'much'"),
        ({"make": lambda: Duel(endless=True)}, "has no end within 8 steps"),
        ({"make": lambda: Duel(unseeded=True)}, "must seed all chance"),
        ({"make": lambda: Duel(legal=0)}, "knight has no legal action"),
        (
            {"target": ("wizard",)},
            "seat 'target' has an agent 'wizard', which does not exist; there are knight, dragon",
        ),
        ({"target": ()}, "must be a list of at least one of"),
        ({"ours": ("knight", "dragon")}, "on both sides"),
        ({"ours": ("dragon",)}, "knight belongs to no seat"),
        ({"make": lambda: gymnasium.make("CartPole-v1")}, "Gymnasium environment for one agent"),
        ({"make": object}, "object is no PettingZoo ParallelEnv: it needs possible_agents"),
    ],
)
def test_bad_environments_get_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(**options)


def test_an_environment_that_takes_turns_is_told_how_to_be_converted():
    classic = pytest.importorskip("pettingzoo.classic.rps_v2")
    with pytest.raises(ValueError, match=r"convert it with pettingzoo\.utils\.aec_to_parallel"):
        require_parallel(classic.env())
    classic = pytest.importorskip("pettingzoo.classic.tictactoe_v3")
    with pytest.raises(ValueError, match=r"convert it with pettingzoo\.utils\.turn_based_aec_to_parallel"):
        require_parallel(classic.env())


@pytest.mark.parametrize(("name", "turns"), [("tictactoe_v3", True), ("connect_four_v3", True), ("rps_v2", False)])
def test_games_of_petting_zoo_that_take_turns_are_played(name, turns):
    classic = pytest.importorskip(f"pettingzoo.classic.{name}")
    first, second = classic.env().possible_agents
    game = ParallelGame(classic.env, [first], [second], horizon=50)
    assert len(check_game(game)) == 3
    assert len(check_parallel_env(classic.env, [first], [second], horizon=50, must_end=False)) == 3
    state = game.reset(2, torch.Generator().manual_seed(0))
    for t in range(4):
        active, masks = game.active(state), game.action_mask(state)
        first, second = (active[seat][:, 0].tolist() for seat in game.seats)
        assert (first, second) == (([t % 2 == 0] * 2, [t % 2 == 1] * 2) if turns else ([True] * 2, [True] * 2))
        if turns:
            waiting = masks[game.seats[(t + 1) % 2]][:, 0]
            assert waiting.sum(1).tolist() == [1, 1]  # an action that nobody carries out
        moves = (
            {seat: torch.full((2, 1), t) for seat in game.seats}
            if turns
            else {seat: torch.ones(2, 1, dtype=torch.int64) for seat in game.seats}
        )
        state, _, _ = game.step(state, moves, torch.Generator())


class Leavers(Duel):
    """A side of two that shrinks: the second dragon leaves after two of five steps."""

    def __init__(self):
        super().__init__()
        self.possible_agents = ["knight", "dragon", "wyvern"]

    def observation_space(self, agent):
        return gymnasium.spaces.Box(-10, 10, (2,), np.float32)

    def action_space(self, agent):
        return gymnasium.spaces.MultiDiscrete([2, 3])

    def looks(self):
        return dict.fromkeys(self.agents, np.full(2, self.score, dtype=np.float32))

    def step(self, actions):
        assert set(actions) == set(self.agents)
        assert all(move.shape == (2,) and (move < [2, 3]).all() for move in actions.values())
        self.time += 1
        self.score = float(actions["knight"] @ [3, 1])
        ended = {name: self.time == 5 or (self.time == 2 and name == "wyvern") for name in self.agents}
        paid = dict.fromkeys(self.agents, self.score)
        self.agents = [name for name in self.agents if not ended[name]]
        return self.looks(), paid, ended, dict.fromkeys(ended, False), {agent: {} for agent in ended}


def test_agents_that_leave_are_not_active_and_several_choices_are_numbered_through():
    game = ParallelGame(Leavers, ["knight"], ["dragon", "wyvern"], horizon=7)
    assert game.n_actions == {"ours": 6, "target": 6}
    state = game.reset(2, torch.Generator().manual_seed(0))
    for t in range(5):
        assert game.active(state)["target"].tolist() == [[True, t < 2]] * 2
        moves = {"ours": torch.tensor([[t], [5]]), "target": torch.zeros(2, 2, dtype=torch.int64)}
        state, reward, done = game.step(state, moves, torch.Generator())
        assert reward.tolist() == [float(3 * (t // 3) + t % 3), 5.0]
    assert done.all()


def test_observations_outside_the_box_are_impossible():
    game = ParallelGame(Leavers, ["knight"], ["dragon", "wyvern"], horizon=7)
    seen = torch.tensor([[10.0, -10.0], [10.5, 0.0], [0.0, -11.0]])
    assert game.impossible("target", seen).tolist() == [False, True, True]


class Trio(Duel):
    def __init__(self):
        super().__init__()
        self.possible_agents = ["knight", "dragon", "second dragon"]


def test_a_side_of_two_needs_equal_spaces_and_an_import_path_must_exist():
    with pytest.raises(ValueError, match="dragon and knight are both in seat 'ours'"):
        ParallelGame(Trio, ["knight", "dragon"], ["second dragon"], 5)
    with pytest.raises(ValueError, match=r"'nowhere\.make' cannot be imported"):
        ParallelGame("nowhere.make", ["a"], ["b"], 5)


@pytest.mark.parametrize("path", ["subprocess.getoutput", "os.system", "builtins.dict", "pathlib.Path"])
def test_a_path_to_what_makes_no_environment_is_not_called(path, tmp_path):
    arguments = {"cmd": f"touch {tmp_path / 'ran'}"}
    with pytest.raises(ValueError, match=f"environment '{path}' is neither called env, raw_env, parallel_env"):
        ParallelGame(path, ["knight"], ["dragon"], 5, arguments)
    assert not (tmp_path / "ran").exists()


def make_duel() -> Duel:
    return Duel()


@pytest.mark.parametrize("name", ["Duel", "make_duel"])
def test_the_path_of_a_class_or_of_an_annotated_function_is_followed(name):
    assert ParallelGame(f"{__name__}.{name}", ["knight"], ["dragon"], 5).players == {"ours": 1, "target": 1}


class Flawed(VaultMaze):
    """A batched game of a user with one flaw."""

    def __init__(self, flaw):
        super().__init__()
        self.flaw = flaw

    def observe(self, state):
        seen = super().observe(state)
        return {seat: look.double() for seat, look in seen.items()} if self.flaw == "type" else seen

    def step(self, state, actions, generator):
        if self.flaw == "chance":
            generator = torch.Generator()
            generator.seed()
        following, reward, done = super().step(state, actions, generator)
        if self.flaw == "input":
            state["node"][:] = 6
        if self.flaw == "done":
            reward = reward + 1
        if self.flaw == "chance":
            reward = reward + torch.rand(1, generator=generator) * ~state["done"]
        if self.flaw == "reward":
            reward = reward.double()
        return following, reward, done


@pytest.mark.parametrize(
    ("flaw", "sentence"),
    [
        ("type", r"agent must observe float32 \(5, 1, 7\), but observes torch.float64"),
        ("chance", "draw all chance from the generator"),
        ("input", "step 0 writes into the state"),
        ("done", "must stay done, with reward 0"),
        ("reward", r"is not a finite float32 \(5,\)"),
    ],
)
def test_bad_batched_games_get_one_sentence(flaw, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_game(Flawed(flaw))
