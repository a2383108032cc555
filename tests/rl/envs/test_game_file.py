"""Games from files: a matrix, arrays, and moves by name; whatever is wrong is one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rl.envs import FileGame, check_game
from rl.envs.vault_maze import maze_game
from rl.exact import Free, certify, robust_plan

RPS = [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
GATE = {
    "states": ["gate", "yard", "end"],
    "ours": ["push", "wait"],
    "theirs": ["idle", "block"],
    "start": "gate",
    "horizon": 3,
    "discount": 0.9,
    "moves": [
        ["gate", "push", "idle", 1, "yard"],
        ["gate", "push", "block", -1, {"yard": 0.25, "end": 0.75}],
        ["gate", "wait", "any", 0, "end"],
        ["yard", "any", "any", 2, "end"],
    ],
}


def written(folder: Path, words: Any) -> Path:
    path = folder / "game.yaml"
    path.write_text(yaml.safe_dump(words), encoding="utf-8")
    return path


def test_a_matrix_game_is_solved_and_played(tmp_path: Path) -> None:
    game = FileGame(written(tmp_path, {"payoff": RPS}))
    check_game(game)
    assert robust_plan(game.exact, [Free(3)] * 2).plan[0] == pytest.approx([1 / 3] * 3, abs=1e-6)
    counts = np.array([[0, 100_000, 0], [0, 0, 0]])  # a target that always plays the second action is answered
    assert certify(game.exact, counts).solution.plan[0] == pytest.approx([0, 0, 1], abs=1e-6)
    np.savez(tmp_path / "game.npz", payoff=RPS)
    assert np.array_equal(FileGame(str(tmp_path / "game.npz")).exact.reward, game.exact.reward)


def test_moves_by_name_are_the_game_they_say(tmp_path: Path) -> None:
    game = FileGame(written(tmp_path, GATE))
    check_game(game)
    push, idle, block = np.array([[1, 0]] * 3), np.array([[1, 0]] * 3), np.array([[0, 1]] * 3)
    assert game.exact.value(push, idle) == pytest.approx(1 + 0.9 * 2)
    assert game.exact.value(push, block) == pytest.approx(-1 + 0.9 * 0.25 * 2)
    assert game.exact.value(np.array([[0, 1]] * 3), block) == pytest.approx(0)
    assert game.names["states"] == ["gate", "yard", "end"]


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    maze = maze_game()
    arrays = {"transition": maze.transition, "reward": maze.reward, "start": maze.start}
    np.savez(tmp_path / "maze.npz", **arrays, terminal=[6], horizon=4, discount=0.99)
    game = FileGame(tmp_path / "maze.npz")
    check_game(game)
    assert np.array_equal(game.exact.transition, maze.transition)
    assert (game.horizon, game.discount) == (4, 0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"moves": [*GATE["moves"][:3], ["yard", "push", "any", 2, "end"]]},
            "no move says what follows yard, wait, idle",
        ),
        ({"moves": [*GATE["moves"], ["yard", "push", "idle", 0, "end"]]}, "says again what follows"),
        ({"moves": [["gate", "fly", "idle", 1, "end"]]}, "has 'fly', which is none of ours: push, wait"),
        ({"moves": [["gate", "push", "any", 1, "moon"]]}, "leads to 'moon', which is none of the states"),
        ({"moves": [["gate", "push", "any", 1, {"yard": 0.5}]]}, "must be at least 0 and sum to 1"),
        ({"moves": [["gate", "push", "any", "much", "end"]]}, "the reward of moves.0 is 'much'"),
        ({"moves": [["gate", "push"]]}, "a move is"),
        ({"states": ["gate", "gate"]}, "list of different names"),
        ({"horizon": 0}, "an episode has at least 1 step"),
        ({"horizon": 2.7}, "horizon is 2.7, but it must be a whole number"),
        ({"horizon": float("inf")}, "horizon is inf, but it must be a whole number"),
        ({"observations": [[1e9], [1e9 + 1], [0.0]]}, "3 rows that all differ as float32"),
        ({"colour": "red"}, "unknown word 'colour'"),
        ({"observations": [[0.0], [0.0], [1.0]]}, "3 rows that all differ"),
        ({"discount": 1.5}, r"the discount, 1.5, in \[0, 1\)"),
    ],
)
def test_what_is_wrong_is_one_sentence(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FileGame(written(tmp_path, GATE | changes))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_games_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no game file"):
        FileGame(tmp_path / "none.yaml")
    for text, message in (
        ("[1, 2]", "holds a list"),
        ("{a: [}", "is no YAML file"),
        ("payof: [[1]]", "needs payoff, or"),
        ("payoff: [[1]]\npayoff: [[2]]", "says payoff twice"),
    ):
        (tmp_path / "game.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            FileGame(tmp_path / "game.yaml")
    (tmp_path / "game.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no \.npz file"):
        FileGame(tmp_path / "game.npz")
    with pytest.raises(ValueError, match="one of the two"):
        FileGame()
    for payoff, message in (([[1, 2], [3]], "no array of numbers"), ([1, 2], r"shape \(2,\)"), ([[np.nan]], "NaN")):
        with pytest.raises(ValueError, match=message):
            FileGame(payoff=payoff)
