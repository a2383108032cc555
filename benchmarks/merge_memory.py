"""Memory of merging four experts of a random 3 GB checkpoint out of core, beside the bound, and a merge that is killed.

Every merge runs in a process of its own; its peak is the largest resident memory, less that of a process that imports
the same and merges nothing. Both end without the clearing up of Python, which alone takes 130 MB more. The bound is
2.5 times the largest tensor and 400 MB. `peak_over_bound` is the largest ratio over task arithmetic, TIES, DARE and the
twin merge (rank 8). One merge is killed (SIGKILL) behind the half of its tensors and called again; its files are
compared by sha256 with those of an unbroken one. The plans of four 7B and four 70B experts come from headers alone.
Needs about 22 GB of disk and an hour on a busy core; `--size small` tries it out.
With `--folder` what is measured is kept there, and the same command goes on behind the last method.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.cells import Cells, family_in, kept_in
from benchmarks.checkpoints import GB_1_2, GB_3, LLAMA_7B, LLAMA_70B, SHALLOW, SMOLLM2, Llama, measured
from benchmarks.common import write_results
from twinmerge.big.plan import bound, plan_of
from twinmerge.big.writing import size_of

EXPERTS = 4
SIZES = {"small": SMOLLM2, "shallow": SHALLOW, "medium": GB_1_2, "full": GB_3}
MERGE = """
import os, sys
from twinmerge.big.merge import merge_files
folder, out, method = sys.argv[1:4]
experts = {f"e{i}": f"{folder}/expert{i}" for i in range(1, 5)}
merge_files(f"{folder}/base", experts, out, method=method)
os._exit(0)
"""
TWIN = """
import os, sys
from twinmerge.big.twin import twin_files
folder, out = sys.argv[1:3]
experts = {f"e{i}": f"{folder}/expert{i}" for i in range(1, 5)}
twin_files(f"{folder}/base", experts, out, rank=8, options={"scale": 0.25})
os._exit(0)
"""
FLOOR = {
    MERGE: """
import os, twinmerge.big.merge, twinmerge.methods
[twinmerge.methods.find(method) for method in twinmerge.methods.OURS]
os._exit(0)
""",
    TWIN: """
import os, twinmerge.big.twin, twinmerge.artefact, twinmerge.functional
os._exit(0)
""",
}
RUNS = {"task_arithmetic": MERGE, "ties": MERGE, "dare": MERGE, "twin": TWIN}


def digest(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            found[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def killed_and_resumed(folder: Path, expected: dict[str, str], tensors: int) -> bool:
    """Kill a merge behind the half of its tensors, call it again, and compare what it leaves."""
    out = folder / "killed"
    journal = folder / ".killed.merging" / ".journal"
    for left in (out, journal.parent):
        shutil.rmtree(left, ignore_errors=True)
    command = [sys.executable, "-c", MERGE, str(folder), str(out), "task_arithmetic"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not journal.exists() or journal.read_text().count("\n") < tensors // 2:
        time.sleep(0.05)
        if process.poll() is not None:
            raise RuntimeError("the merge ended before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_text().count("\n") - 1
    measured(command)
    same = digest(out) == expected
    print(f"killed behind {done} of {tensors} tensors; the same bytes: {same}", flush=True)
    shutil.rmtree(out)
    return same


def plan_rows() -> tuple[list[dict[str, object]], dict[str, float]]:
    """What four experts of 7B and 70B take, from headers that no file has."""
    rows: list[dict[str, object]] = []
    figures = {}
    for name, model in (("7B", LLAMA_7B), ("70B", LLAMA_70B)):
        entries = model.entries()
        size = sum(map(size_of, entries.values()))
        for method, rank in (("task_arithmetic", 0), ("ties", 0), ("dare", 0), ("twin", 8)):
            shared = "task_arithmetic" if rank else method
            plan = plan_of(entries, shared, EXPERTS, (EXPERTS + 1) * size, size, rank=rank)
            rows.append({"model": name, "method": method, "read_gb": plan.read / 1e9, "passes": plan.passes,
                         "written_gb": plan.written / 1e9, "peak_gb": plan.peak / 1e9,
                         "bound_gb": bound(entries) / 1e9, "hours": plan.seconds / 3600})  # fmt: skip
            figures[f"plan_{name.lower()}_{method}_peak_gb"] = plan.peak / 1e9
    return rows, figures


def merged(folder: Path, method: str, model: Llama) -> dict[str, object]:
    """Run one merge in a process of its own, beside the memory of one that merges nothing."""
    family_in(folder, model, EXPERTS)
    entries, program, out = model.entries(), RUNS[method], folder / "merged"
    most, size = bound(entries), sum(map(size_of, entries.values()))
    shutil.rmtree(out, ignore_errors=True)
    floor = measured([sys.executable, "-c", FLOOR[program]]).peak
    used = measured([sys.executable, "-c", program, str(folder), str(out), method])
    planned = plan_of(entries, method if program is MERGE else "task_arithmetic", EXPERTS,
                      (EXPERTS + 1) * size, size, rank=8 if program is TWIN else 0)  # fmt: skip
    found = {"method": method, "peak_mb": (used.peak - floor) / 1e6, "floor_mb": floor / 1e6, "bound_mb": most / 1e6,
             "planned_mb": planned.peak / 1e6, "over_bound": (used.peak - floor) / most, "seconds": used.seconds,
             "processor_seconds": used.processor, "digest": digest(out)}  # fmt: skip
    shutil.rmtree(out)
    return found


def measure(name: str, folder: Path, cells: Cells) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Write the checkpoints, run every merge, and kill one."""
    model, where = SIZES[name], folder / name
    rows = [cells.of(f"{name} {method}", partial(merged, where, method, model)) for method in RUNS]
    digests = [row.pop("digest") for row in rows]
    tensors = len(model.entries())

    def killed() -> dict[str, bool]:
        family_in(where, model, EXPERTS)
        return {"same": killed_and_resumed(where, digests[list(RUNS).index("task_arithmetic")], tensors)}

    same = cells.of(f"{name} killed", killed)["same"]
    shutil.rmtree(where, ignore_errors=True)
    return rows, {
        "peak_over_bound": max(row["over_bound"] for row in rows),
        "checkpoint_gb": sum(map(size_of, model.entries().values())) / 1e9,
        "experts": EXPERTS,
        "killed_and_resumed_identical": float(same),
        **{f"peak_mb_{row['method']}": row["peak_mb"] for row in rows},
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--folder", type=Path, help="where to keep what is measured, to go on when it was stopped")
    options = parser.parse_args()
    with kept_in(options.folder) as (folder, cells):
        rows, figures = measure(options.size, folder, cells)
    plans, planned = plan_rows()
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)
    if options.size == "full":
        print(write_results("merge_memory", {**figures, **planned}, {"merges": rows, "plans": plans}, 1))


if __name__ == "__main__":
    main()
