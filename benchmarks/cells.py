"""Cells of a benchmark that takes hours: each is measured once and kept, so that a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import Llama, write_family
from recipes.front.table import shipped

Row = dict[str, Any]
KEPT = Path(__file__).parent / "kept"


class Cells:
    """Rows by their keys in a file of one JSON line each.

    Args:
        file: Where they are kept; made when the first is.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = (
            file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        )  # what was cut off has no end
        self.rows: dict[str, Row] = {row["cell"]: row for row in map(json.loads, lines)}
        if file.exists():
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def of(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Row:
        """The row of a cell, measured where it is not kept yet."""
        if key not in self.rows:
            row = {"cell": key, **measure()}
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            self.rows[key] = row
            print(f"{key}: { ({k: v for k, v in row.items() if k not in ('cell', 'digest')}) }", flush=True)
        return {name: value for name, value in self.rows[key].items() if name != "cell"}


def kept_run(benchmark: str, name: str, recipe: str, *changes: str, resumed: bool = False) -> Row:
    """The result of one run of a recipe by the real command, with its seconds; made where it is not kept yet.

    The run's folder lies in ``runs/<benchmark>/<name>`` and is not committed. Its result is, in
    ``benchmarks/kept/<benchmark>/<name>.json``, so that another machine goes on behind it. A run of another recipe file
    or with other changes is made again; of other code it is not: delete its file then.

    Args:
        benchmark: Name of the script.
        name: Of the run, among the runs of that script.
        recipe: File name of a shipped recipe.
        changes: Of the recipe, ``key=value``.
        resumed: Go on with a run that was stopped, instead of making it anew.
    """
    file = KEPT / benchmark / f"{name}.json"
    made: Row = {"command": [recipe, *changes], "recipe": hashlib.sha256(shipped()[recipe].read_bytes()).hexdigest()}
    kept: Row = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if {key: kept.get(key) for key in made} != made:
        out = Path("runs") / benchmark / name
        begun = ["--resume"] if resumed and (out / "recipe.yaml").exists() else ["--force"]
        began = time.monotonic()
        command = [sys.executable, "-m", "recipes.run", recipe, *changes, "--out", str(out)]
        subprocess.run([*command, *begun], check=True)
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".tmp")
        kept = {**made, "seconds": time.monotonic() - began, "result": found}
        text = json.dumps(kept, indent=1).replace(str(Path.home()), "~")  # whose machine it was is nobody's business
        written.write_text(text + "\n", encoding="utf-8")
        written.replace(file)
    return {**kept["result"], "seconds": kept["seconds"]}


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[tuple[Path, Cells]]:
    """A folder for checkpoints and cells: one that stays, so that the same command goes on, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder, Cells(folder / "cells.jsonl")
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made), Cells(Path(made) / "cells.jsonl")


def family_in(folder: Path, model: Llama, experts: int, dtype: str = "BF16", *, size: float = 0.02) -> Sequence[Path]:
    """The checkpoints of `write_family`, made where they are not whole yet."""
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_family(folder, model, experts, dtype, size=size)
        whole.touch()
    return [folder / "base", *(folder / f"expert{index + 1}" for index in range(experts))]
