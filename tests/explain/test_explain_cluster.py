"""Cross-fitting on a cluster: joblib hands the jobs to dask's workers."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_a_dask_cluster_gives_the_same_report():
    pytest.importorskip("distributed")
    # in a process of its own, as dask keeps threads until the process ends
    command = [sys.executable, "-m", "tests.explain.on_dask"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the reports are the same" in done.stdout
