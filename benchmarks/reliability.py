"""What holds when something breaks: broken runs, damaged files, mutated recipes, hostile files, races.

The same code as ``pytest -m reliability``, at larger counts. Every case leaves a file under ``--work``, and a case that
has one is not tried again: the campaign can be stopped at any moment, and goes on when it is started again. A case with
a fault keeps its run folder there. ``--part`` does one part only, so that parts can run side by side; the results are
written when all parts are there.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import write_results
from tests.reliability.campaign import Campaign, Rows

COUNTS = {
    "broken": 216,
    "corruptions": 264,
    "runs": 54,  # of the corruptions: files of an interrupted run that is then resumed
    "parsed": 10000,
    "checked": 1000,
    "races": 24,
}
PARTS = ("hostile", "corruptions", "races", "broken", "environments", "checked", "parsed")


def main() -> None:
    """Do the parts that are asked for, and write the results once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="folder of the cases")
    parser.add_argument("--part", choices=[*PARTS, "none"], help="one part only; none only writes the results")
    options = parser.parse_args()
    with Campaign(options.work) as campaign:
        work: dict[str, Any] = {
            "hostile": campaign.hostile,
            "corruptions": lambda: campaign.corruptions(COUNTS["corruptions"], COUNTS["runs"]),
            "races": lambda: campaign.races(COUNTS["races"]),
            "broken": lambda: campaign.broken(COUNTS["broken"]),
            "environments": campaign.environments,
            "checked": lambda: campaign.checked(COUNTS["checked"]),
            "parsed": lambda: campaign.parsed(COUNTS["parsed"]),
        }
        for part in [options.part] if options.part else PARTS:
            if part != "none":
                work[part]()
        found = {part: campaign.rows(part) for part in PARTS}
    missing = [part for part in PARTS if not found[part]]
    figures, tables = summary(found)
    for name, value in figures.items():
        print(f"{name} {value:g}")
    if missing:
        print(f"not tried yet: {', '.join(missing)}; no results are written")
        return
    print(write_results("reliability", figures, tables, seeds=1))


def summary(found: dict[str, Rows]) -> tuple[dict[str, float], dict[str, Rows]]:
    """Figures and tables of the rows of all parts."""
    broken, corruptions, hostile, races = (found[part] for part in ("broken", "corruptions", "hostile", "races"))
    mutated = found["parsed"] + found["checked"]
    outcomes = Counter(row["outcome"] for row in corruptions)
    figures = {
        "broken_runs": len(broken),
        "finished_unlike_unbroken": sum(bool(row["unlike"]) for row in broken),
        "losses": sum(bool(row["lost"]) for row in broken),
        "untidy_ends": sum(bool(row["untidy"]) for row in broken),
        "corruptions": len(corruptions),
        "undetected": outcomes["undetected"],
        "raw_errors": outcomes["raw"],
        "harmless": outcomes["harmless"],
        "mutated_recipes": sum(row["accepted"] + row["refused"] + len(row["faults"]) for row in mutated),
        "accepted_recipes": sum(row["accepted"] for row in mutated),
        "tracebacks": sum(len(row["faults"]) for row in mutated),
        "not_foreseen": sum(len(row.get("unforeseen", ())) for row in mutated),
        "hostile_files": len(hostile),
        "code_run": sum(row["outcome"] == "code run" for row in hostile),
        "hostile_raw_errors": sum(row["outcome"] == "raw" for row in hostile),
        "races": len(races),
        "corrupted": sum(bool(row["corrupted"]) for row in races),
        "environments": len(found["environments"]),
        "environment_faults": sum(bool(row["fault"]) for row in found["environments"]),
    }
    ways = Counter((row["case"].rpartition("-")[0], row["signal"]) for row in broken)
    kinds = Counter((row["case"].rpartition("-")[0], row["what"].split()[0], row["outcome"]) for row in corruptions)
    tables: dict[str, Rows] = {
        "broken runs": [{"variant": v, "signal": s, "runs": n} for (v, s), n in sorted(ways.items())],
        "corruptions": [
            {"artefact": a, "damage": d, "outcome": o, "cases": n} for (a, d, o), n in sorted(kinds.items())
        ],
        "hostile files": [{"file": row["case"], "outcome": row["outcome"]} for row in hostile],
        "faults": list(_faults(found)),
    }
    return figures, tables


def _faults(found: dict[str, Rows]) -> Iterator[dict[str, str]]:
    """A row for every case that did not end as it should."""
    for row in found["broken"]:
        if row["unlike"] or row["lost"] or row["untidy"]:
            yield {"part": "broken", "case": row["case"], "what": f"{row['unlike']} {row['lost']} {row['untidy']}"}
    for row in found["corruptions"]:
        if row["outcome"] in ("undetected", "raw"):
            yield {"part": "corruptions", "case": row["case"], "what": f"{row['what']}: {row['outcome']} {row['said']}"}
    for row in [*found["parsed"], *found["checked"]]:
        for line in [*row["faults"], *row.get("unforeseen", ())]:
            yield {"part": "mutated", "case": line.partition(":")[0], "what": line}
    for row in found["hostile"]:
        if row["outcome"] in ("code run", "raw"):
            yield {"part": "hostile", "case": row["case"], "what": row["said"]}
    for part, key in (("races", "corrupted"), ("environments", "fault")):
        yield from ({"part": part, "case": row["case"], "what": row[key]} for row in found[part] if row[key])


if __name__ == "__main__":
    main()
