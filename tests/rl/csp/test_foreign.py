"""Data from elsewhere: any environment of PettingZoo while it is played, tables, Minari's datasets, RLlib's files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces

from rl.csp import Recorder, check_dataset, from_minari, from_rllib, load_data, record_target, save_data
from rl.envs import GameAsParallelEnv, ParallelGame, SpielGame, VaultMaze
from rl.envs.native_actions import action_size, game_action, native_action
from rl.envs.vault_maze import behaviour, true_guard

JOINT = spaces.Dict(
    {
        "where": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary(2)]),
        "how": spaces.MultiDiscrete([2, 4]),
    }
)


def test_choices_of_every_depth_are_numbered_through_and_back() -> None:
    assert action_size(JOINT, "a") == (2 * 4 * 3 * 2 * 2, 0)
    seen = set()
    for number in range(96):
        action = native_action(JOINT, number)
        assert JOINT.contains(action)
        assert game_action(JOINT, action) == number
        seen.add(repr(action))
    assert len(seen) == 96


def test_real_actions_of_every_depth_are_scaled_and_back() -> None:
    space = spaces.Tuple([spaces.Box(0, 10, (2,)), spaces.Dict({"turn": spaces.Box(-1, 3, (1, 1))})])
    assert action_size(space, "a") == (0, 3)
    action: Any = native_action(space, np.array([-1.0, 0.0, 2.0], dtype=np.float32))
    assert action[0].tolist() == [0, 5]
    assert action[1]["turn"].tolist() == [[3]]
    assert game_action(space, action).tolist() == pytest.approx([-1, 0, 1])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))]), "mixes choices with real numbers"),
        (spaces.MultiBinary(11), "is 2048 actions when they are numbered through"),
        (spaces.Box(0, np.inf, (1,)), "a bounded Box"),
        (spaces.Text(3), "must be Discrete"),
    ],
)
def test_other_actions_are_refused(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_size(space, "a")


@pytest.mark.parametrize("action", [{"where": (5, [0, 0]), "how": [0, 0]}, {"where": (0, [0, 0])}, 3])
def test_actions_outside_their_space_are_refused(action: Any) -> None:
    with pytest.raises(ValueError, match=r"is outside|is no element"):
        game_action(JOINT, action)


def test_what_is_recorded_outside_is_what_is_recorded_inside(tmp_path: Path) -> None:
    maze, generator = VaultMaze(), torch.Generator().manual_seed(0)
    ours, theirs = maze.policy(behaviour()), maze.policy(true_guard())
    env = Recorder(GameAsParallelEnv(maze), ["guard_0"])
    for episode in range(5):
        seen: Any = env.reset(seed=episode)[0]
        while env.agents:
            looks = {name: torch.from_numpy(look)[None, None] for name, look in seen.items()}
            moves = {name: act(looks[name], None, generator).item() for name, act in zip(seen, (ours, theirs))}  # noqa: B905
            seen, *_ = env.step(moves)
    env.save(tmp_path / "guard.npz")
    data = load_data(tmp_path / "guard.npz")
    game = ParallelGame(lambda: GameAsParallelEnv(maze), ["agent_0"], ["guard_0"], 4)
    assert check_dataset(data, game)[0].endswith("in 5 episodes")
    law = true_guard()[data.observation.argmax(1)]
    assert (law[np.arange(len(law)), data.action] > 0).all()
    assert data.last is not None
    assert data.last.sum() == 5
    env.reset(seed=9)
    env.step({"agent_0": 0, "guard_0": 1})
    assert env.data().last is None  # the last episode has no end yet
    with pytest.raises(ValueError, match="list of agents"):
        Recorder(GameAsParallelEnv(maze), ["thief"])


def test_an_action_that_is_given_while_waiting_is_not_the_targets() -> None:
    """In a parallel loop everybody gives an action, also who waits; nobody carries that out."""
    tictactoe = pytest.importorskip("pettingzoo.classic.tictactoe_v3")
    conversions = pytest.importorskip("pettingzoo.utils.conversions")
    env = Recorder(conversions.turn_based_aec_to_parallel(tictactoe.env()), ["player_2"])
    env.reset(seed=0)
    for step in range(4):
        env.step({"player_1": step, "player_2": step})
    assert env.data().action.tolist() == [1, 3]
    check_dataset(env.data(), ParallelGame("pettingzoo.classic.tictactoe_v3.env", ["player_1"], ["player_2"], 9))


def test_a_game_of_cards_is_recorded_as_it_records_itself() -> None:
    pytest.importorskip("pyspiel")
    game, random = SpielGame("kuhn_poker"), np.random.default_rng(0)
    env = Recorder(GameAsParallelEnv(game), ["player_1_0"])
    turns = 0
    for episode in range(20):
        seen: Any = env.reset(seed=episode)[0]
        while env.agents:
            turns += bool(seen["player_1_0"]["observation"].any())  # the game shows zeros to who waits
            moves = {name: int(random.choice(np.flatnonzero(look["action_mask"]))) for name, look in seen.items()}
            seen, *_ = env.step(moves)
    data = env.data()
    assert len(data.t) == turns
    assert data.observation.any(1).all()
    assert check_dataset(data, game)[0] == f"{turns} steps of player_1 in 20 episodes"
    within = ParallelGame(lambda: GameAsParallelEnv(game), ["player_0_0"], ["player_1_0"], 9)
    state = within.reset(2, torch.Generator().manual_seed(0))
    assert {seat: who.tolist() for seat, who in within.active(state).items()} == {
        "ours": [[True]] * 2,
        "target": [[False]] * 2,
    }


@pytest.mark.parametrize(("ours", "target"), [("player_1", "player_2"), ("player_2", "player_1")])
def test_turns_of_others_are_recorded_without_gaps(ours: str, target: str) -> None:
    tictactoe = pytest.importorskip("pettingzoo.classic.tictactoe_v3")
    env, random = Recorder(tictactoe.env(), [target]), np.random.default_rng(0)
    taken = []
    for episode in range(3):
        env.reset(seed=episode)
        for name in env.agent_iter():
            look, _, ended, cut, _ = env.last()
            action = None if ended or cut else int(random.choice(np.flatnonzero(look["action_mask"])))
            taken += [action] if name == target and action is not None else []
            env.step(action)
    data = env.data()
    assert data.action.tolist() == taken
    assert data.action_mask is not None
    check_dataset(data, ParallelGame("pettingzoo.classic.tictactoe_v3.env", [ours], [target], 9))
    exchanged = ParallelGame("pettingzoo.classic.tictactoe_v3.env", [target], [ours], 9)
    with pytest.raises(ValueError, match=f"is of the seat '{target}', but the target is 'target', and its player 0 '"):
        check_dataset(data, exchanged)


@pytest.mark.parametrize(
    ("module", "maker", "target"),
    [
        ("mpe2.simple_tag_v3", "parallel_env", ["agent_0"]),
        ("mpe2.simple_tag_v3", "parallel_env", ["adversary_0", "adversary_1", "adversary_2"]),
        ("pettingzoo.classic.rps_v2", "env", ["player_1"]),
    ],
)
def test_environments_of_others_are_recorded_as_games_see_them(module: str, maker: str, target: list[str]) -> None:
    make = getattr(pytest.importorskip(module), maker)
    env = Recorder(make(), target)
    others = [name for name in env.possible_agents if name not in target]
    for episode in range(2):
        env.reset(seed=episode)
        for name in env.possible_agents:
            env.action_space(name).seed(episode)
        if hasattr(env, "agent_iter"):
            for name in env.agent_iter():
                _, _, ended, cut, _ = env.last()
                env.step(None if ended or cut else env.action_space(name).sample())
        while env.agents:
            env.step({name: env.action_space(name).sample() for name in env.agents})
    data = env.data()
    assert data.last is not None
    assert data.last.sum() == 2 * len(target)
    lines = check_dataset(data, ParallelGame(f"{module}.{maker}", others, target, int(data.t.max()) + 1))
    assert lines[0] == f"{len(data.t)} steps of target in 2 episodes"


def test_tables_of_numbers_are_data(tmp_path: Path) -> None:
    maze = VaultMaze("grid")
    generator = torch.Generator().manual_seed(0)
    data = record_target(maze, maze.policy(behaviour()), maze.policy(true_guard()), 4, generator)
    for name in ("guard.csv", "guard.parquet"):
        save_data(tmp_path / name, data)
        read = load_data(tmp_path / name)
        assert np.allclose(read.observation, data.observation)
        assert np.array_equal(read.action, data.action)
        assert np.array_equal(read.last, data.last)
        check_dataset(read, maze)
    frame = pd.read_csv(tmp_path / "guard.csv")
    frame.to_parquet(tmp_path / "spread.parquet")
    assert np.allclose(load_data(tmp_path / "spread.parquet").observation, data.observation)
    for changes, message in (
        (frame.drop(columns="observation_1"), "has observation_3 but no observation_1"),
        (frame.assign(observation=0.0), "has observation and numbered columns of it"),
    ):
        changes.to_csv(tmp_path / "wrong.csv", index=False)
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / "wrong.csv")
    (tmp_path / "wrong.csv").write_text("observation,action,episode,t\n'[0, 1]',0,0,0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a vector takes a column an entry"):
        load_data(tmp_path / "wrong.csv")


def test_a_dataset_of_minari_is_data() -> None:
    look = spaces.Dict({"observation": spaces.Discrete(3), "action_mask": spaces.MultiBinary(2)})
    episode = SimpleNamespace(
        observations={
            "a": {"observation": np.array([0, 2, 1]), "action_mask": np.array([[1, 1], [0, 1], [1, 1]])},
            "b": np.zeros((3, 2)),
        },
        actions={"a": np.array([0, 1]), "b": np.array([[0.0], [4.0]])},
    )
    dataset = SimpleNamespace(
        observation_space=spaces.Dict({"a": look, "b": spaces.Box(0, 1, (2,))}),
        action_space=spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 4, (1,))}),
        iterate_episodes=lambda: iter([episode, episode]),
    )
    data = from_minari(dataset, ["a"])
    assert data.observation.tolist() == [[1, 0, 0], [0, 0, 1]] * 2
    assert (data.action.tolist(), data.episode.tolist(), data.t.tolist()) == ([0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1])
    assert data.last is not None
    assert data.last.tolist() == [False, True, False, True]
    assert data.action_mask is not None
    assert data.action_mask.tolist() == [[True, True], [False, True]] * 2
    assert from_minari(dataset, ["b"]).action.tolist() == [[-1], [1]] * 2
    single = SimpleNamespace(
        observation_space=spaces.Box(0, 1, (2,)),
        action_space=spaces.Discrete(2),
        iterate_episodes=lambda: iter([SimpleNamespace(observations=np.zeros((3, 2)), actions=np.array([1, 0]))]),
    )
    assert from_minari(single).action.tolist() == [1, 0]
    with pytest.raises(ValueError, match="no agent 'c'; its observations are of a, b"):
        from_minari(dataset, ["c"])


def test_a_file_of_rllib_is_data(tmp_path: Path) -> None:
    rows = {"obs": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], "actions": [0, 1, 1], "eps_id": [7, 7, 9]}
    alone, several = tmp_path / "alone.json", tmp_path / "several.json"
    alone.write_text(json.dumps({"type": "SampleBatch", **rows}) + "\n", encoding="utf-8")
    batch = {"type": "MultiAgentBatch", "policy_batches": {"prey": {**rows, "agent_index": [4, 2, 4]}, "other": rows}}
    several.write_text(f"{json.dumps(batch)}\n{json.dumps(batch)}\n", encoding="utf-8")
    data = from_rllib(alone)
    assert (data.action.tolist(), data.episode.tolist(), data.t.tolist()) == ([0, 1, 1], [0, 0, 1], [0, 1, 0])
    data = from_rllib(several, "prey")
    assert data.player.tolist() == [1, 0, 1] * 2
    assert data.episode.tolist() == [0, 0, 1] * 2
    assert data.t.tolist() == [0, 0, 0, 1, 1, 1]
    for arguments, message in (
        ((several,), "holds the policies prey, other; say which"),
        ((several, "nobody"), "holds no step of the target"),
        ((alone, "prey"), "leave policy out"),
    ):
        with pytest.raises(ValueError, match=message):
            from_rllib(*arguments)
    alone.write_text(json.dumps({"type": "SampleBatch", **rows, "obs": "BCJNGGhAbQ"}), encoding="utf-8")
    with pytest.raises(ValueError, match="is packed, and unpacking it would run its code"):
        from_rllib(alone)
    alone.write_text("no json", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is no batch"):
        from_rllib(alone)
