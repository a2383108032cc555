"""The data file: round trips, recording, and one sentence for every kind of bad file."""

import re

import numpy as np
import pytest
import torch

from rl.csp.dataset import TargetData, check_dataset, load_data, record_target, save_data
from rl.envs.vault_maze import VaultMaze, behaviour, true_guard


@pytest.fixture(scope="module")
def game():
    return VaultMaze()


@pytest.fixture(scope="module")
def data(game):
    ours, guard = (game.policy(table) for table in (behaviour(), true_guard()))
    return record_target(game, ours, guard, 400, torch.Generator().manual_seed(0))


def test_recorded_data_show_what_the_guard_does_where_the_behaviour_goes(game, data):
    assert check_dataset(data, game)[0] == f"{len(data.t)} steps of guard in 400 episodes"
    counts = game.state_counts(torch.from_numpy(data.observation), torch.from_numpy(data.action))
    assert counts.sum(1)[[0, 1, 2, 4, 5, 6]].tolist() == [400, 400, 0, 0, 0, 0]
    assert counts[3].sum() == counts[1, 0]
    np.testing.assert_allclose(counts[1] / 400, true_guard()[1], atol=0.06)
    again = record_target(
        game, game.policy(behaviour()), game.policy(true_guard()), 400, torch.Generator().manual_seed(0)
    )
    assert all(np.array_equal(a, b) for a, b in zip(data, again, strict=True) if a is not None)


@pytest.mark.parametrize("name", ["data.npz", "data.parquet"])
def test_round_trip(data, tmp_path, name):
    save_data(tmp_path / name, data)
    loaded = load_data(tmp_path / name)
    for before, after in zip(data, loaded, strict=True):
        assert (before is None and after is None) or (before.dtype == after.dtype and np.array_equal(before, after))


def test_real_actions_masks_and_players_survive_a_file(tmp_path):
    generator = np.random.default_rng(0)
    data = TargetData(
        generator.normal(size=(6, 3)).astype(np.float32),
        generator.uniform(-1, 1, (6, 2)).astype(np.float32),
        np.array([0, 0, 0, 0, 7, 7]),
        np.array([0, 1, 0, 1, 0, 0]),
        np.array([0, 0, 1, 1, 0, 1]),
        action_mask=np.ones((6, 2), dtype=bool),
    )
    for name in ("data.npz", "data.parquet"):
        save_data(tmp_path / name, data)
        loaded = load_data(tmp_path / name)
        assert np.array_equal(loaded.action, data.action)
        assert np.array_equal(loaded.action_mask, data.action_mask)
        assert loaded.pairs().tracks.tolist() == [0, 0, 1, 1, 2, 3]
        assert loaded.pairs().episodes.tolist() == [0, 0, 0, 0, 1, 1]


def test_pairs_are_sorted_by_episode_and_step(data):
    shuffled = TargetData(*(None if x is None else x[np.random.default_rng(0).permutation(len(data.t))] for x in data))
    first, second = data.pairs(), shuffled.pairs()
    assert torch.equal(first.observations, second.observations)
    assert torch.equal(first.episodes, second.episodes)
    train, held_out = first.split(0.2, seed=0)
    assert not set(train.episodes.tolist()) & set(held_out.episodes.tolist())


BAD = {
    "nan": (
        lambda d: d._replace(observation=np.full_like(d.observation, np.nan)),
        "observation is NaN or infinite in row 0",
    ),
    "outside": (
        lambda d: d._replace(action=d.action + 2),
        "is outside the action space of guard, which has the actions 0 to 1",
    ),
    "width": (lambda d: d._replace(observation=d.observation[:, :3]), "have length 3, but guard sees 7 numbers"),
    "axes": (
        lambda d: d._replace(observation=d.observation[:, 0]),
        r"observation has shape \(\d+,\), but it must have 2 axes",
    ),
    "rows": (lambda d: d._replace(action=d.action[:-1]), r"action has \d+ rows, but t has"),
    "vectors": (lambda d: d._replace(action=np.zeros((len(d.t), 2), np.float32)), "chooses one of 2 actions"),
    "no end": (lambda d: d._replace(last=np.zeros_like(d.last)), "episode 0 has no end"),
    "two ends": (lambda d: d._replace(last=np.ones_like(d.last)), "episode 0 goes on after its last step"),
    "one episode": (lambda d: d._replace(episode=d.episode * 0), "every episode needs its own number"),
    "player": (
        lambda d: d._replace(player=d.player + 3),
        "the data have player 3 of guard, which has players 0 to 0",
    ),
    "mask": (lambda d: d._replace(action_mask=np.zeros((len(d.t), 2), bool)), "is not legal by its own action_mask"),
    "mask width": (lambda d: d._replace(action_mask=np.ones((len(d.t), 5), bool)), "has 5 columns, but guard has 2"),
    "another seat": (
        lambda d: d._replace(seat=np.full(len(d.t), "agent")),
        "is of the seat 'agent', but the target is",
    ),
    "no state": (
        lambda d: d._replace(observation=d.observation + 0.25),
        r"the observation in row 0 is .* which guard cannot see in this game; give the rows of guard alone",
    ),
    "masks of no game": (
        lambda d: d._replace(action_mask=np.ones((len(d.t), 2), bool)),
        "have action_mask, but the game tells guard no legal actions",
    ),
    "nobody": (lambda d: d._replace(active=np.zeros(len(d.t), bool)), "no row of the data is active"),
    "empty": (lambda d: TargetData(*(None if x is None else x[:0] for x in d)), "the data hold no step"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_get_one_sentence(game, data, name):
    spoil, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        check_dataset(spoil(data), game)


def test_bad_files_get_one_sentence(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no data file"):
        load_data(tmp_path / "none.npz")
    empty = tmp_path / "empty.npz"
    empty.touch()
    with pytest.raises(ValueError, match="is empty"):
        load_data(empty)
    for name in ("garbage.npz", "garbage.parquet", "garbage.csv", "garbage.txt"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(ValueError, match=r"is no \.npz|is no Parquet|has no observation|is no CSV|is none of"):
            load_data(tmp_path / name)
    for name in ("whole.npz", "whole.parquet"):
        save_data(tmp_path / name, data)
        whole = (tmp_path / name).read_bytes()
        for share in (0.02, 0.5, 0.99):
            cut = tmp_path / f"cut.{name.split('.')[1]}"
            cut.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=r"was cut off .*; write it again") as caught:
                load_data(cut)
            assert "\n" not in str(caught.value)
    np.savez(tmp_path / "short.npz", observation=data.observation, action=data.action)
    with pytest.raises(ValueError, match="has no episode and no t; required are observation, action, episode, t"):
        load_data(tmp_path / "short.npz")
    np.savez(tmp_path / "half.npz", **{**_columns(data), "action": data.action + 0.5})
    with pytest.raises(ValueError, match=r"half.npz: action has shape .* must hold one whole number a step"):
        load_data(tmp_path / "half.npz")
    with pytest.raises(ValueError, match=r"must end in .npz, .parquet or .csv"):
        save_data(tmp_path / "data.txt", data)


@pytest.mark.parametrize("name", ["last", "active", "action_mask_0"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("value", ["no", None, 2, -np.inf])
def test_what_is_neither_true_nor_false_is_not_taken_for_true(data, tmp_path, name, ending, value):
    import pandas as pd

    save_data(tmp_path / "data.csv", data)
    table = pd.read_csv(tmp_path / "data.csv").assign(action_mask_0=True, action_mask_1=True, active=True)
    table[name] = [value] * 2 + table[name].tolist()[2:]
    path = tmp_path / f"spoilt.{ending}"
    if ending == "csv":
        table.to_csv(path, index=False)
    else:
        table[name] = table[name].astype("string" if value == "no" else "boolean" if value is None else float)
        table.to_parquet(path)
    with pytest.raises(ValueError, match=f"{name.removesuffix('_0')} holds .*, but it must hold true or false"):
        load_data(path)


def test_columns_that_would_not_be_read_are_refused(data, tmp_path):
    import pandas as pd

    save_data(tmp_path / "data.csv", data)
    table = pd.read_csv(tmp_path / "data.csv")
    for extra, sentence in (
        ("actve", "has a column actve; did you mean active"),
        ("Action_mask", "has a column Action_mask; did you mean action_mask"),
        ("observation[0]", "two columns for entry 0 of observation"),
        ("observation_00", "two columns for entry 0 of observation"),
    ):
        table.assign(**{extra: 1}).to_csv(tmp_path / "extra.csv", index=False)
        with pytest.raises(ValueError, match=re.escape(sentence)):
            load_data(tmp_path / "extra.csv")
    table.assign(reward=1.0, score="high").to_csv(tmp_path / "more.csv", index=False)
    assert np.array_equal(load_data(tmp_path / "more.csv").observation, data.observation)


def test_lists_of_uneven_length_get_one_sentence(data, tmp_path):
    import pandas as pd

    ragged = list(data.observation)
    ragged[2] = ragged[2][:3]
    columns = {name: list(column) for name, column in _columns(data).items()} | {"observation": ragged}
    pd.DataFrame(columns).to_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match=r"observation has a list of shape \(3,\) in row 2 but of \(7,\) in row 0"):
        load_data(tmp_path / "ragged.parquet")


def test_rows_of_players_that_left_or_wait_are_not_used():
    """A game of poker: half of the recorded rows are the other player's turns, and say nothing of the target."""
    pytest.importorskip("pyspiel")
    from rl.envs.spiel_game import SpielGame

    game = SpielGame("kuhn_poker")

    def uniform(observations, mask, generator):
        return torch.multinomial(mask[:, 0].float(), 1, generator=generator)

    data = record_target(game, uniform, uniform, 200, torch.Generator().manual_seed(0))
    turns = data.observation.any(1)
    assert 0.2 < turns.mean() < 0.8
    assert np.array_equal(data.active, turns)
    pairs = data.pairs()
    assert len(pairs.actions) == turns.sum()
    assert pairs.observations.any(1).all()
    assert check_dataset(data, game)[0] == f"{turns.sum()} steps of player_1 in 200 episodes"
    unmarked = r"all zeros, as of a player that has left or waits .* no column active that says which rows those are"
    with pytest.raises(ValueError, match=unmarked):
        check_dataset(data._replace(active=None), game)
    theirs = record_target(SpielGame("kuhn_poker", ours=1), uniform, uniform, 50, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="which player_1 cannot see in this game"):
        check_dataset(theirs._replace(seat=None), game)


def _columns(data):
    return {name: column for name, column in data._asdict().items() if column is not None}
