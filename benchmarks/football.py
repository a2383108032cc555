"""Google Football under a csp recipe: what building, stepping and a short training cost. It claims no strength.

The environment of the engine is made by ``benchmarks/football_cpu/make.sh`` where ``FOOTBALL_ENVIRONMENT``
(``~/.cache/gapbridge/football`` if unset) is none yet. There a scripted defender is recorded, ``football.yaml`` trains
three attackers against it, and the report is written. Times are seconds that the processor worked, on one core, and
rates are steps of the engine for each of them, so that other work on the machine changes them less.
"""

import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_results

HERE = Path(__file__).parent / "football_cpu"
MATCHES = 100


def main() -> None:
    """Make the environment if there is none, measure the engine, record, train, and write the results."""
    python = environment()
    figures: dict[str, Any] = json.loads(run(python, str(HERE / "measure.py"))[0].splitlines()[-1])
    # The authors of MAPPO train this scenario for 25 million steps.
    figures["hours_of_25m_steps"] = 25e6 / figures["steps_per_second"] / 3600
    built = Path(python).parents[1] / "wheels" / "cpu_seconds"
    figures["build_minutes"] = float(built.read_text(encoding="utf-8")) / 60
    with tempfile.TemporaryDirectory() as place:
        data, folder = Path(place) / "defender.npz", Path(place) / "run"
        _, seconds = run(python, str(HERE / "record.py"), str(data), str(MATCHES))
        rows = len(np.load(data)["t"])
        figures |= {"recorded_matches": MATCHES, "recorded_steps": rows, "recording_minutes": seconds / 60}
        recipe = [str(HERE / "football.yaml"), f"data.path={data}", "--out", str(folder)]
        _, seconds = run(python, "-m", "recipes.run", *recipe)
        history = json.loads((folder / "policies" / "csp.json").read_text(encoding="utf-8"))
        replays = sorted((folder / "replays").glob("*.gif"))
    engine = {"package": "gfootball", "version": "2.10.2", "beside": "what football_cpu/pins.txt names, not versions"}
    returns = [row["return"] for row in history]
    figures |= {"recipe_minutes": seconds / 60, "iterations": len(history), "replays": len(replays)}
    figures |= {"first_return": float(np.mean(returns[:10])), "last_return": float(np.mean(returns[-10:]))}
    print(write_results("football", figures, {"engine": [engine], "history": history}, seeds=1))
    print(figures)


def environment() -> str:
    """The interpreter of an environment with the engine, which is made where there is none."""
    folder = Path(os.environ.get("FOOTBALL_ENVIRONMENT", "~/.cache/gapbridge/football")).expanduser()
    python = folder / "bin" / "python"
    if not (python.exists() and (folder / "wheels").exists()):
        subprocess.run(["bash", str(HERE / "make.sh"), str(folder)], check=True)
    return str(python)


def run(*command: str) -> tuple[str, float]:
    """What a command prints, and the seconds of the processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
