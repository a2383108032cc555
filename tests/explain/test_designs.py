"""The truth of the coverage benchmark, against enumeration that shares no code with it; and estimates against it."""

import numpy as np
import pytest

from benchmarks import explain_fixture as fixture
from benchmarks.explain_designs import DESIGNS, Design, truth
from explain import GapExplainer

BITS = np.array([0.0, 1.0])


def by_cell(values):
    """A value of every cell of the fixture, as a function of features."""
    return lambda x: np.asarray(values)[(x[0] * 4 + x[1] * 2 + x[2]).astype(int)]


POPULATION = Design(
    "fixture",
    ("w", "z1", "z2"),
    (BITS, BITS, BITS),
    lambda domain, rows, rng: rng.integers(0, 2, (rows, 3)),
    lambda domain, x: (np.log(by_cell(fixture.p_w(domain))(x)), np.log(by_cell(fixture.p_z(domain))(x))),
    lambda domain, x: by_cell(fixture.RISK[domain])(x),
    by_cell(fixture.MODEL),
)


@pytest.mark.parametrize("loss", ["zero_one", "brier", "log"])
def test_the_truth_is_that_of_enumeration(loss):
    found, expected = truth(POPULATION, loss, bins=2), fixture.definitions(loss)
    names = {"v(none)": "v()", "share none": "share none"}
    compared = 0
    for name, value in expected.items():
        mine = name.replace("v(none)", names["v(none)"])
        if mine in found:
            assert found[mine] == pytest.approx(value, abs=1e-12), name
            compared += 1
    assert compared >= 12


@pytest.mark.slow
@pytest.mark.parametrize("learners", ["linear", "hist_gb"])
def test_estimates_average_to_the_truth(learners):
    """Two columns of zeros and ones, whose product the regressions miss: no bias beyond half a standard error."""
    design = next(design for design in DESIGNS if design.name == "binary")
    true, found = truth(design, "zero_one"), []
    for seed in range(16):
        rng = np.random.default_rng([9, seed])
        tables = design.table(0, 4000, rng), design.table(1, 4000, rng)
        report = GapExplainer(["w"], learners=learners, seed=seed, min_shift_z=0.0).fit(*tables).report_
        shares = [("covariate", t) for t in report.covariate] + [("outcome", t) for t in report.outcome[1:]]
        found.append({f"{kind} share {term.name}": (term.value, term.se) for kind, term in shares})
    for name in found[0]:
        values, errors = np.array([one[name] for one in found]).T
        allowed = 0.5 * errors.mean() + 2 * values.std(ddof=1) / len(found) ** 0.5
        assert abs(values.mean() - true[name]) < allowed, name
