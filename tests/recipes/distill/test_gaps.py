"""What a grid says of its gaps: slopes over doublings, whether it could tell, and what the tuning chose."""

import json

import pytest
from scipy import stats

from recipes.distill.gaps import conditions, slopes
from recipes.distill.grid_block import Grid, Setting

LONG = {"regime": "A2", "augment": True}


def grid(settings, **changes):
    candidates = {name: [{"hard": {}}] for name in ("ce", "kd", "dkd", "dist")}
    return Grid(sizes=[100, 400], settings=settings, seeds=[0, 1, 2], candidates=candidates, **changes)


def rows(made, gap_of):
    """Results whose gap is what is asked for."""
    return [
        {"recipe": name, "size": size, "seed": seed, "rival": "dist", "kd": 0.5, "dkd": 0.1}
        | {"dist": 0.5 + gap_of(seed, made.settings[name].updates, size) / 100}
        for name, size in made.places
        for seed in made.seeds
    ]


def test_slopes_are_points_for_every_doubling_with_an_interval_over_seeds():
    made = grid(
        {
            "weak": Setting("previous_cifar", updates=100),
            "short": Setting(**LONG, updates=100),
            "long": Setting(**LONG, updates=800, sizes=[400]),
        }
    )
    by_updates, by_rows = (-0.5, -0.75, -1.0), (-0.2, 0.1, -0.2)

    def gap_of(seed, updates, size):  # 100 updates and 100 rows are no doubling; the weak recipe does not count
        return 5.0 + (3 if updates == 800 else 0) * by_updates[seed] + (2 if size == 400 else 0) * by_rows[seed]

    found = slopes(made, [row for row in rows(made, gap_of) if row["recipe"] != "weak"])
    weak = [{**row, "dist": 0.9} for row in rows(made, gap_of) if row["recipe"] == "weak"]
    assert slopes(made, [*weak, *[row for row in rows(made, gap_of) if row["recipe"] != "weak"]]) == found
    for name, each in (("updates", by_updates), ("rows", by_rows)):
        mean, error = sum(each) / 3, stats.sem(each)
        low, high = stats.t.interval(0.95, 2, mean, error)
        assert found[name] == pytest.approx({"value": mean, "low": low, "high": high})


def test_what_does_not_vary_has_no_slope_and_what_cannot_be_told_apart_neither():
    one = grid({"only": Setting(**LONG, updates=100)})
    assert set(slopes(one, rows(one, lambda seed, updates, size: 1.0))) == {"rows"}
    together = grid({"a": Setting(**LONG, updates=100, sizes=[100]), "b": Setting(**LONG, updates=200, sizes=[200])})
    assert slopes(together, rows(together, lambda seed, updates, size: 1.0)) == {}


def test_the_conditions_are_said():
    made = grid({"weak": Setting("previous_cifar"), "strong": Setting(**LONG, sizes=[400])})
    ce = {("weak", 100): 0.5, ("weak", 400): 0.6, ("strong", 400): 0.65}
    good = conditions(made, ce, 0.71)
    assert good["teacher_over_ce"].startswith("condition holds: on validation the teacher is 6.0 points above")
    assert "with 400 rows, the recipe strong adds 5.0 points to labels alone over weak" in good["ce_gain_of_strong"]
    assert conditions(made, ce, 0.69)["teacher_over_ce"].startswith("condition FAILS")
    assert conditions(made, ce | {("strong", 400): 0.5}, 0.9)["ce_gain_of_strong"].startswith("condition FAILS")
    apart = grid({"weak": Setting("previous_cifar", sizes=[100]), "strong": Setting(**LONG, sizes=[400])})
    assert set(conditions(apart, {("weak", 100): 0.5, ("strong", 400): 0.6}, 0.7)) == {"teacher_over_ce"}


@pytest.mark.filterwarnings("ignore:the teacher is right on")  # it has learnt nothing
def test_a_recipe_of_the_grid_has_rows_of_its_own_and_every_candidate_is_tried_at_every_rate(front, tmp_path):
    done = front("distill_grid_tiny.yaml", "--out", "grid", "grid.rates=[1.0, 4.0]")
    assert done.code == 0, done.err
    assert "condition" in done.out
    cells = {path.stem for path in (tmp_path / "grid/cells").glob("*.json")}
    assert {"longer-64-tuning", "strong-128-0"} <= cells
    assert not any(name.startswith("longer-128") for name in cells)
    tuned = json.loads((tmp_path / "grid/cells/strong-128-tuning.json").read_text())
    assert len(tuned["scores"]) == 4 * 2 * 2  # methods, the published and another, rates
    for name, choice in tuned["chosen"].items():
        own = [row["validation"] for row in tuned["scores"] if row["candidate"].startswith(f"{name}_")]
        assert choice["validation"] == max(own)
    result = json.loads((tmp_path / "grid/result.json").read_text())
    assert {row["size"] for row in result["gaps"] if row["recipe"] == "longer"} == {64}
    assert set(result["slopes"]) == {"updates", "rows"}
    strong, weak = (
        {r["seed"]: r["ce"] for r in result["cells"] if r["recipe"] == n and r["size"] == 64}
        for n in ("longer", "weak")
    )
    gained = [100 * (strong[seed] - weak[seed]) for seed in strong]
    assert result["ce_gain_of_strong"]["value"] == pytest.approx(sum(gained) / len(gained))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("grid.rates=[1.0, 1.0]", "grid.rates: expected different positive numbers, got [1.0, 1.0]"),
        ("grid.rates=[0.0]", "grid.rates: expected different positive numbers, got [0.0]"),
        ("grid.sizes=[128, 64]", "grid.sizes: expected ascending numbers of at least 1, got [128, 64]"),
    ],
)
def test_rates_and_rows_that_make_no_grid_are_refused(front, change, sentence):
    refused = front("distill_grid_tiny.yaml", "--check", change)
    assert refused.code != 0
    assert sentence in refused.err
