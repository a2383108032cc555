"""The explainer as a whole: what it finds, what must not change it, what it refuses."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from explain import ExplainError, GapExplainer, ModelGapExplainer
from explain.nuisances import Families, hist_gb, linear

FAST = {"learners": "linear", "folds": 3}


def make(rows, domain, seed, move=1.0):
    """Features w, a, b and a colour; the target moves a and lowers the weight of b."""
    rng = np.random.default_rng([seed, domain])
    w, a, b = rng.normal(size=(3, rows))
    a = a + move * domain
    colour = rng.integers(0, 3, rows)
    risk = expit(0.4 * w + a + (1 - 1.6 * move * domain) * b + 0.5 * (colour == 1))
    return pd.DataFrame(
        {
            "w": w,
            "a": a,
            "b": b,
            "colour": np.array(["red", "green", "blue"])[colour],
            "label": (rng.random(rows) < risk).astype(int),
            "prediction": expit(0.4 * w + a + b),
        }
    )


@pytest.fixture(scope="module")
def frames():
    return make(900, 0, 1), make(800, 1, 1)


@pytest.fixture(scope="module")
def report(frames):
    return GapExplainer(["w"], **FAST).fit(*frames).report_


def test_the_gap_telescopes_and_shares_sum_to_one(report, frames):
    gap = sum(term.value for term in report.aggregate)
    assert gap == pytest.approx(report.totals["gap"], abs=1e-12)
    losses = [((frame.prediction > 0.5) != frame.label).mean() for frame in frames]
    assert report.totals["gap"] == pytest.approx(losses[1] - losses[0], abs=1e-12)
    assert sum(term.value for term in report.outcome) == pytest.approx(1, abs=1e-10)
    assert sum(term.value for term in report.covariate) == pytest.approx(1, abs=1e-10)


def test_drivers_are_found_and_bystanders_are_not(report):
    assert [term.name for term in report.covariate] == ["a", "b", "colour"]
    assert [term.name for term in report.outcome] == ["recalibration", "a", "b", "colour"]
    covariate, outcome = ({term.name: term for term in part} for part in (report.covariate, report.outcome))
    values = {value.subset: value for value in report.values if value.kind == "covariate"}
    assert values[("a",)].low <= 1 <= values[("a",)].high  # only a has moved
    nothing = values[()]  # known, and not estimated
    assert (nothing.value, nothing.se, nothing.low, nothing.high) == (0, 0, 0, 0)
    assert covariate["a"].low > max(covariate[name].high for name in ("b", "colour"))
    assert outcome["colour"].low <= 0 <= outcome["colour"].high
    assert outcome["colour"].high < min(outcome[name].value for name in ("a", "b"))
    assert report.aggregate[2].low > 0
    assert report.aggregate[0].low <= 0 <= report.aggregate[0].high


def test_the_same_seed_gives_the_same_bits_and_another_does_not(report, frames):
    again = GapExplainer(["w"], **FAST).fit(*frames).report_
    assert again.to_json() == report.to_json()
    assert GapExplainer(["w"], seed=1, **FAST).fit(*frames).report_.to_json() != report.to_json()


def test_the_order_of_rows_and_columns_does_not_matter(report, frames):
    shuffled = [frame.sample(frac=1, random_state=3)[frame.columns[::-1]] for frame in frames]
    groups = {name: [name] for name in ("a", "b", "colour")}
    assert GapExplainer(["w"], groups, **FAST).fit(*shuffled).report_.to_json() == report.to_json()
    turned = GapExplainer(["w"], dict(reversed(groups.items())), **FAST).fit(*shuffled).report_
    assert {term.name: term for term in turned.outcome} == {term.name: term for term in report.outcome}
    assert {(v.kind, frozenset(v.subset)): v.value for v in turned.values} == pytest.approx(
        {(v.kind, frozenset(v.subset)): v.value for v in report.values}, abs=0, nan_ok=True
    )


def test_names_do_not_matter(report, frames):
    names = {"w": "z", "a": "m", "b": "a", "colour": "b", "label": "y"}
    renamed = [frame.rename(columns=names) for frame in frames]
    found = GapExplainer(["z"], {"1": "m", "0": "a", "x": "b"}, label="y", **FAST).fit(*renamed).report_
    for kind in ("aggregate", "covariate", "outcome"):
        for one, other in zip(getattr(report, kind), getattr(found, kind), strict=True):
            np.testing.assert_array_equal((one.value, one.se, one.low), (other.value, other.se, other.low))


def test_groups_of_columns_are_one_player(frames):
    found = GapExplainer(["w"], {"both": ["a", "colour"], "b": "b"}, **FAST).fit(*frames).report_
    assert [term.name for term in found.outcome] == ["recalibration", "both", "b"]
    assert len(found.values) == 8


def test_swapping_the_domains_flips_the_gap(report, frames):
    swapped = GapExplainer(["w"], **FAST).fit(*frames[::-1]).report_
    assert swapped.totals["gap"] == pytest.approx(-report.totals["gap"])


def test_two_halves_of_one_sample_have_nothing_to_share_out():
    covered, shares = [], []
    for seed in range(4):
        whole = make(1600, 0, 100 + seed)
        found = GapExplainer(["w"], {"a": "a"}, level=0.99, **FAST).fit(whole[:800], whole[800:]).report_
        covered += [term.low <= 0 <= term.high for term in found.aggregate]
        shares += [term.status for term in (*found.covariate, *found.outcome)]
    assert all(covered)
    assert set(shares) == {"no-shift"}


def test_a_constant_loss_gives_zeros_and_no_shares(frames):
    flat = [frame.assign(loss=0.25) for frame in frames]
    explainer = GapExplainer(["w"], {"a": "a", "b": "b"}, loss="given", outcome="loss", **FAST)
    found = explainer.fit(*flat).report_
    assert [(term.value, term.se) for term in found.aggregate] == [(0, 0)] * 3
    assert {term.status for term in (*found.covariate, *found.outcome)} == {"no-shift"}


def test_a_pure_covariate_shift_is_credited_to_the_variable_that_moved():
    """Only z1 moves, z2 follows it: z1 alone explains the shift (the paper's example against the causal order)."""

    def table(domain, seed=0, rows=2500):
        rng = np.random.default_rng([seed, domain])
        w, z1 = rng.normal(size=(2, rows))
        z1 = z1 + domain
        z2 = -z1 + rng.normal(size=rows)
        y = (rng.random(rows) < expit(w + z1)).astype(int)
        return pd.DataFrame({"w": w, "z1": z1, "z2": z2, "label": y, "prediction": expit(0.5 * w - 0.5 * z2 + 0.5)})

    found = GapExplainer(["w"], loss="brier", **FAST).fit(table(0), table(1)).report_
    shares = {term.name: term for term in found.covariate}
    values = {value.subset: value for value in found.values if value.kind == "covariate"}
    assert shares["z1"].value > shares["z2"].value
    assert abs(values[("z1",)].value - 1) < 3 * values[("z1",)].se + 0.05


@pytest.mark.parametrize("loss", ["zero_one", "brier", "log"])
def test_three_classes(loss):
    def table(domain):
        rng = np.random.default_rng(domain)
        x = rng.normal(size=(900, 5))
        scores = np.column_stack([x[:, 0], x[:, 1] * (1 - 2 * domain) + x[:, 3], x[:, 2] + x[:, 4]])
        y = (scores + rng.gumbel(size=scores.shape)).argmax(1)
        f = np.exp(np.column_stack([x[:, 0], x[:, 1] + x[:, 3], x[:, 2] + x[:, 4]]))
        f /= f.sum(1, keepdims=True)
        frame = pd.DataFrame(x, columns=["w", "z", "u", "s", "t"]).assign(
            label=np.array(["p", "q", "r"])[y], top=np.array(["p", "q", "r"])[f.argmax(1)]
        )
        return frame.assign(**{f"f{c}": f[:, c] for c in range(3)})

    frames = table(0), table(1)
    groups = {"z": "z", "s": "s", "rest": ["u", "t"]}
    explainer = GapExplainer(["w"], groups, prediction=["f0", "f1", "f2"], loss=loss, **FAST)
    found = explainer.fit(*frames).report_
    assert sum(term.value for term in found.aggregate) == pytest.approx(found.totals["gap"], abs=1e-12)
    assert found.aggregate[2].low > 0
    shares = {term.name: term.value for term in found.outcome}
    assert shares["z"] > 2 * abs(shares["rest"])
    if loss == "zero_one":  # predicted labels are as good as probabilities
        by_label = GapExplainer(["w"], groups, prediction="top", **FAST).fit(*frames).report_
        assert by_label.to_json() == found.to_json()


def test_a_given_loss_and_the_squared_loss_agree():
    def table(domain):
        rng = np.random.default_rng(domain)
        x = rng.normal(size=(700, 3))
        y = x @ [1, 1, 1 - domain] + rng.normal(size=700)
        frame = pd.DataFrame(x, columns=["w", "a", "b"]).assign(label=y, prediction=x.sum(1))
        return frame.assign(loss=(y - x.sum(1)) ** 2)

    frames = table(0), table(1)
    groups = {"a": "a", "b": "b"}
    squared = GapExplainer(["w"], groups, loss="squared", outcome="loss", **FAST).fit(*frames).report_
    given = GapExplainer(["w"], groups, loss="given", outcome="loss", **FAST).fit(*frames).report_
    assert [term.value for term in squared.outcome] == [term.value for term in given.outcome]
    shares = {term.name: term.value for term in squared.outcome}
    assert shares["b"] > shares["a"]


def test_repeats_fieller_and_trimming(frames, report):
    explainer = GapExplainer(["w"], repeats=3, interval="fieller", trim=0.05, **FAST)
    found = explainer.fit(*frames).report_
    assert 0.5 < found.diagnostics["overlap"]["kept"] < 1
    assert sum(term.value for term in found.aggregate) == pytest.approx(found.totals["gap"], abs=1e-12)
    assert sum(term.value for term in found.outcome) == pytest.approx(1, abs=1e-10)
    shares = {term.name: term for term in found.outcome}
    assert shares["b"].high - shares["b"].value != pytest.approx(shares["b"].value - shares["b"].low)  # Fieller is skew


def test_errors_of_linear_learners_hold_the_noise_of_the_folds(frames):
    options = {**FAST, "learners": "linear", "groups": {"a": "a", "b": "b"}}
    found = GapExplainer(["w"], **options).fit(*frames).report_
    assert found.diagnostics["repeats"] == 2
    assert found.outcome == GapExplainer(["w"], repeats=2, **options).fit(*frames).report_.outcome
    once = GapExplainer(["w"], repeats=1, **options).fit(*frames).report_
    assert once.diagnostics["repeats"] == 1
    assert [term.value for term in once.outcome] != [term.value for term in found.outcome]
    boosted = GapExplainer(["w"], **{**options, "learners": "hist_gb", "groups": {"a": "a"}, "folds": 2})
    assert boosted.fit(*frames).report_.diagnostics["repeats"] == 1
    models = frames[0].assign(first=frames[0]["prediction"], second=0.5)
    compared = ModelGapExplainer({"a": "a"}, loss="brier", learners="linear", folds=2).fit(models).report_
    assert compared.diagnostics["repeats"] == 2


def test_one_linear_nuisance_is_enough_to_cross_fit_twice(frames, monkeypatch):
    mixed = Families(outcome=linear(), density=linear(), loss=hist_gb())
    monkeypatch.setattr("explain.explainer.choose_families", lambda families, sample: mixed)
    assert GapExplainer(["w"], {"b": "b"}, folds=2).fit(*frames).report_.diagnostics["repeats"] == 2


def test_many_rows_of_few_clusters_are_cross_fitted_twice(frames, monkeypatch):
    monkeypatch.setattr("explain.plan.SETTLED_UNITS", 500)
    clustered = [frame.assign(patient=np.arange(len(frame)) // 4) for frame in frames]
    found = [
        GapExplainer(["w"], {"b": "b"}, cluster=name, **FAST).fit(*clustered).report_ for name in (None, "patient")
    ]
    assert [report.diagnostics["repeats"] for report in found] == [1, 2]


def test_clusters_widen_the_intervals(frames):
    four = [
        pd.concat([frame[:300].assign(patient=np.arange(300) + 1000 * side)] * 4) for side, frame in enumerate(frames)
    ]
    groups = {"b": "b"}
    naive = GapExplainer(["w"], groups, **FAST).fit(*four).report_
    robust = GapExplainer(["w"], groups, cluster="patient", **FAST).fit(*four).report_
    assert robust.aggregate[0].se > 1.5 * naive.aggregate[0].se


def test_any_scikit_learn_pair_is_a_learner(frames):
    pair = (
        RandomForestClassifier(20, min_samples_leaf=20, random_state=0),
        RandomForestRegressor(20, min_samples_leaf=20, random_state=0),
    )
    found = GapExplainer(["w"], {"a": "a"}, learners=pair, folds=2).fit(*frames).report_
    assert found.diagnostics["learners"] == {"outcome": "given", "density": "given", "loss": "given"}
    assert sum(term.value for term in found.aggregate) == pytest.approx(found.totals["gap"], abs=1e-12)


def test_auto_prefers_boosting_where_nothing_is_smooth():
    def table(domain):
        rng = np.random.default_rng(domain)
        x = rng.uniform(size=(900, 2))
        risk = np.where((x[:, 0] > 0.5) ^ (x[:, 1] > 0.3), 0.9, 0.1 + 0.4 * domain)
        y = (rng.random(900) < risk).astype(int)
        return pd.DataFrame(x, columns=["w", "z"]).assign(label=y, prediction=np.where(risk > 0.5, 0.9, 0.1))

    found = GapExplainer(["w"], {"z": "z"}, folds=2, n_bins=5).fit(table(0), table(1)).report_
    assert found.diagnostics["learners"]["outcome"] == "hist_gb"


def test_boosting_takes_categories_as_they_are(frames):
    cut = [frame[:300] for frame in frames]
    found = GapExplainer(["w"], {"colour": "colour"}, learners="hist_gb", folds=2, n_bins=5).fit(*cut).report_
    assert found.diagnostics["learners"]["density"] == "hist_gb"
    assert sum(term.value for term in found.aggregate) == pytest.approx(found.totals["gap"], abs=1e-12)


def test_more_than_ten_players_are_sampled():
    def table(domain):
        rng = np.random.default_rng(domain)
        x = rng.normal(size=(400, 12))
        y = (rng.random(400) < expit(x[:, 2] + 2 * x[:, 1] * (1 - 2 * domain))).astype(int)
        return pd.DataFrame(x, columns=["w", *(f"z{i}" for i in range(1, 12))]).assign(
            label=y, prediction=expit(2 * x[:, 1])
        )

    found = GapExplainer(["w"], learners="linear", folds=2, subset_draws=10, n_bins=5).fit(table(0), table(1)).report_
    assert len(found.outcome) == 12
    sampling = found.diagnostics["shift"]["outcome"]["sampling"]
    assert sampling["pairs_drawn"] == 10
    assert 0 < sampling["se"]["z1"] < next(term.se for term in found.outcome if term.name == "z1")
    assert max(found.outcome[1:], key=lambda term: term.value).name in ("z1", "z2")
    assert sum(term.value for term in found.outcome) == pytest.approx(1, abs=1e-8)


def test_mappings_matrices_and_datasets_are_tables(frames):
    import datasets

    names = ["w", "a", "b", "label", "prediction"]
    cut = [frame[names] for frame in frames]
    expected = GapExplainer(["w"], {"b": "b", "a": "a"}, **FAST).fit(*cut).report_
    mappings = [{name: frame[name].to_numpy() for name in names} for frame in cut]
    assert GapExplainer(["w"], {"b": "b", "a": "a"}, **FAST).fit(*mappings).report_.to_json() == expected.to_json()
    sets = [datasets.Dataset.from_pandas(frame) for frame in cut]
    assert GapExplainer(["w"], {"b": "b", "a": "a"}, **FAST).fit(*sets).report_.to_json() == expected.to_json()
    matrices = [frame.to_numpy() for frame in cut]
    by_number = GapExplainer([0], {"b": 2, "a": 1}, label=3, prediction=4, **FAST).fit(*matrices).report_
    assert by_number.to_json() == expected.to_json()


def broken(frames, **changes):
    return [frame.assign(**changes) for frame in frames]


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"baseline": []}, None, "baseline is \\[\\], but it must be a list of at least one column"),
        ({"loss": "hinge"}, None, "loss: expected one of 'zero_one', .*, got 'hinge'"),
        ({"loss": "squared"}, None, "outcome='risk' needs the loss for every label"),
        ({"folds": 1}, None, "folds: expected a whole number >= 2, got 1"),
        ({"level": 1.0}, None, "level: expected a finite number > 0 and < 1, got 1.0"),
        ({"learners": "lasso"}, None, "learners are 'lasso'"),
        ({"baseline": ["age"]}, None, "no column 'age'"),
        ({"groups": {"g": ["a", "w"]}}, None, "'w' is listed twice"),
        ({"groups": {"g": "label"}}, None, "'label' is a label"),
        ({"groups": {}}, None, "no variable"),
        ({}, lambda f: f.assign(a=np.nan), "column 'a' of the source has 900 missing"),
        ({}, lambda f: f.assign(prediction=f.prediction * 3), "must be probabilities"),
        ({}, lambda f: f.assign(prediction="maybe"), "'maybe', which is not among the labels"),
        ({}, lambda f: f[:20], "the source has 20 usable rows, but 3 folds need 30"),
        ({}, lambda f: f[:0], "the source has 0 rows"),
        ({}, lambda f: f.assign(label=1), "at least two classes"),
        ({}, lambda f: f.assign(label=(np.arange(len(f)) < 3).astype(int)), "a label occurs 3 times in the source"),
        ({"loss": "given", "outcome": "loss", "loss_column": "colour"}, None, "numbers are needed"),
    ],
)
def test_refusals(frames, options, change, message):
    tables = frames if change is None else [change(frame) for frame in frames]
    options = {"baseline": ["w"], "groups": {"a": "a", "b": "b"}, **FAST, **options}
    with pytest.raises(ExplainError, match=message) as caught:
        GapExplainer(**options).fit(*tables)
    assert "\n" not in str(caught.value)


def test_separable_domains_are_refused(frames):
    source, target = frames
    with pytest.raises(ExplainError, match=r"with an AUC of 1\.000"):
        GapExplainer(["w"], {"a": "a"}, **FAST).fit(source, target.assign(a=target.a + 50))


def test_weak_overlap_is_flagged():
    source, target = make(900, 0, 1, move=2.6), make(900, 1, 1, move=2.6)
    found = GapExplainer(["w"], {"a": "a", "b": "b"}, **FAST).fit(source, target).report_
    assert {term.status for term in found.aggregate} == {"low-overlap"}


def test_a_bar_shows_how_far_it_is_and_changes_nothing(frames, capfd):
    one, two = (
        GapExplainer(["w"], {"a": "a"}, progress=progress, **FAST).fit(*frames).report_ for progress in (False, True)
    )
    assert one.to_json() == two.to_json()
    said = capfd.readouterr()
    assert "outcome shift" in said.err
    assert said.out == ""
