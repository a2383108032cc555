"""Coverage of the nominal 90 % intervals of a gap explanation, on three designs whose truth is known.

The designs of `benchmarks.explain_designs`, 0-1 loss, both learners (``linear`` and ``hist_gb``, boosting), 2 000 and
4 000 rows a domain, 200 replicates. A term, a share or the value of a subset counts where its status is ``ok``; the
status decides from the data alone, so it counts in some replicates and not in others.

``coverage_min`` is the lowest coverage over terms and shares, by design, learner and rows, that are ``ok`` in at least
a tenth of the replicates, with either learner or with one, and ``coverage_mean`` the mean; ``coverage_near_one`` the
lowest over values that are ``ok`` or ``near-one`` with a truth above .85 (not 1 by definition). ``wrongly_ok_rate`` is
the share of all terms, shares and values that are ``ok`` and missed by more than twice the nominal rate, beyond what
200 replicates leave to chance (one-sided binomial test, 1 %).
``bias_over_sd_max`` is the largest |bias| in standard deviations of terms and shares. ``low_overlap_flagged`` and
``few_clusters_flagged`` are the shares of terms that are flagged where the domains hardly overlap (the linear design
with its means three times as far apart; four times as far it is refused), and where each domain has twelve clusters,
over 10 replicates.

Every replicate is kept under runs/explain_coverage/, so that an interrupted run goes on where it stopped; replicates go
round the cells, so that all of them are always equally far. ``python -m benchmarks.explain_coverage 10`` does ten of
each and prints the figures without writing results; ``10 write`` writes them too, and how many they are. ``ok_rate`` is
the share of terms and shares that are ``ok`` in the cells of 4 000 rows; of fewer, no share is.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.common import write_results
from benchmarks.explain_designs import DESIGNS, Design, truth
from explain import GapExplainer

CELLS = Path("runs/explain_coverage")
ROWS, LEARNERS, REPLICATES, LEVEL = (2000, 4000), ("linear", "hist_gb"), 200, 0.9
FLAGGED = 10  # replicates of what must be flagged
CHANCE = 0.01
Found = dict[str, Any]


def replicate(design: Design, rows: int, learners: str, seed: int) -> Found:
    """Value, error, interval and status of every term on fresh rows."""
    rng = np.random.default_rng([2024, seed])
    tables = [design.table(domain, rows, rng) for domain in (0, 1)]
    start = time.process_time()
    report = GapExplainer(design.columns[:1], learners=learners, level=LEVEL, seed=seed).fit(*tables).report_
    found: Found = {term.name: _row(term) for term in report.aggregate}
    for kind, terms in (("covariate", report.covariate), ("outcome", report.outcome)):
        for term in terms:
            found[f"{kind} share {'none' if term.name == 'recalibration' else term.name}"] = _row(term)
    found |= {f"{value.kind} v({','.join(value.subset)})": _row(value) for value in report.values}
    return {"terms": found, "seconds": time.process_time() - start}


def _row(term: Any) -> list[Any]:
    numbers = [term.value, term.se, term.low, term.high]
    return [*(number if np.isfinite(number) else None for number in numbers), term.status]


def flagged(case: str, seed: int) -> float:
    """Share of aggregate terms and shares with the right flag, where it must be raised."""
    rng, design = np.random.default_rng([2025, seed]), DESIGNS[0]
    tables = [design.table(domain, 2400, rng) for domain in (0, 1)]
    options: dict[str, Any] = {}
    if case == "low-overlap":
        for name in design.columns:
            tables[1][name] -= 2 * (tables[0][name].mean() - tables[1][name].mean())
    else:
        tables = [table.assign(clinic=12 * side + np.arange(2400) % 12) for side, table in enumerate(tables)]
        options = {"cluster": "clinic"}
    report = GapExplainer(["w"], {name: name for name in design.columns[1:]}, learners="linear", **options).fit(*tables)
    terms = [*report.report_.aggregate, *report.report_.outcome, *report.report_.covariate]
    return float(np.mean([term.status in (case, "no-shift", "weak-shift") for term in terms]))


def summarise(cell: Mapping[str, Any], true: Mapping[str, float], replicates: list[Found]) -> list[Found]:
    """Bias, spread and coverage of every term that is not fixed by definition."""
    rows = []
    full = max((term.count(","), term) for term in true if "covariate v(" in term)[1].removeprefix("covariate ")
    for term, value in true.items():
        if term in ("covariate v()", "covariate share none") or term.endswith(full):
            continue
        known = [found["terms"][term] for found in replicates if found["terms"][term][0] is not None]
        trusted = [one for one in known if one[4] == "ok"]
        fair = [one for one in known if one[4] in ("ok", "near-one")]
        estimates = np.array([one[0] for one in known])
        row: Found = dict(cell) | {"term": term, "truth": value}
        row |= {"kind": "share" if "share" in term else "value" if " v(" in term else "term", "ok": len(trusted)}
        if len(known) > 1:
            row |= {"bias": float(estimates.mean() - value), "sd": float(estimates.std(ddof=1))}
            row |= {"se": float(np.mean([one[1] for one in known]))}
        for name, part in (("coverage", known), ("coverage_ok", trusted), ("coverage_fair", fair)):
            row[name] = float(np.mean([one[2] <= value <= one[3] for one in part])) if part else None
        rows.append(row)
    return rows


def figures(rows: list[Found], count: int) -> dict[str, float]:
    """The figures over all cells."""
    enough = [row for row in rows if row["ok"] >= max(count / 10, 2)]
    plain = [row for row in enough if row["kind"] != "value"]
    near = [row for row in rows if row["kind"] == "value" and 0.85 < row["truth"] < 0.9995 and row["coverage_fair"]]
    allowed = 2 * (1 - LEVEL)
    wrong = [binom.sf(round(row["ok"] * (1 - row["coverage_ok"])) - 1, row["ok"], allowed) < CHANCE for row in enough]
    return {
        "coverage_min": min(row["coverage_ok"] for row in plain),
        **{
            f"coverage_min_{name}": min(row["coverage_ok"] for row in plain if row["learners"] == name)
            for name in LEARNERS
        },
        "coverage_mean": float(np.mean([row["coverage_ok"] for row in plain])),
        "coverage_near_one": min((row["coverage_fair"] for row in near), default=1.0),
        "wrongly_ok_rate": float(np.mean(wrong)),
        "ok_rate": float(
            np.mean([row["ok"] / count for row in rows if row["kind"] != "value" and row["rows"] >= 4000])
        ),
        "bias_over_sd_max": max(abs(row["bias"]) / row["sd"] for row in plain),
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


def main(count: int = REPLICATES, write: bool = False) -> None:
    """Run or resume, print and write the figures."""
    cells = [(design, rows, learners) for design in DESIGNS for rows in ROWS for learners in LEARNERS]
    known: dict[int, list[Found]] = {number: [] for number in range(len(cells))}
    for seed in range(count):
        for number, (design, rows, learners) in enumerate(cells):
            path = CELLS / f"{design.name}_{learners}_{rows}_{seed}.json"
            known[number].append(
                kept(path, lambda d=design, n=rows, given=learners, s=seed: replicate(d, n, given, s))  # type: ignore[misc]
            )
        print(f"{seed + 1} of {count} replicates", flush=True)
    table: list[Found] = []
    for number, (design, rows, learners) in enumerate(cells):
        true = kept(CELLS / f"truth_{design.name}.json", lambda d=design: truth(d, "zero_one"))  # type: ignore[misc]
        table += summarise({"design": design.name, "learners": learners, "rows": rows}, true, known[number])
    found = figures(table, count)
    for case in ("low-overlap", "few-clusters"):
        shares = [kept(CELLS / f"{case}_{seed}.json", lambda c=case, s=seed: flagged(c, s)) for seed in range(FLAGGED)]  # type: ignore[misc]
        found[f"{case.replace('-', '_')}_flagged"] = float(np.mean(shares))
    for row in table:
        print(*(f"{part:.3f}" if isinstance(part, float) else part for part in row.values()), sep="  ")
    print(found, flush=True)
    seconds = [one["seconds"] for several in known.values() for one in several]
    if write or count == REPLICATES:
        found |= {"replicates": count, "seconds_per_replicate": float(np.mean(seconds))}
        print(write_results("explain_coverage", found, {"terms": table}, count))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), write="write" in sys.argv[2:])
