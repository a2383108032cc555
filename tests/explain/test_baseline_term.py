"""The baseline term shared out among its columns, an option beyond the paper."""

import json

import numpy as np
import pandas as pd
import pytest

from explain import ExplainError, GapExplainer, GapReport

FAST = {"loss": "given", "outcome": "loss", "learners": "linear", "folds": 2, "n_bins": 5, "attribute_baseline": True}


def table(rows, domain, seed):
    """A loss 1 + u + 2 v + u v + z of independent u and v; in the target u has moved by 1 and v by .5."""
    rng = np.random.default_rng([seed, domain])
    u, v, z = rng.normal(size=(3, rows))
    u, v = u + domain, v + 0.5 * domain
    noise = rng.normal(0, 0.1, rows)
    return pd.DataFrame(
        {"u": u, "v": v, "z": z, "still": rng.normal(size=rows), "loss": 1 + u + 2 * v + u * v + z + noise}
    )


@pytest.fixture(scope="module")
def report():
    frames = [table(1500, domain, 3) for domain in (0, 1)]
    return GapExplainer(["v", "still", "u"], {"z": "z"}, **FAST).fit(*frames).report_


def test_contributions_sum_to_the_term_and_are_the_true_ones(report):
    assert [term.name for term in report.baseline] == ["v", "still", "u"]
    assert sum(term.value for term in report.baseline) == pytest.approx(report.aggregate[0].value, abs=1e-10)
    # E[1 + u + 2 v + u v] moves by 1 with u alone, by 1 with v alone and by 2.5 with both: Shapley values of 1.25 each.
    for term, expected in zip(report.baseline, (1.25, 0.0, 1.25), strict=True):
        assert abs(term.value - expected) < 3.5 * term.se
        assert term.se < 0.15


def test_a_column_that_follows_another_is_credited_for_what_it_moves_by_itself():
    """Only u has moved, v follows it and the loss is v: moving u moves v along; moving v first moves the loss too."""

    def follows(domain):
        rng = np.random.default_rng([8, domain])
        u = rng.normal(size=1500) + domain
        v = u + rng.normal(size=1500)
        return pd.DataFrame({"u": u, "v": v, "z": rng.normal(size=1500), "loss": v + rng.normal(size=1500)})

    found = GapExplainer(["u", "v"], {"z": "z"}, **FAST).fit(follows(0), follows(1)).report_
    for term in found.baseline:  # E[loss] moves by 1 with u alone and with v alone
        assert abs(term.value - 0.5) < 3.5 * term.se


def test_it_is_shown_and_reads_back(report):
    assert "Contributions to the baseline term (beyond the paper)" in report.to_text()
    assert GapReport.from_json(report.to_json()).to_json() == report.to_json()
    assert (report.to_frame().part == "baseline").sum() == 3
    labels = [axes.get_xlabel() for axes in report.plot().axes]
    assert any(label.startswith("contribution to the baseline term (beyond the paper)") for label in labels)


def test_without_it_nothing_is_shared_out_and_nothing_else_changes(report):
    frames = [table(1500, domain, 3) for domain in (0, 1)]
    plain = GapExplainer(["v", "still", "u"], {"z": "z"}, **(FAST | {"attribute_baseline": False})).fit(*frames).report_
    assert plain.baseline == ()
    assert "baseline" not in json.loads(plain.to_json())
    assert plain.aggregate == report.aggregate
    assert plain.outcome == report.outcome


def test_refusals():
    frames = [table(100, domain, 3) for domain in (0, 1)]
    with pytest.raises(ExplainError, match="attribute_baseline needs a loss of rows, which the loss 'auc' is not"):
        GapExplainer(["u"], **(FAST | {"loss": "auc"})).fit(*frames)
    with pytest.raises(ExplainError, match="11 columns are more than the 10 it takes"):
        GapExplainer([f"w{i}" for i in range(11)], {"z": "z"}, **FAST).fit(*frames)
