"""mergekit in an environment of its own, to compare with."""

import os
from pathlib import Path

RUN_ALL = Path(__file__).parent / "run_all.py"
ENVIRONMENT = Path(os.environ.get("GAPBRIDGE_MERGEKIT", "~/.cache/gapbridge/mergekit")).expanduser()  # made by make.sh
