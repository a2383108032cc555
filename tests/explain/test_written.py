"""The same values however they are held give the same report; what cannot be told apart or computed with is refused."""

import datetime

import numpy as np
import pandas as pd
import pytest

from explain import ExplainError, GapExplainer, gap_by_group, gap_of_gaps
from explain.encode import encode
from tests.explain.test_gap_explainer import make

FAST = {"learners": "linear", "folds": 2, "n_bins": 5}
GROUPS = {"a": "a", "b": "b"}


@pytest.fixture(scope="module")
def frames():
    return make(300, 0, 1), make(300, 1, 1)


def encoded(*tables, **options):
    return encode([pd.Series(part, name="x") for part in tables], [np.zeros(len(part)) for part in tables], **options)


def test_a_negative_zero_is_a_zero(frames):
    """Rounded numbers have zeros of both signs; which of them comes first is the order of the rows, nothing else."""
    coarse = [frame.assign(a=frame.a.round().clip(-1, 1), w=frame.w.round()) for frame in frames]
    assert np.signbit(coarse[0].a[coarse[0].a == 0]).nunique() == 2
    explain = GapExplainer(["w"], GROUPS, **FAST).fit
    found = explain(*coarse).report_.to_json()
    for seed in range(3):
        assert explain(*(part.sample(frac=1, random_state=seed) for part in coarse)).report_.to_json() == found
    assert explain(*(part.assign(a=part.a + 0.0, w=part.w + 0.0) for part in coarse)).report_.to_json() == found


STAMPS = ["2020-01-01", "2020-01-03", None, "2021-01-01"]


@pytest.mark.parametrize(
    "values",
    [
        STAMPS,
        pd.array(STAMPS, dtype="string"),
        [stamp and stamp + " 00:00" for stamp in STAMPS],
        [stamp and stamp + "T00:00:00+09:00" for stamp in STAMPS],
        [stamp and stamp + "T00:00:00Z" for stamp in STAMPS],
    ],
)
def test_texts_that_are_written_as_dates_are_days(values):
    """As `read_csv` leaves them; 2020 is a leap year."""
    found = encoded(values)
    np.testing.assert_allclose(found.parts[0] - found.parts[0][0], [0, 2, np.nan, 366])
    assert found.said == {"kind": "date", "missing": [1]}
    assert encoded(values, categorical=True).said["kind"] == "category"  # where it is asked for


def test_dates_before_1678_are_days():
    found = encoded([datetime.date(1, 1, 1), datetime.date(1, 1, 31), datetime.date(2020, 1, 1)]).parts[0]
    assert found[1] - found[0] == 30
    assert found[2] - found[0] == (datetime.date(2020, 1, 1) - datetime.date(1, 1, 1)).days


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            (pd.to_datetime(["2020-01-01", "2020-01-02"]).tz_localize("America/New_York"), ["2020-01-01"]),
            "dates with and without a time zone",
        ),
        ((["2020-01-01T00:00Z", "2020-01-02"],), "dates with and without a time zone"),
        ((["2020-01-01", "2020-13-02"],), "holds dates that cannot be read"),
        ((pd.to_datetime(["2020-01-01"]), pd.to_timedelta(["1D"])), "date and duration values in different tables"),
        ((["2020-01-01"], ["soon"]), "category and date values in different tables"),
        (([1.0, 1e200],), "the value 1e\\+200, which is beyond 1e\\+150"),
        (([0.0, 1e-200],), "too close together"),
    ],
)
def test_columns_that_cannot_be_told_apart_or_computed_with_are_refused(tables, message):
    with pytest.raises(ExplainError, match=message) as caught:
        encoded(*tables)
    assert "\n" not in str(caught.value)


def test_a_code_is_the_same_category_whether_it_is_held_as_7_or_as_7_0():
    """A gap makes floats of whole numbers, in one of two files that are read apart."""
    codes = [7, 2, 5, 7, 2, 7]
    for held in ([7.0, 2.0, np.nan, 7.0, 2.0, 5.0], ["7", "2", None, "7", "2", "5"]):
        found = encoded(pd.Series(codes).astype("category"), pd.Series(held).astype("category"))
        assert found.said["levels"] == 3
        assert (found.parts[0][[0, 1, 2]] == found.parts[1][[0, 1, 5]]).all()
    ranks = encoded(codes, [7.0, 2.0, np.nan, 7.0, 2.0, 5.0], levels=["2", "5", "7"])
    np.testing.assert_array_equal(ranks.parts, [[2, 0, 1, 2, 0, 2], [2, 0, np.nan, 2, 0, 1]])


def test_hard_predictions_of_0_and_1_are_probabilities_in_both_tables(frames):
    """Labels 1 and 2, and a target where every row is predicted to be of the second class, written as 1."""
    source, target = (frame.assign(label=frame.label + 1) for frame in frames)
    source = source.assign(prediction=(source.prediction > 0.5).astype(int))
    report = GapExplainer(["w"], GROUPS, **FAST).fit(source, target.assign(prediction=1)).report_
    assert report.totals["source"] == pytest.approx((source.prediction + 1 != source.label).mean())
    assert report.totals["target"] == pytest.approx((target.label != 2).mean())


def series(frame, name, index):
    return {key: frame[key] for key in frame} | {name: frame[name].set_axis(index)}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda f: series(f, "a", range(1000, 1300)), "the columns of the source have different indexes"),
        ({}, lambda f: series(f, "a", [0] * 300), "the columns of the source have different indexes"),
        ({}, lambda f: {**f.to_dict("list"), "a": [1.0]}, "make no table"),
        ({}, lambda f: f.assign(label=1), r"holds one label \(1\), but at least two classes"),
        (
            {"loss": "brier"},
            lambda f: f.assign(label=np.array(["no", "no ", "yes"])[np.arange(300) % 3]),
            r"holds 3 different labels \('no', 'no ', 'yes'\)",
        ),
        ({"loss": "brier"}, lambda f: f.assign(prediction=f.prediction.astype(object)), "holds object values"),
        (
            {"loss": "brier"},
            lambda f: f.assign(prediction=99 * f.prediction),
            r"range from [\d.]+ to [5-9]",
        ),
        ({"loss": "log"}, lambda f: f.assign(prediction=0.0), "source's predictions of 0 have an infinite log loss"),
        ({"cluster": "k"}, lambda f: f.assign(k=f.label if f.a.mean() > 0.5 else "1"), "clusters of several types"),
        ({}, lambda f: f.assign(b=f.b + 99 * (f.a.mean() > 0.5)), r"AUC of each alone: 'b' 1.000"),
        ({"loss": "squared", "outcome": "loss"}, lambda f: f.assign(prediction=1e200), "beyond 1e\\+150"),
    ],
)
def test_refusals_say_what_is_wrong(frames, options, change, message):
    with pytest.raises(ExplainError, match=message) as caught:
        GapExplainer(["w"], GROUPS, **(FAST | options)).fit(*map(change, frames))
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_none_and_a_group_that_is_the_label_are_refused(frames):
    with pytest.raises(ExplainError, match=r"the source's predictions have losses .* not under 'accuracy'"):
        gap_of_gaps(*frames, ["w"], GROUPS, models=("prediction", "prediction"), loss="accuracy")
    with pytest.raises(ExplainError, match="tells the groups, so it cannot be the label"):
        gap_by_group(*frames, "label", ["w"], GROUPS, **FAST)
