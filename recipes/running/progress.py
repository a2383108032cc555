"""Progress of one phase: a bar with the time left on a terminal, one line per interval anywhere else."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar, TaskID

Item = TypeVar("Item")
INTERVAL = 10.0  # seconds between two lines


class BarOnTerminal(NamedTuple):
    """A bar, and the one task in it."""

    bar: "Bar"
    task: "TaskID"


class Progress:
    """How far one phase is; made by `RunFolder.phase`.

    Args:
        title: Name of the phase.
        total: Number of steps; None when it is not known.
        stream: Where to show it; None shows nothing.
    """

    def __init__(self, title: str, total: int | None, stream: TextIO | None) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self.note = ""
        self._stream = stream
        self._start = self._shown = time.monotonic()
        self._bar: BarOnTerminal | None = None
        if stream is not None and stream.isatty():
            self._start_bar(stream)

    def _start_bar(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        bar = Bar(*columns, console=Console(file=stream))
        self._bar = BarOnTerminal(bar, bar.add_task(self.title, total=self.total, note=""))
        bar.start()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count steps as done, with a short note such as `loss 0.31`."""
        self.update(self.done + steps, note)

    def update(self, done: int, note: str | None = None) -> None:
        """Set the number of steps done."""
        self.done = done
        self.note = self.note if note is None else note
        if self._bar is not None:
            self._bar.bar.update(self._bar.task, completed=done, total=self.total, note=self.note)
        elif time.monotonic() - self._shown >= INTERVAL:
            self._line()

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items and count each one as done after its turn."""
        for item in items:
            yield item
            self.advance()

    def close(self) -> None:
        """Show the last state."""
        if self._bar is not None:
            self._bar.bar.stop()
        elif self._stream is not None:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        if self._stream is None:
            return
        elapsed = self._shown - self._start
        share = f"{self.done}/{self.total} ({100 * self.done / self.total:.0f}%)" if self.total else str(self.done)
        parts = [f"{self.title}: {share}", f"{clock(elapsed)} elapsed"]
        if self.total and 0 < self.done < self.total:
            parts.append(f"{clock(elapsed * (self.total - self.done) / self.done)} left")
        self._stream.write(", ".join(parts + [self.note] * bool(self.note)) + "\n")
        self._stream.flush()


@contextmanager
def progress(title: str, total: int | None = None, *, visible: bool = True) -> Iterator[Progress]:
    """Show the progress of a block on the error stream."""
    phase = Progress(title, total, sys.stderr if visible else None)
    try:
        yield phase
    finally:
        phase.close()


def clock(seconds: float) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`.

    >>> clock(75), clock(3600)
    ('1:15', '1:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
