"""mergekit in an environment of its own, to compare with."""

from pathlib import Path

RUN_ALL = Path(__file__).parent / "run_all.py"
