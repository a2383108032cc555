"""Sweeps over keys and seeds: every run an ordinary folder, a table with intervals, resumed, checked before."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scipy import stats

from recipes.errors import RecipeError
from recipes.running.folder import RunFolder
from recipes.running.lock import refuse_live
from recipes.running.sweep import Cell, Sweep, seeds_of, values_of
from recipes.running.sweep_table import finish
from tests.recipes.conftest import ROOT

TOY = "recipe: toy\n"


def test_every_value_runs_under_every_seed(swept, tmp_path):
    words = ("r.yaml", "--sweep", "method.rank=2,4", "--seeds", "2", "--jobs", "2")
    done = swept(*words, "--show", "value", r=TOY)
    assert done.code == 0, done.err
    folder = tmp_path / "runs/sweeps/toy-toy/1"
    cells = sorted(place.name for place in (folder / "cells").iterdir())
    assert cells == [f"method.rank={rank},seed={seed}" for rank in (2, 4) for seed in (0, 1)]
    for cell in cells:
        assert (folder / "cells" / cell / "report.html").is_file()
        assert f"rank: {cell[12]}" in (folder / "cells" / cell / "recipe.yaml").read_text()
    rows = json.loads((folder / "result.json").read_text())["rows"]
    assert [(row["method.rank"], row["runs"]) for row in rows] == [("2", 2), ("4", 2)]
    low, high = stats.t.interval(0.95, 1, loc=2.5, scale=stats.sem([2.0, 3.0]))  # the toy's value is rank + seed
    assert rows[0]["value"] == pytest.approx({"mean": 2.5, "low": low, "high": high})
    table = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    assert {(r["method.rank"], r["seed"], r["value"]) for r in table if r["number"] == "value"} == {
        *(("2", "0", "2.0"), ("2", "1", "3.0"), ("4", "0", "4.0"), ("4", "1", "5.0"))
    }
    assert "method.rank  runs  value  value low  value high\n2            2     2.5" in done.out
    assert {file.name for file in (folder / "figures").iterdir()} == {"value.png", "value.csv"}
    drawn = (folder / "figures/value.csv").read_text().splitlines()
    assert drawn[0] == "method.rank,mean,low,high"
    assert [line[:8] for line in drawn[1:]] == ["2.0,2.5,", "4.0,4.5,"]


def test_a_number_with_an_interval_of_its_own_keeps_it_and_two_keys_make_lines(tmp_path):
    cells, gap = [], {("1", "10"): 1.0, ("1", "100"): 2.0, ("2", "10"): 3.0, ("2", "100"): 4.0}
    for (rows, steps), value in gap.items():
        for seed in (0, 1) if rows == "2" else (0,):
            place = tmp_path / f"{rows}-{steps}-{seed}"
            place.mkdir()
            own = {"value": value + seed, "low": value - 0.5, "high": value + 0.5}
            (place / "result.json").write_text(json.dumps({"gap": own, "value": 7.0}))
            cells.append(({"rows": rows, "steps": steps}, seed, place))
    folder = RunFolder(tmp_path, "sweep", quiet=True)
    (tmp_path / "recipe.yaml").write_text("recipe: toy\n")
    finish(folder, cells, [])
    made = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert made[0]["gap"] == {"mean": 1.0, "low": 0.5, "high": 1.5}
    low, high = stats.t.interval(0.95, 1, loc=3.5, scale=stats.sem([3.0, 4.0]))
    assert made[2]["gap"] == pytest.approx({"mean": 3.5, "low": low, "high": high})
    assert set(made[0]) == {"rows", "steps", "runs", "gap", "value"}
    drawn = list(csv.DictReader(io.StringIO((tmp_path / "figures/gap.csv").read_text())))
    assert [(row["line"], row["steps"], row["mean"]) for row in drawn] == [
        *(("rows 1", "10.0", "1.0"), ("rows 1", "100.0", "2.0"), ("rows 2", "10.0", "3.5"), ("rows 2", "100.0", "4.5"))
    ]


def test_runs_with_and_without_intervals_stand_in_one_table(tmp_path):
    """One tells a whole interval, one an interval that is open above, one a value without any, one a plain number."""
    told = {"1": {"value": 1.0, "low": 0.5, "high": 1.5}, "2": {"value": 2.0, "low": 1.5, "high": None}}
    told |= {"3": {"value": 3.0, "low": None, "high": None}, "4": 4.0}
    for rank, gap in told.items():
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "result.json").write_text(json.dumps({"gap": gap}))
    (tmp_path / "recipe.yaml").write_text("recipe: toy\n")
    finish(RunFolder(tmp_path, "sweep", quiet=True), [({"rank": rank}, 0, tmp_path / rank) for rank in told], ["gap"])
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["gap"] for row in rows] == [
        {"mean": 1.0, "low": 0.5, "high": 1.5},
        *({"mean": 2.0, "low": 1.5}, {"mean": 3.0}, {"mean": 4.0}),
    ]
    drawn = (tmp_path / "figures/gap.csv").read_text().splitlines()
    assert drawn == ["rank,mean,low,high", "1.0,1.0,0.5,1.5", "2.0,2.0,1.5,", "3.0,3.0,,", "4.0,4.0,,"]


def test_several_keys_make_every_combination():
    cells = Sweep({"a": ["1", "2"], "b": ["x", "y"]}, [0, 3]).cells()
    assert [cell.name for cell in cells] == [f"a={a},b={b},seed={s}" for a in (1, 2) for b in "xy" for s in (0, 3)]


def test_a_failed_run_is_named_and_tried_again(swept, tmp_path):
    words = ("r.yaml", "--sweep", "do=nothing,fail", "--out", "s")
    done = swept(*words, r=TOY)
    assert done.code == 1
    assert "do=fail,seed=0 failed: it cannot be done; try something else (log: s/logs/do=fail,seed=0.log)" in done.err
    assert "1 of 2 runs failed; the same command with --resume --out s tries them once more" in done.err
    assert [row["do"] for row in json.loads((tmp_path / "s/result.json").read_text())["rows"]] == ["nothing"]
    before = (tmp_path / "s/cells/do=nothing,seed=0/result.json").stat().st_mtime_ns
    assert swept(*words, "--resume").code == 1
    assert (tmp_path / "s/cells/do=nothing,seed=0/result.json").stat().st_mtime_ns == before


def test_values_and_seeds_are_added_by_resuming(swept, tmp_path):
    assert swept("r.yaml", "--sweep", "method.rank=2", "--out", "s", r=TOY).code == 0
    assert swept("r.yaml", "--sweep", "method.rank=2,3", "--seeds", "2", "--out", "s", "--resume").code == 0
    rows = json.loads((tmp_path / "s/result.json").read_text())["rows"]
    assert [(row["method.rank"], row["runs"]) for row in rows] == [("2", 2), ("3", 2)]
    other = swept("r.yaml", "note=x", "--sweep", "method.rank=2", "--out", "s", "--resume")
    assert (other.code, "the recipe of the sweep in s was another one" in other.err) == (2, True)
    other = swept("r.yaml", "--sweep", "method.scale=2", "--out", "s", "--resume")
    assert (other.code, "varies method.rank; values and seeds may be added" in other.err) == (2, True)


def test_runs_of_other_inputs_or_another_recipe_are_not_mixed_in_one_table(swept, tmp_path):
    (tmp_path / "data.csv").write_text("a")
    words = ("r.yaml", "path=data.csv", "--out", "s", "--sweep")
    assert swept(*words, "method.rank=2", r=TOY).code == 0
    (tmp_path / "data.csv").write_text("b")
    done = swept(*words, "method.rank=2,3", "--resume")
    assert (done.code, "data.csv has changed since s/cells/method.rank=2,seed=0 read it" in done.err) == (2, True)
    (tmp_path / "data.csv").write_text("a")
    (tmp_path / "r.yaml").write_text("recipe: toy\nnote: other\n")  # runs take the sweep's own copy
    done = swept(*words, "method.rank=2,3", "--resume")
    assert (done.code, "was another one" in done.err) == (2, True)
    (tmp_path / "r.yaml").write_text(TOY)
    assert swept(*words, "method.rank=2,3", "--resume").code == 0
    assert "note" not in (tmp_path / "s/cells/method.rank=3,seed=0/command.txt").read_text()
    assert "s/recipe.yaml" in (tmp_path / "s/cells/method.rank=3,seed=0/command.txt").read_text()


def test_a_check_looks_at_every_combination_and_writes_nothing(swept, tmp_path):
    done = swept("r.yaml", "--sweep", "method.rank=2,0", "--sweep", "method.scale=1,x", "--check", r=TOY)
    assert done.code == 2
    assert "method.rank=0" in done.err
    assert "method.scale=x" in done.err
    done = swept("r.yaml", "--sweep", "path=r.yaml,absent", "--check")
    assert (done.code, "absent does not exist" in done.err) == (2, True)
    done = swept("r.yaml", "--sweep", "method.rank=2,3", "--seeds", "4", "--check")
    assert (done.code, "sweep: 8 runs, 2 of method.rank x 4 seeds" in done.out) == (0, True)
    assert [file.name for file in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "method.rank"], "expected KEY=A,B,C"),
        (["--sweep", "method.rank=1,,2"], "expected KEY=A,B,C"),
        (["--sweep", "method.rank=1,1"], "1 stands there twice"),
        (["--sweep", "method.rank=1", "--sweep", "method.rank=2"], "a key stands there twice"),
        (["--sweep", "seed=1,2"], "use --seeds"),
        (["--sweep", "recipe=toy"], "recipe cannot be swept"),
        (["--seeds", "0"], "expected how many"),
        (["--seeds", "1,1"], "expected how many"),
        (["--seeds", "x"], "expected how many"),
        (["--seeds", "2", "--jobs", "0"], "at least 1"),
        (["--seeds", "20000"], "at most 10000"),
        (["--seeds", "2", "--force"], "never replaced"),
        (["--jobs", "2"], "this is for a sweep"),
        (["--show", "x"], "this is for a sweep"),
        (["--on", "dask:x"], "this is for a sweep"),
        (["--seeds", "2", "--on", "ray"], "expected dask:ADDRESS"),
        (["--seeds", "2", "--on", "slurm:gpu"], "expected KEY=VALUE, got gpu"),
        (["--seeds", "2", "--on", "slurm:cluster=local,no_such=1"], "submitit refuses"),
        (["--seeds", "2", "--resume"], "no sweep is in"),
        (["--seeds", "2", "--resume", "a.ckpt"], "give no checkpoint"),
        (["--seeds", "2", "--out", "r.yaml"], "something is there"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(swept, words, said):
    done = swept("r.yaml", *words, r=TOY)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_a_number_that_no_result_has_is_refused_with_the_nearest(swept):
    done = swept("r.yaml", "--seeds", "1", "--out", "s", "--show", "valu", r=TOY)
    assert (done.code, "no result has this number" in done.err, "value" in done.err) == (2, True, True)
    assert swept("r.yaml", "--seeds", "1", "--out", "s", "--show", "value", "--resume").code == 0


def test_an_interrupted_sweep_ends_its_runs_and_goes_on(tmp_path):
    (tmp_path / "r.yaml").write_text(TOY)
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in the background
    start += "from recipes.running import sweep; from tests.recipes.toy_run import main; import sys; "
    start += "sweep.RUN = ('-m', 'tests.recipes.toy_run'); sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", start, "r.yaml", "do=sleep", "--seeds", "2", "--jobs", "2", "--out", "s"]
    with (tmp_path / "err").open("wb") as log:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    places = [tmp_path / f"s/cells/seed={seed}" for seed in (0, 1)]
    for _ in range(600):
        if all((place / "environment.json").is_file() for place in places):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # to the sweep alone, which tells its runs
    assert process.wait(60) == 130
    assert "interrupted; go on with the same command with --resume --out s" in (tmp_path / "err").read_text()
    for place in places:
        refuse_live(place)


def test_runs_go_to_submitit(swept, tmp_path):
    pytest.importorskip("submitit")
    on = "slurm:cluster=local,timeout_min=5"  # the same jobs, started on this machine
    done = swept("r.yaml", "--seeds", "2", "--jobs", "2", "--out", "s", "--on", on, "--show", "value", r=TOY)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "s/result.json").read_text())["rows"][0]["value"]["mean"] == 8.5
    assert list((tmp_path / "s/slurm").glob("*_submitted.pkl"))


def test_runs_go_to_dask(tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "r.yaml").write_text(TOY)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.recipes.running.on_dask"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "s/result.json").read_text())["rows"][0]["value"]["mean"] == 8.5
    assert "2 submitted" in done.stdout


def test_a_scheduler_that_does_not_answer_is_named(swept, monkeypatch):
    pytest.importorskip("distributed")

    def none(address, timeout):
        raise OSError(f"no route to {address} in {timeout} s")

    monkeypatch.setattr("distributed.Client", none)
    done = swept("r.yaml", "--seeds", "2", "--out", "s", "--on", "dask:tcp://127.0.0.1:9", r=TOY)
    assert (done.code, "the scheduler does not answer" in done.err) == (1, True)


def test_names_of_folders_differ_and_are_plain():
    first, second = Cell({"a": "[1, 2]"}, 0), Cell({"a": "[1_ 2]"}, 0)
    assert first.name != second.name
    assert "/" not in Cell({"path": "a/b"}, 0).name
    assert Cell({"a.b": "1e-4"}, 3).name == "a.b=1e-4,seed=3"
    assert len(Cell({"a": "x" * 500}, 0).name) < 100


@pytest.mark.parametrize(
    ("word", "values"),
    [("a.b=1", ["1"]), ("a=[1,2],[3]", ["[1,2]", "[3]"]), ("a='x,y',z", ["'x,y'", "z"]), ("a={k: 1}", ["{k: 1}"])],
)
def test_values_are_split_at_the_outermost_commas(word, values):
    assert values_of(word)[1] == values


def test_seeds_are_counted_from_the_recipes_own():
    assert seeds_of("2", 7) == [7, 8]
    with pytest.raises(RecipeError):
        seeds_of("-1", 0)
