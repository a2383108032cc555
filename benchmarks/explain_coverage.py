"""Coverage of the nominal 90 % intervals of a gap explanation, on a design whose truth is known.

Four independent normal features (w, z1, z2, z3; standard deviation 1.5) with means (.5, 1, .35, 1) in the source and 0
in the target; log odds of the label x @ (.3, .6, .4, .6) in the source and x @ (.3, -.2, .4, 1) in the target; the
model is a logistic regression on 10,000 other source rows. 4,000 rows a domain, 200 replicates, linear nuisances.

``coverage_min`` and ``coverage_max`` are over the aggregate terms and all detailed terms (values of subsets and Shapley
shares) with a truth in [.1, .85], for the 0-1 loss; ``coverage_near_one`` is the lowest over values with a truth above
.85 (not 1 by definition), ``coverage_v_y_z1`` that of the outcome value of z1 (truth .92); ``plugin_coverage_max`` is
the highest coverage of uncorrected estimates with truth in [.1, .85]; ``bias_over_sd_max`` the largest |bias| in
standard deviations of these terms. Figures with ``brier`` are the same for the Brier score.

Every replicate is kept under runs/explain_coverage/, so that an interrupted run goes on where it stopped;
``python -m benchmarks.explain_coverage 10`` runs ten replicates without writing results. Takes about ten minutes of one
core a loss.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm, qmc
from sklearn.linear_model import LogisticRegression

from benchmarks.common import write_results
from explain import GapExplainer
from explain.functional import loss_table, shapley_map, subsets
from explain.functional.intervals import critical

CELLS = Path("runs/explain_coverage")
ROWS, REPLICATES, LEVEL, BINS = 4000, 200, 0.9, 20
LOSSES = ("zero_one", "brier")
NAMES = ("z1", "z2", "z3")
SD = 1.5
MEANS = np.array([[0.5, 1.0, 0.35, 1.0], [0.0, 0.0, 0.0, 0.0]])
WEIGHTS = np.array([[0.3, 0.6, 0.4, 0.6], [0.3, -0.2, 0.4, 1.0]])
MASKS = subsets(3)


def sample(domain: int, rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Features, shape (rows, 4), and labels of a domain."""
    x = rng.normal(size=(rows, 4)) * SD + MEANS[domain]
    return x, (rng.random(rows) < expit(x @ WEIGHTS[domain])).astype(int)


@cache
def model() -> LogisticRegression:
    """The model to explain."""
    return LogisticRegression(C=1e6, max_iter=1000).fit(*sample(0, 10_000, np.random.default_rng(0)))


def table(domain: int, rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of a domain with the model's predictions."""
    x, y = sample(domain, rows, rng)
    frame = pd.DataFrame(x, columns=["w", *NAMES])
    return frame.assign(label=y, prediction=model().predict_proba(x)[:, 1])


def truth(loss: str) -> dict[str, float]:
    """Every term from the definitions, by quasi-Monte Carlo with errors of about .001.

    As the features are independent, a partial shift moves the means of its features and nothing else.
    """

    def losses(x: Any) -> Any:
        return loss_table(loss, model().predict_proba(x)[:, 1], 2)  # type: ignore[arg-type]

    def expected(x: Any, domain: int) -> Any:
        p = expit(x @ WEIGHTS[domain])
        return (losses(x) * np.stack([1 - p, p], 1)).sum(1)

    noise = SD * norm.ppf(qmc.Sobol(4, seed=1).random_base2(20))
    w_moved = noise + np.array([MEANS[1, 0], *MEANS[0, 1:]])
    e000, e100 = expected(noise + MEANS[0], 0).mean(), expected(w_moved, 0).mean()
    target = noise + MEANS[1]
    e110, e111 = expected(target, 0).mean(), expected(target, 1).mean()
    found = {"baseline": e100 - e000, "covariate": e110 - e100, "outcome": e111 - e110}

    nodes, weight = np.polynomial.hermite_e.hermegauss(41)
    z = SD * norm.ppf(qmc.Sobol(3, seed=2).random_base2(14))
    given_w = np.array(
        [
            [
                expected(
                    np.column_stack([np.full(len(z), w), z + np.where(mask, MEANS[1, 1:], MEANS[0, 1:])]), 0
                ).mean()
                for w in nodes * SD + MEANS[1, 0]
            ]
            for mask in MASKS
        ]
    )
    left = ((given_w - given_w[-1]) ** 2) @ (weight / weight.sum())
    found |= _named("covariate", 1 - left / left[0])

    delta = np.diff(losses(target), axis=1)[:, 0]
    whole = np.mean(delta**2 * (expit(target @ WEIGHTS[1]) - expit(target @ WEIGHTS[0])) ** 2)
    known = SD * norm.ppf(qmc.Sobol(4, seed=3).random_base2(11)) + MEANS[1]
    inner = SD * norm.ppf(qmc.Sobol(4, seed=4).random_base2(12)) + MEANS[1]
    v_y = []
    for mask in MASKS[:-1]:
        moving = np.append(False, ~mask)
        remains = []
        for point in known:
            x = np.where(moving, inner, point)
            p_1, q = expit(x @ WEIGHTS[1]), expit(x @ WEIGHTS[0])
            bins = np.minimum((q * BINS).astype(int), BINS - 1)
            count = np.maximum(np.bincount(bins, minlength=BINS), 1)
            p_s = (np.bincount(bins, p_1, BINS) / count)[bins]
            unbiased = count / np.maximum(count - 1, 1)  # of a variance within a bin
            remains.append(np.mean(np.diff(losses(x), axis=1)[:, 0] ** 2 * (p_1 - p_s) ** 2 * unbiased[bins]))
        v_y.append(1 - np.mean(remains) / whole)
    return found | _named("outcome", np.append(v_y, 1.0))


def _named(kind: str, v: Any) -> dict[str, float]:
    found = {f"{kind} v({_subset(mask)})": float(value) for mask, value in zip(MASKS, v, strict=True)}
    shares = shapley_map(MASKS) @ v
    return found | {f"{kind} share {name}": float(s) for name, s in zip(("none", *NAMES), shares, strict=True)}


def _subset(mask: Any) -> str:
    return ",".join(name for name, inside in zip(NAMES, mask, strict=True) if inside)


def replicate(loss: str, seed: int) -> dict[str, Any]:
    """Value, interval and uncorrected interval of every term on fresh rows."""
    rng = np.random.default_rng([2024, seed])
    source, target = (table(domain, ROWS, rng) for domain in (0, 1))
    explainer = GapExplainer(["w"], loss=loss, learners="linear", level=LEVEL, n_bins=BINS, seed=seed, min_shift_z=0.0)
    report = explainer.fit(source, target).report_
    found: dict[str, Any] = {term.name: _row(term) for term in report.aggregate}
    for kind, terms in (("covariate", report.covariate), ("outcome", report.outcome)):
        for term in terms:
            found[f"{kind} share {'none' if term.name == 'recalibration' else term.name}"] = _row(term)
        for part in report.diagnostics["shift"][kind]["subsets"]:
            half = critical(LEVEL) * part["uncorrected_se"]
            name = f"{kind} v({','.join(part['subset'])})"
            found[name] = {"plugin": [part["uncorrected"] - half, part["uncorrected"] + half]}
    for value in report.values:
        found[f"{value.kind} v({','.join(value.subset)})"] |= _row(value)
    return found


def _row(term: Any) -> dict[str, Any]:
    return {"value": term.value, "se": term.se, "low": term.low, "high": term.high}


def summarise(loss: str, true: Mapping[str, float], replicates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bias, spread and coverage of every term that is not fixed by definition."""
    rows = []
    for term, value in true.items():
        kind = "aggregate" if " " not in term else "share" if "share" in term else "value"
        if term in ("covariate v()", "covariate share none") or term.endswith(f"v({','.join(NAMES)})"):
            continue
        cells = [found[term] for found in replicates]
        estimates = np.array([cell["value"] for cell in cells])
        row: dict[str, Any] = {
            "loss": loss,
            "term": term,
            "kind": kind,
            "truth": value,
            "bias": float(estimates.mean() - value),
            "sd": float(estimates.std(ddof=1)),
            "se": float(np.mean([cell["se"] for cell in cells])),
            "coverage": float(np.mean([cell["low"] <= value <= cell["high"] for cell in cells])),
        }
        if "plugin" in cells[0]:
            row["plugin_coverage"] = float(np.mean([c["plugin"][0] <= value <= c["plugin"][1] for c in cells]))
        rows.append(row)
    return rows


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of one loss."""
    middle = [row for row in rows if row["kind"] == "aggregate" or 0.1 <= row["truth"] <= 0.85]
    near = [row for row in rows if row["kind"] == "value" and row["truth"] > 0.85]
    return {
        "coverage_min": min(row["coverage"] for row in middle),
        "coverage_max": max(row["coverage"] for row in middle),
        "coverage_near_one": min(row["coverage"] for row in near),
        "coverage_v_y_z1": next(row["coverage"] for row in rows if row["term"] == "outcome v(z1)"),
        "plugin_coverage_max": max(row["plugin_coverage"] for row in middle if "plugin_coverage" in row),
        "bias_over_sd_max": max(abs(row["bias"]) / row["sd"] for row in middle),
    }


def kept(path: Path, make: Any) -> Any:
    """What a file holds, or what is made and then kept in it."""
    if not path.exists():
        made = json.dumps(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(made, encoding="utf-8")
        temporary.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def main(count: int = REPLICATES) -> None:
    """Run or resume, print and write the figures."""
    rows, found = [], {}
    for loss in LOSSES:
        true = kept(CELLS / f"truth_{loss}.json", lambda loss=loss: truth(loss))
        cells = []
        for seed in range(count):
            cells.append(kept(CELLS / f"{loss}_{seed}.json", lambda loss=loss, seed=seed: replicate(loss, seed)))
            if seed % 10 == 9:
                print(loss, seed + 1, "replicates", flush=True)
        summary = summarise(loss, true, cells)
        for row in summary:
            print(*(f"{part:.4f}" if isinstance(part, float) else part for part in row.values()), sep="  ")
        rows += summary
        prefix = "" if loss == LOSSES[0] else f"{loss}_"
        found |= {prefix + name: value for name, value in figures(summary).items()}
        print(found, flush=True)
    if count == REPLICATES:
        print(write_results("explain_coverage", {**found, "replicates": count}, {"terms": rows}, count))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
