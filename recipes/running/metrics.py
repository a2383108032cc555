"""Metrics of a run as one CSV file that a resumed run continues."""

import csv
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from recipes.running.files import METRICS_SEALS, plain_json, write_text


class CsvMetrics(Logger):
    """Writes `metrics.csv`: one row for each time metrics are logged, one column for each metric.

    Lightning's own CSV logger deletes the file of an interrupted run; this one keeps the rows before the step at which
    the run goes on, and drops those after it, which are about to come again.

    Args:
        path: The file.
        phase: Name of the training phase, written in a column of that name; phases share the file.
    """

    def __init__(self, path: Path, phase: str = "") -> None:
        super().__init__()
        self._path = path
        self._phase = phase
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Phase of the run."""
        return self._phase

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Seal the rows of the phase: `lost_rows` compares them when the run is resumed."""
        if self._columns is not None:
            own = _of_phase(read_metrics(self._path), self._phase)
            _seal(self._path, _seals(self._path) | {self._phase: (len(own), _digest(own))})

    @rank_zero_only
    def log_hyperparams(self, *_: object, **__: object) -> None:
        """Hyper-parameters are in `recipe.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write one row."""
        row = ({"phase": self._phase} if self._phase else {}) | {"step": step or 0} | plain_json(metrics)
        if self._columns is None:
            _seal(self._path, {name: seal for name, seal in _seals(self._path).items() if name != self._phase})
            rows = read_metrics(self._path)
            if all(key == "epoch" or key.startswith("test/") for key in metrics):
                self._rewrite(self._tested_again(rows, row))
            else:
                self._rewrite([*(old for old in rows if not self._comes_again(old, row["step"])), row])
        elif set(row) <= set(self._columns):
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        else:
            self._rewrite([*read_metrics(self._path), row])

    def _comes_again(self, row: dict[str, str], step: int) -> bool:
        return row.get("phase", "") == self._phase and int(row["step"]) >= step

    def _tested_again(self, rows: list[dict[str, str]], row: dict[str, Any]) -> list[dict[str, Any]]:
        """All rows where a finished training is only tested again: its trainer stands at step 0, the row does not.

        The row takes the place of the one of the same test, or else follows what is there.
        """
        own = _of_phase(rows, self._phase)
        tests = [old for old in own if not old.keys() - {"phase", "step", "epoch"} - row.keys()]
        where: dict[str, object] = (
            {key: tests[-1][key] for key in ("step", "epoch") if key in tests[-1]} if tests else {}
        )
        if not tests:
            where = {"step": max([int(row["step"]), *(int(old["step"]) for old in own)])}
        at = rows.index(tests[0]) if tests else len(rows)
        return [*rows[:at], row | where, *(old for old in rows[at:] if old not in tests)]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())


class FreshValues(Callback):
    """Lets a row of a training step hold only what was logged at that step.

    Lightning repeats the last value of whatever is logged more rarely, up to the end of the epoch; a run that is
    resumed inside the epoch no longer has that value.
    """

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Forget the values of the step before; what is reduced over the epoch is kept elsewhere."""
        for metric in trainer.fit_loop.epoch_loop._results.values():
            metric._forward_cache = None


class MetricsSeal(Callback):
    """Keeps the digest of the rows so far in every checkpoint, and tells when a resumed run finds others.

    Nothing is computed from the rows, so that the run goes on.

    Args:
        path: The file.
        phase: Name of the training phase.
    """

    def __init__(self, path: Path, phase: str = "") -> None:
        self._path, self._phase = path, phase
        self._trainer: Trainer | None = None
        self._sealed: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the trainer, which knows the step that the next row is of."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the step, and the digest of the rows before it and of all rows of other phases."""
        step = 0 if self._trainer is None else self._trainer.fit_loop.epoch_loop._batches_that_stepped
        return {"step": step, "sha256": self._digest(step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the digest until training starts."""
        self._sealed = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the rows with the digest."""
        sealed, self._sealed = self._sealed, {}
        if sealed and trainer.is_global_zero and self._digest(sealed["step"]) != sealed["sha256"]:
            print(
                f"{self._path} is not what it was when the checkpoint was written: rows before step {sealed['step']} "
                "were changed or lost; the training goes on, and its later rows are right",
                file=sys.stderr,
            )

    def _digest(self, step: int) -> str:
        rows = [row for row in read_metrics(self._path) if self._is_done(row, step)]
        return _digest(rows)

    def _is_done(self, row: dict[str, str], step: int) -> bool:
        return row.get("phase", "") != self._phase or int(row["step"]) < step


def lost_rows(path: Path) -> list[str]:
    """The phases whose rows are no longer those that stood in a `metrics.csv` when they ended; changed rows count."""
    rows = read_metrics(path)
    return [name for name, (n, digest) in _seals(path).items() if _digest(_of_phase(rows, name)[:n]) != digest]


def _of_phase(rows: list[dict[str, str]], phase: str) -> list[dict[str, str]]:
    return [row for row in rows if row.get("phase", "") == phase]


def _digest(rows: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps([sorted(row.items()) for row in rows]).encode()).hexdigest()


def _seal(path: Path, seals: dict[str, tuple[int, str]]) -> None:
    if seals or _sealed(path).exists():
        write_text(_sealed(path), json.dumps(seals))


def _seals(path: Path) -> dict[str, tuple[int, str]]:
    """By phase the number of its rows and their digest; none where the file is missing or damaged."""
    try:
        found = json.loads(_sealed(path).read_text(encoding="utf-8"))
        return {str(name): (int(count), str(digest)) for name, (count, digest) in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _sealed(path: Path) -> Path:
    return path.with_name(METRICS_SEALS)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a `metrics.csv`, without the empty cells; no row when there is no such file.

    A run that was killed, or whose disk was full, may leave half a line at the end: it is left out, as its step comes
    again, or is lost.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = [{key: cell for key, cell in row.items() if key and cell} for row in csv.DictReader(whole)]
    return [row for row in rows if row.get("step", "").isdecimal()]
