"""The README's first command on a fresh machine: environment, first run with an empty cache, second run, composition.

Everything happens in a temporary folder: a new virtual environment from ``constraints.txt``, an empty cache, then
``merge.yaml`` twice through the real command, and ``compose.yaml``, which takes the experts that the merge has cached.
`merge_first_seconds` counts the installation too, as the newcomer's clock does.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Time the steps and write the results."""
    with tempfile.TemporaryDirectory() as scratch:
        python = Path(scratch) / "venv" / "bin" / "python"
        pinned = ("-c", str(ROOT / "constraints.txt"))
        steps = {
            "environment": [sys.executable, "-m", "venv", str(python.parents[1])],
            "installer": [str(python), "-m", "pip", "install", "-q", *pinned, "uv"],
            "install": [str(python.parent / "uv"), "pip", "install", "-q", "-p", str(python), *pinned, str(ROOT)],
            "first run": [str(python), "-m", "recipes.run", "merge.yaml"],
            "second run": [str(python), "-m", "recipes.run", "merge.yaml"],
            "composition": [str(python), "-m", "recipes.run", "compose.yaml"],
        }
        # A newcomer's Python compiles what it imports once, whatever this process is told.
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**own, "GAPBRIDGE_CACHE": f"{scratch}/cache", "UV_CACHE_DIR": f"{scratch}/uv"}
        seconds = {}
        for name, command in steps.items():
            start = time.monotonic()
            subprocess.run(command, check=True, cwd=scratch, env=environment)
            seconds[name] = time.monotonic() - start
    setup = seconds["environment"] + seconds["installer"] + seconds["install"]
    figures = {
        "setup_seconds": setup,
        "merge_first_seconds": setup + seconds["first run"],
        "merge_second_seconds": seconds["second run"],
        "compose_first_seconds": seconds["composition"],
    }
    rows = [{"step": name, "seconds": value} for name, value in seconds.items()]
    write_results("first_run", figures, {"steps": rows}, seeds=1)


if __name__ == "__main__":
    main()
