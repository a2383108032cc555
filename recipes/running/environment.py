"""What a run ran on: versions, git state, device and seed (imports neither torch nor lightning)."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PROCESS_KEYS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # the order Lightning reads them in


def process_rank() -> int:
    """Return the rank of this process: from torch.distributed once it runs, else from the launcher's environment."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return next((int(os.environ[key]) for key in PROCESS_KEYS if os.environ.get(key, "").isdecimal()), 0)


def describe_environment(seeds: dict[str, int]) -> dict[str, Any]:
    """Return what is needed to run the same again.

    Args:
        seeds: The seeds of the run, by name.

    Returns:
        Plain values: `versions`, `git`, `device`, `seeds`, `threads`.
    """
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "git": _git(Path(__file__).parents[2]),
        "device": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "ram_gb": _ram_gb(),
            "gpus": _command("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        },
        "seeds": seeds,
        "threads": {key: os.environ[key] for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES") if key in os.environ},
    }


def _versions() -> dict[str, str]:
    """Return the installed versions of this package and of what it depends on."""
    versions = {}
    try:
        requirements = importlib.metadata.requires("gapbridge") or []
        names = ["gapbridge", *(re.split(r"[^A-Za-z0-9._-]", line)[0] for line in requirements if "extra" not in line)]
    except importlib.metadata.PackageNotFoundError:
        names = ["torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "safetensors", "numpy"]
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path) -> dict[str, Any] | None:
    """Return commit and dirty flag when the package runs from its own checkout, else None."""
    top = _command("git", "-C", str(folder), "rev-parse", "--show-toplevel")
    if not top or Path(top[0]).resolve() != folder.resolve():
        return None
    commit = _command("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _command("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit[0] if commit else None, "dirty": bool(changed)}


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _command(*words: str) -> list[str]:
    """Return the lines a program prints, none when it is not installed or fails."""
    if shutil.which(words[0]) is None:
        return []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
