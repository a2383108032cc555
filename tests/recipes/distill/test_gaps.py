"""What sweeps of comparisons say of the gap: slopes over doublings, what strong training gains, and if they tell."""

import json

import pytest
from scipy import stats

from benchmarks.distill_grid import figures
from benchmarks.gaps import slopes
from recipes.distill.compare import can_tell, report
from recipes.distill.compare_block import Compare
from recipes.running.folder import RunFolder

BY_UPDATES, BY_ROWS = (-0.5, -0.75, -1.0), (-0.2, 0.1, -0.2)


def place(updates, size, gap_of, recipe="strong", ce=(0.6, 0.61, 0.62)):
    """A run whose gap is what is asked for, by seed."""
    accuracies = [{"ce": ce[s], "kd": 0.5, "dkd": 0.1, "dist": 0.5 + gap_of(s, updates, size) / 100} for s in range(3)]
    means = {name: {"value": 100 * sum(row[name] for row in accuracies) / 3} for name in accuracies[0]}
    result = {"rival": "dist", "gap": {"value": 0.0}, "teacher": 70.0, "accuracy": means}
    result["cells"] = [{"seed": seed, "accuracy": row} for seed, row in enumerate(accuracies)]
    return {"recipe": recipe, "updates": updates, "size": size, "result": result}


def gap_of(seed, updates, size):
    """100 updates and 100 rows are no doubling."""
    return 5.0 + (3 if updates == 800 else 0) * BY_UPDATES[seed] + (2 if size == 400 else 0) * BY_ROWS[seed]


STRONG = [place(100, 100, gap_of), place(100, 400, gap_of), place(800, 400, gap_of)]


def test_slopes_are_points_for_every_doubling_with_an_interval_over_seeds():
    found = slopes(STRONG)
    for name, each in (("updates", BY_UPDATES), ("rows", BY_ROWS)):
        mean, error = sum(each) / 3, stats.sem(each)
        low, high = stats.t.interval(0.95, 2, mean, error)
        assert found[name] == pytest.approx({"value": mean, "low": low, "high": high})


def test_what_does_not_vary_has_no_slope_and_what_cannot_be_told_apart_neither():
    def one(seed, updates, size):
        return 1.0

    assert set(slopes([place(100, 100, one), place(100, 400, one)])) == {"rows"}
    assert slopes([place(100, 100, one), place(200, 200, one)]) == {}


def test_the_weak_recipe_has_no_part_in_slopes_and_is_what_labels_gain_over():
    weak = [place(100, size, lambda *_: 40.0, "weak", (0.5, 0.52, 0.54)) for size in (100, 400)]
    found = figures([*weak, *STRONG])
    assert {name: found[f"gap_slope_{name}"] for name in ("updates", "rows")} == slopes(STRONG)
    assert found["ce_gain_of_strong"]["value"] == pytest.approx(100 * (0.1 + 0.09 + 0.08) / 3)
    assert found["teacher_over_ce"] == pytest.approx(70 - 61)


def test_the_condition_is_said():
    assert can_tell(0.71, 0.65).startswith("condition holds: on validation the teacher is 6.0 points above")
    assert can_tell(0.7, 0.65).startswith("condition holds: on validation the teacher is 5.0 points above")
    assert can_tell(0.69, 0.65).startswith("condition FAILS: on validation the teacher is 4.0 points above")
    assert can_tell(0.62, 0.65).startswith("condition FAILS: on validation the teacher is 3.0 points below")


def test_the_report_has_the_teacher_the_number_of_seeds_and_every_warning_once(tmp_path):
    chosen = {name: {"terms": {name: {}}, "rate": 1.0, "validation": 0.5} for name in ("kd", "dkd")}
    tuning = {"chosen": chosen, "rival": "dkd", "scores": [], "condition": "", "warning": "it knows nothing"}
    cells = [
        {"seed": seed, "accuracy": {"kd": 0.5, "dkd": right}, "teacher": 0.75, "warning": told}
        for seed, right, told in ((0, 0.5, "no more here"), (1, 0.625, "no more here"), (2, 0.75, ""))
    ]
    report(Compare(), tuning, cells, RunFolder(tmp_path, "compare", quiet=True))
    made = json.loads((tmp_path / "result.json").read_text())
    low, high = stats.t.interval(0.95, 2, 12.5, stats.sem([0.0, 12.5, 25.0]))
    assert made["gap"] == pytest.approx({"value": 12.5, "low": low, "high": high})
    assert made["warnings"] == ["it knows nothing", "no more here"]
    page = (tmp_path / "report.html").read_text()
    for told in ("mean over 3 seeds, 95 % interval", "<th scope='row'>teacher</th>", *made["warnings"]):
        assert page.count(told) >= 1
