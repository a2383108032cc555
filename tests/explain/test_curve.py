"""Many domains against one reference: joint intervals, sharing, chunks, and what a curve shows."""

import json

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from scipy.stats import norm, t as student

from explain import ExplainError, GapCurve, GapExplainer, chunks, gap_curve
from explain.functional import common_rows, covariance, each_level
from explain.nuisances import Family
from tests.explain.test_gap_explainer import make

FAST = {"learners": "linear", "folds": 2, "n_bins": 5}
GROUPS = {"a": "a", "rest": ["b", "colour"]}


@pytest.fixture(scope="module")
def tables():
    return make(500, 0, 1), {2001: make(300, 1, 2, move=0.2), "late": make(350, 1, 3, move=1.6)}


@pytest.fixture(scope="module")
def curve(tables):
    return gap_curve(*tables, ["w"], GROUPS, loss="brier", **FAST)


def test_a_curve_has_the_gap_and_its_terms_of_every_domain(curve, tables):
    assert list(curve.reports) == ["2001", "late"]
    source = ((tables[0].label - tables[0].prediction) ** 2).mean()
    for name, table in tables[1].items():
        points = {point.name: point for point in curve.points if point.domain == str(name)}
        target = ((table.label - table.prediction) ** 2).mean()
        assert points["gap"].value == pytest.approx(target - source, abs=1e-12)
        assert sum(points[term].value for term in ("baseline", "covariate", "outcome")) == pytest.approx(
            points["gap"].value, abs=1e-12
        )
        for term in curve[name].aggregate:
            assert (points[term.name].value, points[term.name].se) == (term.value, term.se)
            assert (points[term.name].low_alone, points[term.name].high_alone) == (term.low, term.high)
    assert {point.domain for point in curve.points if point.moved} == {"late"}


def test_simultaneous_intervals_are_wider_than_one_and_narrower_than_bonferroni(curve):
    assert 0.91 < curve.each_level < 1 - 0.1 / 8
    for point in curve.points:
        freedom = curve[point.domain].diagnostics["freedom"]
        reach = student.ppf((1 + curve.each_level) / 2, freedom)
        assert (point.high - point.value, point.value - point.low) == pytest.approx([reach * point.se] * 2)
        assert point.low < point.low_alone < point.high_alone < point.high


def test_without_sharing_every_report_is_that_of_two_domains(tables):
    apart = gap_curve(*tables, ["w"], GROUPS, loss="brier", shared=False, **FAST)
    for name, table in tables[1].items():
        alone = GapExplainer(["w"], GROUPS, loss="brier", **FAST).fit(tables[0], table).report_
        assert apart[name].to_json() == alone.to_json()


def test_what_is_shared_changes_no_bit_and_another_domain_changes_nothing(tables, curve, monkeypatch):
    fits = []
    learn = Family._learn
    monkeypatch.setattr(Family, "_learn", lambda self, *args: fits.append(1) or learn(self, *args))
    singles = {
        name: gap_curve(tables[0], {name: table}, ["w"], GROUPS, loss="brier", **FAST)
        for name, table in tables[1].items()
    }
    apart, together = len(fits), []
    monkeypatch.setattr(Family, "_learn", lambda self, *args: together.append(1) or learn(self, *args))
    both = gap_curve(*tables, ["w"], GROUPS, loss="brier", **FAST)
    # Of the reference alone are in each fold of both repeats the risk, the mean given the baseline, what is left of it,
    # and the mean given each of two subsets.
    assert apart - len(together) == 2 * 2 * (3 + 2)
    for name, single in singles.items():
        assert both[name].to_json() == single[name].to_json() == curve[name].to_json()


def test_workers_change_nothing(tables, curve):
    with parallel_config("threading"):
        found = gap_curve(*tables, ["w"], GROUPS, loss="brier", n_jobs=2, **FAST)
    assert found.to_json() == curve.to_json()


def test_joint_intervals_cover_all_at_once():
    """Means of five samples less that of a common one, by the pieces alone: coverage and the reach of one number."""
    rng = np.random.default_rng(0)
    covered, single, reaches = 0, 0, []
    for _ in range(400):
        common, others = rng.normal(size=300), rng.normal(size=(5, 400))
        rows = common_rows([-common[None]] * 5, [np.arange(300)] * 5, [np.full(300, 1 / 300)] * 6)
        spread = covariance([rows, *(np.eye(5)[:, [k]] * others[k] for k in range(5))])
        reaches.append(norm.ppf((1 + each_level(spread, 0.9, draws=1000)) / 2))
        z = np.abs(others.mean(1) - common.mean()) / np.sqrt(np.diag(spread))
        covered += z.max() <= reaches[-1]
        single += z.max() <= norm.ppf(0.95)
    assert 0.86 <= covered / 400 <= 0.94
    assert single / 400 < 0.8
    assert np.mean(reaches) < norm.ppf(1 - 0.05 / 5)


def test_the_joint_level_of_known_cases():
    assert each_level(np.ones((4, 4)), 0.9) == pytest.approx(0.9, abs=0.005)  # all the same: one number
    exact = 0.9 ** (1 / 6)  # independent: Sidak
    assert each_level(np.diag([1.0, 4, 9, 16, 25, 36, 0]), 0.9) == pytest.approx(exact, abs=0.002)
    with pytest.raises(ValueError, match="no estimate has a variance above 0"):
        each_level(np.zeros((2, 2)), 0.9)


def test_clusters_that_run_through_domains_are_counted_together():
    """The same patients in the reference and every domain: errors of a gap cancel where patients do not move."""
    patients = np.random.default_rng(0).normal(size=60)
    frames = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        who = np.repeat(np.arange(60), 6)
        frame = pd.DataFrame({"w": rng.normal(size=360), "z": rng.normal(size=360), "who": who})
        frames.append(frame.assign(loss=patients[who] + frame.z + rng.normal(0, 0.1, 360)))
    options = {"loss": "given", "outcome": "loss", **FAST}
    together = gap_curve(frames[0], dict(enumerate(frames[1:])), ["w"], {"z": "z"}, cluster="who", **options)
    naive = gap_curve(frames[0], dict(enumerate(frames[1:])), ["w"], {"z": "z"}, **options)
    assert max(p.se for p in together.curve("gap")) < 0.9 * min(p.se for p in naive.curve("gap"))


def test_weights_repeats_and_trimming_go_through_a_curve(tables):
    source, domains = tables
    weighted = {name: frame.assign(weight=1.0) for name, frame in domains.items()}
    options = {"repeats": 2, "trim": 0.02, **FAST}
    found = gap_curve(source.assign(weight=2.0), weighted, ["w"], {"a": "a"}, weight="weight", **options)
    plain = gap_curve(source, domains, ["w"], {"a": "a"}, **options)
    for one, other in zip(found.points, plain.points, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-8)
        assert one.low == pytest.approx(other.low, abs=1e-4)


def test_domains_of_a_curve_are_repeated_as_often_as_each_needs(tables, monkeypatch):
    monkeypatch.setattr("explain.plan.SETTLED_UNITS", 340)
    found = gap_curve(*tables, ["w"], {"a": "a"}, **FAST)
    assert [found[name].diagnostics["repeats"] for name in ("2001", "late")] == [2, 1]
    names = [point.name for point in found.points if point.domain == "late"]
    assert names == ["gap", "baseline", "covariate", "outcome"]


def test_domains_that_cannot_be_explained_are_named(tables, curve):
    source, domains = tables
    found = gap_curve(source, {"tiny": make(5, 1, 4), **domains}, ["w"], GROUPS, loss="brier", **FAST)
    assert list(found.refused) == ["tiny"]
    assert "the target has 5 usable rows" in found.refused["tiny"]
    assert "tiny was not explained: the target has 5 usable rows" in found.to_text()
    assert found["late"].to_json() == curve["late"].to_json()
    with pytest.raises(KeyError, match="'tiny' was not explained"):
        found["tiny"]
    with pytest.raises(ExplainError, match="none of the 1 domains can be explained; of 'tiny': the target has 5"):
        gap_curve(source, {"tiny": make(5, 1, 4)}, ["w"], GROUPS, **FAST)


def test_equal_losses_everywhere_are_a_flat_curve(tables):
    frame = tables[0].assign(loss=0.5)
    found = gap_curve(frame, {"same": frame}, ["w"], GROUPS, loss="given", outcome="loss", **FAST)
    assert [(p.value, p.low, p.high) for p in found.points] == [(0, 0, 0)] * 4


@pytest.mark.parametrize(
    ("domains", "options", "message"),
    [
        ([], {}, "domains is \\[\\], but a mapping of names to tables"),
        ({}, {}, "domains is {}, but a mapping"),
        ({1: None, "1": None}, {}, "two domains are called '1' when written out"),
        ({"x": "frame"}, {"loss": "hinge"}, "loss: expected one of"),
        ({"x": "frame"}, {"baseline": []}, "baseline is \\[\\]"),
    ],
)
def test_wrong_calls_are_refused(tables, domains, options, message):
    if isinstance(domains, dict):
        domains = dict.fromkeys(domains, tables[0])
    options = {"baseline": ["w"], **FAST, **options}
    with pytest.raises(ExplainError, match=message):
        gap_curve(tables[0], domains, options.pop("baseline"), GROUPS, **options)


def test_a_curve_reads_back_and_is_shown(curve):
    back = GapCurve.from_json(curve.to_json())
    assert back.to_json() == curve.to_json()
    assert json.loads(curve.to_json())["points"][0]["domain"] == "2001"
    with pytest.raises(ValueError, match="not the JSON of a curve"):
        GapCurve.from_json("{}")
    frame = back.to_frame()
    assert list(frame.columns)[:4] == ["domain", "name", "value", "se"]
    assert frame.moved.sum() == sum(point.moved for point in curve.points)
    assert {row["part"] for row in curve.shares()} == {"covariate", "outcome"}
    text = curve.to_text()
    assert "The baseline term differs from 0 nowhere." in text
    assert "few-rows: weak" in text
    page = curve.to_html()
    assert "data:image/png;base64" in page
    assert "Shares by variable" in page
    assert len(curve.plot().axes) == 4


def test_chunks_by_values_periods_and_rows():
    frame = pd.DataFrame({"day": pd.date_range("2023-12-30", periods=100), "site": [3, 1] * 50, "x": range(100)})
    shuffled = frame.sample(frac=1, random_state=0)
    assert list(chunks(shuffled, "site")) == ["1", "3"]
    months = chunks(shuffled, "day", every="month")
    assert [(name, len(part)) for name, part in months.items()] == [
        ("2023-12", 2),
        ("2024-01", 31),
        ("2024-02", 29),
        ("2024-03", 31),
        ("2024-04", 7),
    ]
    assert list(chunks(frame.assign(day=frame.day.astype(str)), "day", every="quarter")) == [
        "2023Q4",
        "2024Q1",
        "2024Q2",
    ]
    rows = chunks(shuffled, "x", rows=33)
    assert list(rows) == ["0 to 32", "33 to 66", "67 to 99"]
    assert [len(part) for part in chunks(frame, rows=30).values()] == [33, 34, 33]
    assert len(chunks(frame, rows=1000)) == 1
    assert list(chunks(frame.assign(x=0), "x", rows=50)) == ["0 to 0", "0 to 0 (2)"]


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (None, {}, "chunks need a column"),
        ("day", {"rows": 3, "every": "month"}, "choose one"),
        ("year", {}, "no column 'year', which is to tell the domains"),
        ("hole", {}, "has 1 missing values"),
        ("x", {"every": "month"}, "holds numbers, but every='month' needs dates"),
        ("word", {"every": "month"}, "holds what is no date"),
        ("day", {"every": "era"}, "every is 'era', but day, week"),
        (None, {"rows": 0}, "rows is 0, but a whole number of at least 1"),
        ("mixed", {}, "mixes kinds of values"),
    ],
)
def test_wrong_chunks_are_refused(column, options, message):
    frame = pd.DataFrame({"day": pd.date_range("2024-01-01", periods=3), "x": range(3), "hole": [1, None, 2]})
    frame = frame.assign(word=["a", "b", "c"], mixed=[1, "a", 2])
    with pytest.raises(ExplainError, match=message):
        chunks(frame, column, **options)
