"""One run in a process of its own, which can strike itself at a chosen moment.

A moment is a batch of training that begins, or an operation on a file of the run: its opening for writing, a rename, a
removal. They come in the same order in every run of a recipe, so that the k-th is the same place each time.
"""

import importlib
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ONE_PATH = {"os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir", "shutil.rmtree": "rmtree"}


class Moments:
    """Counts the moments of this process, writes them down, and strikes at the chosen one.

    Args:
        root: Files below it count, but those of TensorBoard, which a thread of its own writes.
        log: File that gets one line a moment: its kind and its path relative to the root.
        strike: Number of the moment to strike at, from 0; None for never.
        number: The signal.
        keep: Folder that gets a copy of the last checkpoint of each folder that is removed from `checkpoints/` when
            its training is over, to compare it; None keeps nothing.
    """

    def __init__(self, root: Path, log: Path, strike: int | None, number: int, keep: Path | None) -> None:
        self._root = str(root.resolve()) + os.sep
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._strike, self._number, self._keep = strike, number, keep
        self._seen = 0
        self._process = os.getpid()
        self._busy = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook of Python: see `sys.addaudithook`."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & WRITES:
                self._file("open", path)
        elif event == "os.rename":
            self._file("rename", arguments[1])
        elif event in ONE_PATH:
            self._file(ONE_PATH[event], arguments[0])

    def _file(self, kind: str, path: Any) -> None:
        if self._busy or os.getpid() != self._process or isinstance(path, int):
            return
        where = os.path.abspath(os.fsdecode(path))
        if not where.startswith(self._root) or "/tensorboard/" in where:
            return
        if kind == "rmtree" and self._keep is not None and "/checkpoints/" in where:
            self._busy = True
            _copy(Path(where), self._keep)
            self._busy = False
        self.happen(f"{kind} {where.removeprefix(self._root)}")

    def happen(self, what: str) -> None:
        """Write the moment down; strike if it is the one."""
        if os.getpid() != self._process:
            return
        os.write(self._log, f"{what}\n".encode())
        self._seen += 1
        if self._strike is not None and self._seen > self._strike:
            self._strike = None
            os.write(self._log, b"struck\n")
            if self._number == signal.SIGINT:
                os.killpg(0, self._number)  # as a terminal does: to the workers too
            else:
                os.kill(self._process, self._number)


def _copy(path: Path, keep: Path) -> None:
    for file in sorted(path.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns):
        target = keep / file.parent.name / "last.ckpt"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def count_batches(moments: Moments) -> None:
    """Make every batch of a training a moment."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    before = _TrainingEpochLoop.advance

    def advance(self: Any, data_fetcher: Any) -> None:
        moments.happen("batch")
        before(self, data_fetcher)

    _TrainingEpochLoop.advance = advance  # type: ignore[method-assign]


def draw_nothing() -> None:
    """Save figures as a few bytes: drawing takes most of a tiny run's time, and nothing is compared of it."""
    from matplotlib.figure import Figure

    def savefig(self: Any, file: Any, **_: Any) -> None:
        file.write(b"a figure")

    Figure.savefig = savefig  # type: ignore[method-assign, assignment]


def limit(limits: dict[str, int]) -> None:
    """Set limits of the operating system, by the names of `resource` without `RLIMIT_`.

    `TORN` is a limit on the size of files at which the process dies amid the write; `FSIZE` makes the write fail.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in limits.items():
        if name == "TORN":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        kind = getattr(resource, f"RLIMIT_{'FSIZE' if name == 'TORN' else name}")
        resource.setrlimit(kind, (value, value))


def run(request: dict[str, Any]) -> int:
    """Do in this process what a request says, and return the exit code.

    Args:
        request: `program` (module:function that takes the words), `words`, `cwd`, `root`, `out` and `err` (files of
            the standard streams), `log`; perhaps `strike`, `signal`, `keep`, `env`, `limits`.
    """
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
    for name, value in request.get("env", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    streams = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for name in ("out", "err")]
    null = os.open(os.devnull, os.O_RDONLY)
    for number, handle in enumerate([null, *streams]):
        os.dup2(handle, number)
        os.close(handle)
    keep = Path(request["keep"]) if request.get("keep") else None
    moments = Moments(
        Path(request["root"]), Path(request["log"]), request.get("strike"), request.get("signal", signal.SIGKILL), keep
    )
    count_batches(moments)
    draw_nothing()
    sys.addaudithook(moments.audit)
    limit(request.get("limits", {}))
    module, _, name = request["program"].partition(":")
    program: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    sys.argv = [module, *request["words"]]
    try:
        return int(program(request["words"]) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
