"""Cells of a benchmark that takes hours: each is measured once and kept, so that a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import Llama, write_family

Row = dict[str, Any]


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
