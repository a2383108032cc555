"""Searches by Optuna: ranges and values, resumed as unbroken, a failed trial, and what is refused."""

import json

import pytest

from recipes.errors import RecipeError
from recipes.running.search import Search
from recipes.running.sweep import Sweep

pytest.importorskip("optuna")
TOY = "recipe: toy\n"


def test_trials_are_chosen_and_the_best_is_named(swept, tmp_path):
    words = ("r.yaml", "--sweep", "method.rank=1..64:log", "--sweep", "method.kind=ties,dare", "--maximise", "value")
    done = swept(*words, "--trials", "3", "--out", "s", "--jobs", "2", r=TOY)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "s/result.json").read_text())
    tried = found["trials"]
    assert len(tried) == 3
    assert all(trial["value"] == trial["settings"]["method.rank"] for trial in tried)  # the toy's value is rank + seed
    assert found["best"]["value"] == max(trial["value"] for trial in tried)
    assert f"Best of 3 trials by value: method.rank={found['best']['value']:g}" in done.out
    assert {trial["settings"]["method.kind"] for trial in tried} <= {"ties", "dare"}
    page = (tmp_path / "s/report.html").read_text()
    assert "Best of 3 trials by value" in page


def test_a_search_that_goes_on_chooses_what_it_would_have_chosen(swept, tmp_path):
    words = ("r.yaml", "--sweep", "method.scale=0.1..0.9", "--minimise", "value")
    assert swept(*words, "--trials", "3", "--out", "whole", r=TOY).code == 0
    assert swept(*words, "--trials", "2", "--out", "parts").code == 0
    assert swept(*words, "--trials", "3", "--out", "parts", "--resume").code == 0
    whole, parts = (json.loads((tmp_path / name / "trials.json").read_text()) for name in ("whole", "parts"))
    assert whole == parts
    assert len({trial["method.scale"] for trial in whole}) == 3
    other = swept(
        "r.yaml",
        "--sweep",
        "method.scale=0.1..0.8",
        "--minimise",
        "value",
        "--trials",
        "3",
        *("--out", "parts", "--resume"),
    )
    assert other.code == 2
    assert "was over other values, under other seeds or for another number" in other.err


def test_a_failed_trial_counts_for_nothing(swept, tmp_path):
    words = ("r.yaml", "--sweep", "do=nothing,fail", "--maximise", "value", "--trials", "4", "--out", "s")
    done = swept(*words, r=TOY)
    assert done.code == 1
    assert "do=fail,seed=0 failed: it cannot be done" in done.err
    found = json.loads((tmp_path / "s/result.json").read_text())
    assert found["best"]["settings"] == {"do": "nothing"}
    assert {trial["value"] for trial in found["trials"] if trial["settings"]["do"] == "fail"} == {None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", "2"], "by either --minimise NUMBER or --maximise NUMBER"),
        (["--trials", "0", "--minimise", "value"], "--trials 0: expected how many"),
        (["--trials", "2", "--minimise", "value", "--maximise", "value"], "by either"),
        (["--minimise", "value"], "--minimise: this is for a search; add --trials N"),
        (["--sweep", "method.rank=1..4"], "1..4 is a range, which --trials N tries values of"),
        (
            ["--trials", "2", "--minimise", "value", "--sweep", "note=1..4,x"],
            "expected one range or some values, got 1..4",
        ),
        (["--trials", "2", "--minimise", "value", "--sweep", "method.rank=8..4"], "a range is LOW..HIGH"),
        (["--trials", "2", "--minimise", "value", "--sweep", "method.rank=0..4:log"], "a range is LOW..HIGH"),
        (["--trials", "2", "--minimise", "value", "--sweep", "method.rank=0..4"], "method.rank: expected"),
        (["--trials", "2", "--minimise", "value", "--sweep", "method.rnk=1..4"], "did you mean"),
        (["--trials", "2", "--minimise", "value", "--sweep", "method.kind=ties,tise"], "method.kind"),
        (
            ["--trials", "1", "--minimise", "valu", "--sweep", "method.rank=1..4"],
            "valu: no result has this number; did you",
        ),
        (
            ["--trials", "1", "--minimise", "metrics:x", "--sweep", "method.rank=1..4"],
            "metrics:x: the runs of this recipe log no metrics.csv",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_swept_is_refused(swept, words, said):
    if "--sweep" not in words and "--minimise" in words and "--trials" in words and "0" not in words:
        words = [*words, "--sweep", "method.rank=1..4"]
    done = swept("r.yaml", *words, r=TOY)
    assert done.code in (1, 2)
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_run_that_is_chosen_twice_counts_once_in_the_table(swept, tmp_path):
    words = ("r.yaml", "--sweep", "method.rank=2,3", "--maximise", "value", "--out", "s", "--seeds", "2")
    words += ("--jobs", "4")  # two trials at once, which may be the same
    assert swept(*words, "--trials", "5", r=TOY).code == 0
    found = json.loads((tmp_path / "s/result.json").read_text())
    tried = {trial["settings"]["method.rank"] for trial in found["trials"]}
    assert {row["method.rank"]: row["runs"] for row in found["rows"]} == dict.fromkeys(tried, 2)
    assert len(found["runs"]) == 2 * len(tried)
    assert swept(*words, "--trials", "3", "--resume").code == 0  # fewer than were tried
    assert len(json.loads((tmp_path / "s/result.json").read_text())["trials"]) == 3
    assert len(json.loads((tmp_path / "s/trials.json").read_text())) == 5


def test_ranges_are_of_whole_numbers_or_not():
    spaces = Search(
        Sweep({"a": ["1..8"], "b": ["1e-5..1e-3:log"], "c": ["0.1..1"], "d": ["x"]}, [0]), 1, "v", False
    ).spaces()
    assert (spaces["a"].low, spaces["a"].high, type(spaces["a"].low)) == (1, 8, int)
    assert (spaces["b"].low, spaces["b"].high, spaces["b"].log) == (1e-5, 1e-3, True)
    assert (spaces["c"].low, spaces["c"].log) == (0.1, False)
    assert spaces["d"].choices == ("x",)
    with pytest.raises(RecipeError, match="a range is LOW"):
        Search(Sweep({"a": ["3..1"]}, [0]), 1, "v", False).spaces()


def test_a_logged_number_is_its_last(tmp_path):
    from recipes.running.search import _logged

    (tmp_path / "metrics.csv").write_text("phase,step,validation/loss\nfit,1,3.0\nfit,2,\nfit,3,1.5\nfit,4,\n")
    assert _logged(tmp_path / "metrics.csv", "metrics:validation/loss") == 1.5
