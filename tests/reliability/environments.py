"""A machine that lacks something: a sentence or the right end, and the run goes on once it has it again."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.reliability.broken import LONGEST, Breaker, contents_of
from tests.reliability.compare import differences
from tests.reliability.server import OFFLINE, ROOT, Hung
from tests.reliability.variants import Variant

MB = 2**20
# name -> what is changed of a run: environment variables, limits, the run folder
PLACES: dict[str, dict[str, Any]] = {
    "no-home": {"env": {"HOME": None, "XDG_CACHE_HOME": None}},
    "home-missing": {"env": {"HOME": "/nonexistent/home"}},
    "home-device": {"env": {"HOME": "/dev/null"}},
    "home-odd": {"env": {"HOME": f"{tempfile.gettempdir()}/a b\u00e9\n'\"$x"}},
    "home-relative": {"env": {"HOME": "here"}},
    "cache-file": {"env": {"GAPBRIDGE_CACHE": "/dev/null/cache"}},
    "no-temporary": {"env": {"TMPDIR": "/nonexistent/tmp"}},
    "columns-odd": {"env": {"COLUMNS": "0", "TERM": "nothing", "LINES": "x"}},
    "few-files": {"limits": {"NOFILE": 16}},
    "files-64": {"limits": {"NOFILE": 64}},
    "file-1kb": {"limits": {"FSIZE": 1024}},
    "file-4kb": {"limits": {"FSIZE": 4096}},
    "file-16kb": {"limits": {"FSIZE": 16384}},
    "file-nothing": {"limits": {"FSIZE": 0}},
    "memory": {"limits": {"AS": 1024 * MB}},
    "memory-data": {"limits": {"DATA": 256 * MB}},
    "processes": {"limits": {"NPROC": 1}},
    "stack": {"limits": {"STACK": 1 * MB}},
    "read-only": {"out": "/sys/gapbridge"},
    "out-in-file": {"out": "/dev/null/run"},
    "out-long": {"out": "x" * 300},
    "out-null": {"out": "/proc/1/mem/run"},
}
DISKS = {"disk-60kb": 60, "disk-200kb": 200, "disk-400kb": 400}  # the run folder is a disk of this size
ALONE: dict[str, dict[str, str]] = {
    "locale-c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    "locale-latin": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
}


def disk_case(breaker: Breaker, variant: Variant, name: str) -> dict[str, Any]:
    """Run a variant in a folder on a small disk of its own, which then grows; only root can make one.

    Returns:
        A row as of `environment_case`; without codes where there can be no such disk.
    """
    place = breaker.home(f"environment-{name}", variant) / "run"
    place.mkdir()
    size = f"size={DISKS[name]}k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=False, capture_output=True)
    if made.returncode:
        return {"case": name, "codes": [], "said": "no disk can be made here", "fault": ""}
    try:
        return _tried(breaker, variant, name, {"grow": place})
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def environment_case(breaker: Breaker, variant: Variant, name: str) -> dict[str, Any]:
    """Run a variant where something is lacking, then where nothing is.

    Returns:
        A row: `case`, `codes` (without, and with), `said`, `fault` (a traceback, a hang, another end; else empty).
    """
    if name in DISKS:
        return disk_case(breaker, variant, name)
    breaker.home(f"environment-{name}", variant)
    return _tried(breaker, variant, name, PLACES.get(name, {}))


def _tried(breaker: Breaker, variant: Variant, name: str, place: dict[str, Any]) -> dict[str, Any]:
    unbroken, home = breaker.reference(variant), breaker.work / f"environment-{name}"
    row: dict[str, Any] = {"case": name, "codes": [], "said": "", "fault": ""}
    words = ["--out", place.get("out", "run")]
    try:
        if name in ALONE:
            row["codes"].append(_alone(variant, home, ALONE[name], words))
        else:
            request = breaker.request(variant, home, words)
            request |= {"env": request["env"] | place.get("env", {}), "limits": place.get("limits", {})}
            row["codes"].append(breaker.servers[0].start(request).wait(LONGEST))
        error = (home / "err.txt").read_text(encoding="utf-8", errors="replace").strip()
        row["said"] = error.splitlines()[-1][:300] if error else ""
        if error or place.get("limits", {}).get("FSIZE") != 0:  # a file of 0 bytes takes no sentence
            row["fault"] = _fault(row["codes"][0], error, row["said"])
        if "grow" in place:
            subprocess.run(["mount", "-o", "remount,size=64m", place["grow"]], check=True)
        if row["codes"][0] != 0 and "out" not in place:
            again = "--resume" if (home / "run" / "recipe.yaml").is_file() else "--force"
            request = breaker.request(variant, home, ["--out", "run", again])
            row["codes"].append(breaker.servers[1].start(request).wait(LONGEST))
            if row["codes"][1] != 0:
                row["fault"] = row["fault"] or f"it does not go on: {(home / 'err.txt').read_text()[-300:]}"
    except Hung as hung:
        return row | {"fault": str(hung)}
    if row["codes"][-1] == 0:
        unlike = differences(unbroken.contents["run"], contents_of(home)["run"])
        row["fault"] = row["fault"] or "; ".join(unlike[:2])
    return row


def _fault(code: int, error: str, last: str) -> str:
    if code in (0, 1, 2) and "Traceback" not in error and (code == 0 or " " in last):
        return f"not foreseen: {last}" if last.startswith("stopped: ") else ""
    return f"code {code}: {error[-300:]}"


def _alone(variant: Variant, home: Path, environment: dict[str, str], words: list[str]) -> int:
    """Run in a new interpreter, which alone reads the locale."""
    import os

    command = [sys.executable, "-m", "recipes.run", f"{variant.name}.yaml", *words]
    env = {**os.environ, **OFFLINE, **environment, "PYTHONPATH": str(ROOT), "GAPBRIDGE_CACHE": str(home / "cache")}
    with (home / "out.txt").open("w") as out, (home / "err.txt").open("w") as err:
        done = subprocess.run(command, cwd=home, env=env, stdout=out, stderr=err, timeout=2 * LONGEST, check=False)
    return done.returncode
