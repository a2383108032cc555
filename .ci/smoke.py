"""A little of everything, on whatever versions are installed: modules, public names, one tiny recipe of each kind."""

import importlib
import os
import pickle
import pkgutil
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("gapbridge", "twinmerge", "distill", "rl", "explain", "recipes")
PUBLIC = ("twinmerge", "distill", "rl.hpo", "rl.csp", "rl.envs", "explain")
EXTRAS = {
    "fastapi",
    "gfootball",
    "gguf",
    "mpe2",
    "mujoco",
    "open_spiel",
    "pettingzoo",
    "pyspiel",
    "stable_baselines3",
    "uvicorn",
    "vllm",
}
RECIPES = ("merge_tiny", "distill_tiny", "hpo_tiny", "csp_tiny", "explain_tiny")


def modules() -> int:
    """Import every module; only packages of an extra may be absent."""
    names = [found.name for name in PACKAGES for found in pkgutil.walk_packages([str(place(name))], f"{name}.")]
    failed = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("\n".join(failed))
    return len(names)


def place(package: str) -> Path:
    """Folder of a package."""
    return Path(importlib.import_module(package).__file__ or "").parent


def public_names() -> int:
    """Resolve every public name."""
    pairs = [(package, name) for package in PUBLIC for name in importlib.import_module(package).__all__]
    for package, name in pairs:
        getattr(importlib.import_module(package), name)
    return len(pairs)


class Trap:
    """A pickle that leaves a file when it is loaded as code."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sign),)


def pickled_checkpoints_run_no_code(folder: Path) -> None:
    """`checkpoint_path` reaches timm, which must load weights only."""
    from distill import DistillModule

    (folder / "trap.pth").write_bytes(pickle.dumps(Trap(folder / "ran")))
    try:
        DistillModule("resnet18", "resnet18", teacher_options={"checkpoint_path": str(folder / "trap.pth")})
    except Exception as error:
        refused = str(error).splitlines()[0]
    else:
        raise SystemExit("timm loads a pickle that holds no weights")
    if (folder / "ran").exists():
        raise SystemExit(f"timm ran the code in a pickled checkpoint before it refused it ({refused})")


def main() -> None:
    """Try all of it, and say how long each took."""
    from recipes.run import main as run

    print(f"{modules()} modules and {public_names()} public names are there")
    with tempfile.TemporaryDirectory() as name:
        pickled_checkpoints_run_no_code(Path(name))
        print("a pickled checkpoint runs no code")
        for recipe in RECIPES:
            begun = time.monotonic()
            if run([f"{recipe}.yaml", "--out", f"{name}/{recipe}", "--quiet"]):
                raise SystemExit(f"{recipe}.yaml failed")
            print(f"{recipe}.yaml: {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
