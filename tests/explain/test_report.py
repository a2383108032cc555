"""The report: strict JSON both ways, table, text, and no heavy imports."""

import html
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from explain.report import GapReport, SubsetValue, Term

NAN, INF = math.nan, math.inf


@pytest.fixture
def report():
    return GapReport(
        mode="domain",
        loss="zero_one",
        level=0.9,
        totals={"source": 0.25, "target": 0.35, "gap": 0.1},
        aggregate=(
            Term("baseline", -0.02, 0.01, -0.036, -0.004),
            Term("covariate", 0.03, 0.01, 0.014, 0.046, "low-overlap"),
            Term("outcome", 0.09, 0.02, 0.057, 0.123),
        ),
        covariate=(Term("age", NAN, NAN, NAN, NAN, "no-shift"), Term("nan", NAN, NAN, NAN, NAN, "no-shift")),
        outcome=(
            Term("recalibration", 0.6, 0.1, 0.43, 0.77),
            Term("age", 0.5, 0.1, -INF, INF),
            Term("nan", -0.1, 0.1, -0.26, 0.06, "near-one"),
        ),
        values=(
            SubsetValue("outcome", (), 0.6, 0.1, 0.43, 0.77),
            SubsetValue("outcome", ("age", "nan"), 1.0, 0.0, 1.0, 1.0),
        ),
        diagnostics={"ess": 812.5, "auc": NAN, "folds": [0.1, INF], "note": "text", "none": None},
    )


def test_json_reads_back_the_same(report):
    text = report.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    back = GapReport.from_json(text)
    assert back.to_json() == text
    assert repr(back) == repr(report)  # NaN is not equal to itself, but prints alike


def test_numpy_in_diagnostics_becomes_plain(report):
    extra = replace(report, diagnostics={"ess": np.float64(3), "weights": np.array([1.0, NAN]), "n": np.int64(2)})
    back = GapReport.from_json(extra.to_json()).diagnostics
    assert back["ess"] == 3
    assert back["n"] == 2
    assert back["weights"][0] == 1
    assert math.isnan(back["weights"][1])


def test_the_table_has_every_term(report):
    rows = report.table()
    assert [(row["part"], row["name"]) for row in rows[:4]] == [
        ("aggregate", "baseline"),
        ("aggregate", "covariate"),
        ("aggregate", "outcome"),
        ("covariate", "age"),
    ]
    assert set(rows[0]) == {"part", "name", "value", "se", "low", "high", "status"}
    assert len(rows) == 8


def test_the_text_is_a_waterfall_with_the_sign_in_words(report):
    text = report.to_text()
    assert report.sign in text
    assert "worse on the target" in report.sign
    lines = text.splitlines()
    bars = {line.split()[0]: line for line in lines if line}
    assert "gap +0.1000" in lines[0]
    # The bars follow each other: where the covariate term begins, the baseline term ended.
    assert bars["baseline"].count("-") > 2
    assert bars["covariate"].index("++") < bars["outcome"].index("++")
    assert bars["target"].rindex("|") > bars["source"].rindex("|")
    assert "no-shift: not estimated" in text
    assert "near-one: " in text
    assert "low-overlap: " in text


@pytest.mark.parametrize(
    ("mode", "ends", "words"),
    [("models", ("first", "second"), "same rows"), ("gap-of-gaps", ("source", "target"), "second model loses more")],
)
def test_other_modes_say_what_positive_means(report, mode, ends, words):
    other = replace(report, mode=mode, aggregate=(), totals={ends[0]: 0.1, ends[1]: 0.1, "gap": 0.0})
    assert words in other.sign
    assert ends[0] in other.to_text().splitlines()[0]


def test_a_zero_gap_draws_a_waterfall(report):
    zero = tuple(Term(term.name, 0.0, 0.0, 0.0, 0.0) for term in report.aggregate)
    flat = replace(report, aggregate=zero, totals={"source": 0.2, "target": 0.2, "gap": 0.0})
    assert "baseline" in flat.to_text()


def test_refusals(report):
    with pytest.raises(ValueError, match="mode is 'paired'"):
        replace(report, mode="paired")
    with pytest.raises(ValueError, match="status of a term is 'fine'"):
        replace(report, aggregate=(Term("baseline", 0, 0, 0, 0, "fine"),))
    for text in ("{}", "[]", "not json", '{"mode": "domain"}'):
        with pytest.raises(ValueError, match="not the JSON of a gap report"):
            GapReport.from_json(text)


def test_importing_the_report_is_cheap():
    code = "import sys, explain.report; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_report_is_a_frame_a_figure_and_a_page(report):
    frame = report.to_frame()
    assert list(frame.columns) == ["part", "name", "value", "se", "low", "high", "status"]
    assert frame.to_dict("records")[2] == report.table()[2]
    figure = report.plot()
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([-0.02, 0.03, 0.09])
    assert [bar.get_y() for bar in bars] == pytest.approx([0.25, 0.23, 0.26])  # each begins where the former ended
    assert len(figure.axes) == 2  # the covariate shift has no share to draw
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([-0.1, 0.5, 0.6])
    page = report.to_html()
    assert html.escape(report.summary()) in page
    assert "data:image/png;base64," in page
    assert page.index("<details>") < page.index("age, nan")
    assert "low-overlap</b>: weak" in page
    assert "http" not in page
    empty = replace(report, aggregate=(), covariate=(), outcome=(), values=())
    assert empty.plot().axes == []
    assert empty.to_frame().empty


def test_overlap_is_drawn_where_it_is_known(report):
    chances = [[0.75, 0.25], [0.25, 0.75]]
    figure = replace(report, diagnostics={"overlap": {"chances": chances}}).plot()
    assert len(figure.axes) == 3
    drawn = [patch.get_data().values.tolist() for patch in figure.axes[2].patches]
    assert drawn == chances


def test_a_page_escapes_names(report):
    evil = replace(report, outcome=(replace(report.outcome[0], name="<script>"),))
    assert "<script>" not in evil.to_html()


def test_the_summary_says_whether_the_largest_term_differs_from_0_and_whether_anything_is_shared_out(report):
    assert "The largest term is 'outcome' (+0.0900 [+0.0570, +0.1230])." in report.summary()
    assert "can have a large share" in report.summary()
    unsure = replace(report, aggregate=(Term("outcome", 0.09, 0.1, -0.05, 0.2),), outcome=report.covariate)
    assert "(+0.0900 [-0.0500, +0.2000]), which cannot be told from 0." in unsure.summary()
    assert unsure.summary().endswith("Nothing is shared out among variables.")
    between = replace(report, mode="models", totals={"first": 0.2, "second": 0.3, "gap": 0.1}, aggregate=())
    assert "explained variation of the difference across inputs" in between.summary()


def test_small_losses_are_told_with_more_decimals(report):
    small = replace(
        report,
        totals={"source": 2.5e-5, "target": 3.5e-5, "gap": 1e-5},
        aggregate=(Term("outcome", 1e-5, 1e-6, 8e-6, 1.2e-5),),
    )
    assert "gap +0.0000100" in small.to_text()
    assert "+0.0000100  [+0.0000080, +0.0000120]" in small.to_text()
    assert "[+0.0000080, +0.0000120]" in small.summary()
    assert "<td>1e-05</td>" in small.to_html()
