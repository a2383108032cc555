"""The csp recipe by the real command: a whole run, card games exactly, and one sentence for every kind of bad input."""

import contextlib
import html
import io
import itertools
import json

import numpy as np
import pytest
import yaml

from recipes.csp.cards import target_behaviour
from recipes.csp.play import main as play
from recipes.run import main
from rl.csp import SeatPolicy, TablePolicy, certify, load_policy, save_policy
from rl.csp.worst_case import value_of
from rl.envs import SpielGame, VaultMaze
from rl.envs.spiel import sequence_form

TINY = {
    "recipe": "csp",
    "name": "tiny",
    "data": {"episodes": 30},
    "adaptation": {"iterations": 3, "episodes": 16, "hidden": [8], "epochs": 1},
    "baselines": ["bc_first", "imitation"],
    "sweep": {"shares": [0.5]},
    "attack": {"iterations": 1, "episodes": 16, "test_episodes": 32, "baselines": False},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
}


def run(folder, recipe, *words):
    """Exit code, what was said, what was complained about."""
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(["r.yaml", "--out", "out", *words])
    return code, said.getvalue(), complained.getvalue()


def maze_file(folder, **changes):
    """A data file of two episodes of two steps each, with changes."""
    steps = np.eye(7, dtype=np.float32)[[0, 1, 0, 1]]
    columns = {
        "observation": steps,
        "action": np.array([0, 0, 1, 1]),
        "episode": np.array([0, 0, 1, 1]),
        "t": np.array([0, 1, 0, 1]),
        "last": np.array([False, True, False, True]),
    }
    path = folder / "data.npz"
    np.savez(path, **(columns | changes))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csp")
    code, said, complained = run(folder, TINY)
    assert code == 0, complained
    return folder / "out", said


def test_a_run_leaves_policies_ladder_figures_and_replays(finished):
    folder, said = finished
    result = json.loads((folder / "result.json").read_text())
    assert [row["policy"] for row in result["rows"]] == ["csp", "bc_first", "rnr p=0.5", "imitation"]
    assert [step["step"] for step in result["ladder"]] == [
        "Nash",
        "guaranteed",
        "worst likely",
        "obtained",
        "best response",
    ]
    values = [step["value"] for step in result["ladder"]]
    assert values[0] == pytest.approx(0.3, abs=1e-6)
    assert values[4] == pytest.approx(0.8499, abs=0.01)
    csp = result["rows"][0]
    assert values[1] == csp["certified 95 %"]
    assert [row["how"] for row in result["ladder"] if row["step"] == "guaranteed"] == [
        "certified 95 %, for a target that does not change"
    ]
    assert not any("trained too little" in warning for warning in result["warnings"])  # three iterations part nobody
    for row in result["rows"]:
        assert row["worst against anyone"] <= row["certified 95 %"] + 1e-9
        assert row["certified 95 %"] <= row["worst exact"] + 1e-9
    assert {path.name for path in (folder / "policies").glob("*.pt")} == {"csp.pt", "bc-first.pt", "rnr-p-0-5.pt"}
    for name in ("ladder", "coverage", "consistency", "learning", "frontier"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    assert "replays/true-target.gif" in result["replays"]
    assert (folder / "replays/true-target.gif").read_bytes()[:3] == b"GIF"
    page = (folder / "report.html").read_text()
    assert "estimated (optimistic)" in page
    assert "certified 95 %" in page
    assert f"CSP is guaranteed {csp['certified 95 %']:.3f} (certified 95 %" in said
    assert "guaranteed" not in page.replace("CSP is guaranteed", "").replace(">guaranteed<", "")


def test_a_run_says_which_policy_to_deploy_and_leaves_it_in_a_file(finished):
    folder, said = finished
    result, page = json.loads((folder / "result.json").read_text()), (folder / "report.html").read_text()
    best = max(result["rows"], key=lambda row: row["certified 95 %"])
    assert result["certified plan"] >= best["certified 95 %"] - 1e-9  # the exact solver's is the best there is
    assert result["deploy"].startswith("Deploy policies/certified-plan.safetensors, the exact solver's plan")
    assert f"its certified value, {result['certified plan']:.3f}" in result["deploy"]
    assert result["deploy"] in said
    assert html.escape(result["deploy"]) in page
    files = {path.stem for path in (folder / "policies").glob("*.safetensors")}
    assert files == {"csp", "bc-first", "rnr-p-0-5", "imitation", "certified-plan"}
    plan = load_policy(folder / "policies/certified-plan.safetensors")
    found = certify(plan, str(folder / "data.npz"), VaultMaze())
    assert found.value == pytest.approx(result["certified plan"], abs=1e-5)
    assert page.count("data:image/gif;base64") == 2
    assert ">certified 95 %</th>" in page.split(">Glossary<")[-1]
    assert "self_play" not in page.split(">Glossary<")[-1].split("</table>")[0]


def test_a_run_is_played_against_a_new_opponent_by_one_command(finished, capsys, monkeypatch, tmp_path):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_bots_of_csp.py").write_text(
        "import torch\n\ndef aggressive(seen, mask, generator):\n"
        "    return torch.ones(seen.shape[:2], dtype=torch.long)\n"
    )
    words = [str(folder), "--episodes", "200", "--against"]
    assert play([*words, "own_bots_of_csp.aggressive", "--gif", "it.gif"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:6]] == sorted(
        ["bc-first", "certified-plan", "csp", "imitation", "rnr-p-0-5"]
    )
    assert (tmp_path / "it.gif").read_bytes()[:3] == b"GIF"
    imitation = next(line for line in said.splitlines() if line.startswith("imitation"))
    assert float(imitation.split()[1]) < -0.5  # it pushes, and an aggressive guard is there
    assert "gets less than what was certified" in said
    guard = SeatPolicy.of(VaultMaze(), "guard", hidden=[4])
    save_policy(guard, tmp_path / "guard.safetensors", VaultMaze(), "guard")
    assert play([*words, "guard.safetensors", "--policy", "csp"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for further, message in (
        (["random", "--policy", "best"], "has no policy 'best'; it has bc-first"),
        (["no.such"], "opponent 'no.such' cannot be imported"),
        ([str(folder / "policies/csp.safetensors")], "is a policy of the seat 'agent'; give one of the seat 'guard'"),
    ):
        assert play([*words, *further]) == 2
        assert message in capsys.readouterr().err
    assert play([str(tmp_path), "--against", "random"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_consistency_of_the_whole_training_is_kept(finished):
    history = json.loads((finished[0] / "policies/csp.json").read_text())
    assert [row["iteration"] for row in history] == [0, 1, 2]
    assert all({"excess", "kl_data", "return", "return_proxy", "coefficient"} <= row.keys() for row in history)


def test_finished_trainings_are_not_repeated(finished):
    folder, _ = finished
    (folder / "result.json").unlink()
    before = (folder / "policies/csp.pt").stat().st_mtime_ns
    code, _, complained = run(folder.parent, TINY, "--resume")
    assert code == 0, complained
    assert (folder / "policies/csp.pt").stat().st_mtime_ns == before
    assert (folder / "result.json").is_file()


def test_card_games_are_solved_exactly(tmp_path):
    pytest.importorskip("pyspiel")
    recipe = {"recipe": "csp", "name": "kuhn", "game": {"name": "kuhn_poker"}, "data": {"episodes": 200}}
    code, _, complained = run(tmp_path, recipe)
    assert code == 0, complained
    ladder = {row["step"]: row["value"] for row in json.loads((tmp_path / "out/result.json").read_text())["ladder"]}
    assert ladder["Nash"] == pytest.approx(-1 / 18, abs=1e-7)
    steps = [ladder[name] for name in ("Nash", "worst", "obtained", "best response")]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(steps))  # the linear programme rounds
    assert ladder["Nash"] - 1e-9 <= ladder["guaranteed"] <= ladder["best response"]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert all(row["certified"] <= row["true"] + 1e-9 for row in result["rows"])
    assert result["deploy"].startswith("Deploy csp certified, because its certified value,")
    kuhn = SpielGame("kuhn_poker")
    plan = load_policy(tmp_path / "out/policies/csp-certified.safetensors")
    true = next(row["true"] for row in result["rows"] if row["method"] == "csp certified")
    game = sequence_form("kuhn_poker")
    laws = target_behaviour(game)
    keys, looks, legal = kuhn.information_states("player_1")
    table = np.zeros(legal[:, 0].shape)
    for number, key in enumerate(keys):
        table[number, legal[number, 0].numpy()] = laws[key]
    target = TablePolicy(looks[:, 0], table)
    found = value_of(kuhn, plan, target, 20_000, 0)
    assert found.low - 0.01 < true < found.high + 0.01


def test_baselines_that_need_more_than_a_data_file_are_no_default_with_one(tmp_path):
    """A game and data of one's own was refused for the imitation that nobody had named."""
    recipe = {key: value for key, value in TINY.items() if key != "baselines"} | {
        "data": {"path": str(maze_file(tmp_path))}
    }
    code, said, complained = run(tmp_path, recipe, "--check")
    assert code == 0, complained
    assert "csp, bc_first, self_play, rnr p=0.5" in said


def test_a_target_that_learns_is_reported_before_the_run(tmp_path):
    episodes = np.arange(60).repeat(4)
    rng = np.random.default_rng(0)
    path = maze_file(
        tmp_path,
        observation=np.eye(7, dtype=np.float32)[np.tile([0, 1, 3, 5], 60)],
        action=(rng.random(240) < 0.1 + 0.8 * episodes / 60).astype(int),
        episode=episodes,
        t=np.tile(np.arange(4), 60),
        last=np.tile([False, False, False, True], 60),
    )
    recipe = TINY | {"data": {"path": str(path)}, "baselines": ["bc_first"]}
    code, said, complained = run(tmp_path, recipe, "--check")
    assert code == 0, complained
    assert "warning: the target changes over the data (p = 0.001)" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action": np.array([0, 2, 1, 1])}, "action 2 in row 1 is outside the action space of guard"),
        ({"observation": np.zeros((4, 3), np.float32)}, "observations of the data have length 3, but guard sees 7"),
        ({"action": np.zeros((4, 2), np.float32)}, "actions of the data have shape (4, 2)"),
        ({"last": np.array([False, True, False, False])}, "episode 1 has no end"),
        ({"observation": np.full((4, 7), np.nan, np.float32)}, "observation is NaN or infinite in row 0"),
        ({key: np.zeros((0,)) for key in ("action", "episode", "t", "last")} | {"observation": np.zeros((0, 7))}, ""),
    ],
)
def test_data_that_cannot_be_the_targets_are_refused(tmp_path, changes, sentence):
    path = maze_file(tmp_path, **changes)
    recipe = TINY | {"data": {"path": str(path)}, "baselines": ["bc_first"]}
    refused(tmp_path, recipe, "data.path: ", sentence or "the data hold no step")


def refused(folder, recipe, *sentences):
    code, _, complained = run(folder, recipe)
    assert code == 2, complained
    assert len(complained.splitlines()) == 1
    for sentence in sentences:
        assert sentence in complained
    assert not (folder / "out").exists()


def test_an_empty_and_an_absent_file_are_refused(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"")
    recipe = TINY | {"baselines": ["bc_first"]}
    refused(tmp_path, recipe | {"data": {"path": "data.npz"}}, "data.path: ", "is empty")
    refused(tmp_path, recipe | {"data": {"path": "none.npz"}}, "data.path: there is no data file none.npz")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adaptation": {"coefficient": -1.0}}, "adaptation.coefficient: expected a finite number >= 0, got -1"),
        ({"sweep": {"shares": [2.0]}}, "sweep.shares.0: expected a number >= 0 and <= 1, got 2"),
        ({"attack": {"adversaries": 3}}, "attack.adversaries: expected a number >= 4, got 3"),
        ({"game": {"name": "vault_maze", "target": "agent"}}, "game.target: the target's seat is 'guard'"),
        ({"game": {"name": "own"}}, "class_path: expected a path exactly for the game own, got ''"),
        ({"game": {"name": "vault_maze", "init_args": {"size": 3}}}, "does not take {'size': 3}"),
        ({"data": {"path": "x.npz"}}, "baselines: expected none that needs more than a data file"),
        ({"game": {"name": "own", "class_path": "rl.csp.policies.SeatPolicy"}}, "data.path: expected a data file"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, changes, sentence):
    refused(tmp_path, TINY | changes, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"environment": "json.JSONDecoder"}, "game: "),
        ({"environment": "mpe2.simple_tag_v3.parallel_env", "target": ["agent_7"]}, "agent_7"),
    ],
)
def test_environments_that_cannot_be_played_are_refused(tmp_path, monkeypatch, arguments, sentence):
    for name in ("PYGAME_HIDE_SUPPORT_PROMPT", "SDL_AUDIODRIVER"):  # pygame and mpe2 set them when they are imported
        monkeypatch.setenv(name, "dummy")
    pytest.importorskip("mpe2")
    ours = [f"adversary_{number}" for number in range(3)]
    made = {"environment": "", "ours": ours, "target": ["agent_0"], "horizon": 5} | arguments
    own = {"name": "own", "class_path": "rl.envs.parallel.ParallelGame", "init_args": made}
    recipe = TINY | {"game": own, "data": {"path": str(maze_file(tmp_path))}, "baselines": ["bc_first"]}
    refused(tmp_path, recipe, sentence)


@pytest.mark.parametrize(
    ("flaw", "sentence"),
    [
        ({"reward": "much"}, "game: the reward of knight in step 0 is 'much', but it must be a finite number"),
        ({"shape": [3]}, r"game: knight observes an array of shape (3,), but its space has shape (2,)"),
        ({"legal": "all"}, "game: it fails in random episodes ("),
    ],
)
def test_a_game_of_ones_own_is_played_before_it_is_trained_in(tmp_path, flaw, sentence):
    code, _, complained = run(tmp_path, own_duel(tmp_path, flaw), "--check")
    assert code == 2
    assert complained.startswith(sentence)
    assert complained.count("\n") == 1


def test_chance_that_cannot_be_repeated_is_told(tmp_path):
    code, said, complained = run(tmp_path, own_duel(tmp_path, {"unseeded": True}), "--check")
    assert (code, complained) == (0, "")
    assert "game: warning: two episodes with the same seed and actions differ" in said


def own_duel(folder, flaw):
    """A recipe for an environment of one's own with a flaw."""
    steps = {"observation": np.zeros((4, 2)), "action": np.zeros((4, 1)), "active": np.ones(4, dtype=bool)}
    np.savez(folder / "duel.npz", **steps, episode=[0, 0, 1, 1], t=[0, 1, 0, 1])
    init_args = {
        "environment": "tests.rl.envs.test_parallel.Duel",
        "arguments": flaw,
        "ours": ["knight"],
        "target": ["dragon"],
        "horizon": 7,
    }
    game = {"name": "own", "class_path": "rl.envs.ParallelGame", "init_args": init_args}
    return TINY | {"game": game, "data": {"path": "duel.npz"}, "baselines": ["bc_first"], "sweep": {}}
