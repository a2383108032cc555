"""The run folder: everything a run leaves behind, each file written whole or not at all."""

import contextlib
import csv
import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError, RunError
from recipes.running.environment import describe_environment, process_rank
from recipes.running.files import plain_json, write_bytes, write_json, write_text
from recipes.running.inputs import NAME as INPUTS, Noted, added, changed
from recipes.running.lock import locked, refuse_live
from recipes.running.page import Picture, Report, Row, render
from recipes.running.progress import Progress, progress
from recipes.running.ranks import READY, Board
from recipes.running.replace import check_replaceable, holds_run, is_unused, remove_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER_KEY = "GAPBRIDGE_RUN_FOLDER"  # tells the processes that Lightning starts which folder rank 0 made
RUNS = Path("runs")


class RunFolder:
    """The folder of one run, and how the run talks to the user.

    Args:
        path: The folder; it exists.
        title: What the run is called in messages and in the report.
        resume: None for a new run; else the checkpoint to go on from, or the folder itself when there is none yet.
        quiet: Say nothing and show no progress.
    """

    def __init__(self, path: Path, title: str, *, resume: Path | None = None, quiet: bool = False) -> None:
        self.path = path
        self.title = title
        self.resume = resume
        self.quiet = quiet
        self.inputs: Noted = {}
        self.finished = False
        self.board: Board | None = None  # where a launcher has started this process and others
        self.reads: Callable[[], Iterable[Path]] = tuple  # the user's files and folders that the recipe names

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint_of(self, name: str) -> Path | None:
        """The checkpoint that this run goes on from, when it is one of the training of this name; else None."""
        return self.resume if self.resume and self.resume.parent == self.checkpoints / name else None

    def start(self, recipe_yaml: str, seeds: dict[str, int], command: Sequence[str]) -> None:
        """Write `inputs.json`, `recipe.yaml`, `command.txt` and `environment.json`; a resumed run adds its command."""
        if process_rank() != 0:
            return
        before = self.path / "command.txt"
        earlier = before.read_text(encoding="utf-8") if self.resume and before.is_file() else ""
        write_json(self.path / INPUTS, self.inputs)  # first: a folder with a recipe knows what its run began with
        write_text(self.path / "recipe.yaml", recipe_yaml)
        write_text(before, f"{earlier}{shlex.join(command)}\n")
        write_json(self.path / "environment.json", describe_environment(seeds))

    def say(self, text: str) -> None:
        """Print one line on rank 0, unless the run is quiet."""
        if not self.quiet and process_rank() == 0:
            print(text, flush=True)

    def phase(self, title: str, total: int | None = None) -> AbstractContextManager[Progress]:
        """Show the progress of a block; a terminal gets a bar, a log one line per interval, other ranks nothing.

        Args:
            title: Name of the phase.
            total: Number of steps, when it is known.
        """
        return progress(title, total, visible=not self.quiet and process_rank() == 0)

    def figure(
        self,
        name: str,
        figure: "Figure",
        rows: Sequence[Sequence[object]],
        columns: Sequence[str],
        *,
        title: str = "",
        told: str = "",
    ) -> None:
        """Write `figures/<name>.png` and the numbers behind it as `figures/<name>.csv`.

        Args:
            name: File name without ending: letters, digits, `_` and `-`.
            figure: A matplotlib figure.
            rows: The numbers that the figure shows.
            columns: Name of each entry of a row.
            title: What it shows, for the report; its name where none is given.
            told: How to read it, a sentence or two for the report.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"figure name {name!r} is not usable: give letters, digits, '_' or '-'")
        if process_rank() != 0:
            return
        image = io.BytesIO()
        about = {"Title": title or name.replace("_", " "), "Description": told}  # in the file: a resumed run has it too
        figure.savefig(image, format="png", dpi=150, bbox_inches="tight", metadata=about)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(plain_json(list(rows)))
        write_text(self.path / "figures" / f"{name}.csv", text.getvalue())
        write_bytes(self.path / "figures" / f"{name}.png", image.getvalue())

    def adopt(self, image: Path, name: str, of: str) -> None:
        """Take over a figure of another run, with the numbers behind it.

        Args:
            image: Its PNG file; the CSV file of its numbers is beside it.
            name: What it is called here, without ending.
            of: Whose it is, which its title then begins with.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        said, told, made = _picture(image), PngInfo(), io.BytesIO()
        told.add_itxt("Title", f"{of}: {said.title}")
        told.add_itxt("Description", said.told)
        with Image.open(image) as drawn:
            drawn.save(made, "PNG", pnginfo=told)
        write_bytes(self.path / "figures" / f"{name}.png", made.getvalue())
        if said.numbers:
            write_bytes(self.path / "figures" / f"{name}.csv", image.with_suffix(".csv").read_bytes())

    def finish(
        self,
        result: Mapping[str, object],
        tables: Mapping[str, Sequence[Row]] | None = None,
        figures: Sequence[str] | None = None,
        summary: str = "",
        animations: Mapping[str, str] | None = None,
        first: Sequence[str] = (),
    ) -> None:
        """Write `report.html` and, last, `result.json`: a folder with a result is complete.

        Raises:
            RunError: When a file of the user's that the run read has changed since its pre-flight.

        Args:
            result: The numbers the run is for.
            tables: Rows of each table by its title.
            figures: Names of the figures to show; all of the folder, oldest first, when None.
            summary: What was found, in a paragraph of plain text.
            animations: GIF files of the folder to show below the figures, by what they are called.
            first: Names of the figures to show right below the summary, and not among the others.
        """
        if process_rank() != 0:
            return
        self.finished = True
        if fault := changed(self.inputs) or added(self.inputs, self.reads()):
            raise RunError(f"{fault} while the run read it, so that nothing is reported; start a new run")
        details = {
            name: (self.path / name).read_text(encoding="utf-8")
            for name in ("recipe.yaml", "command.txt", "environment.json")
            if (self.path / name).is_file()
        }
        drawn = sorted((self.path / "figures").glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
        names = [path.stem for path in drawn] if figures is None else figures
        above, images = (
            [_picture(self.path / "figures" / f"{name}.png") for name in wanted]
            for wanted in (first, [name for name in names if name not in first])
        )
        images += [Picture((self.path / name).read_bytes(), title) for title, name in (animations or {}).items()]
        plain: Any = plain_json(dict(tables or {}))
        page = render(Report(self.title, summary, above, plain, images, details))
        write_text(self.path / "report.html", page)
        write_json(self.path / "result.json", dict(result))


def _picture(path: Path) -> Picture:
    """A drawn figure with what it says of itself."""
    from PIL import Image

    about: dict[str | tuple[int, int], object] = {}
    with contextlib.suppress(OSError), Image.open(path) as image:  # of another hand, and no picture: its name says it
        about = dict(image.info)
    numbers = f"figures/{path.stem}.csv" if path.with_suffix(".csv").is_file() else ""
    return Picture(path.read_bytes(), str(about.get("Title", path.stem)), str(about.get("Description", "")), numbers)


def new_folder(
    recipe: str,
    name: str,
    *,
    out: Path | None = None,
    force: bool = False,
    hold: ExitStack | None = None,
    needed: Sequence[Path] = (),
    named: Sequence[Path] = (),
) -> Path:
    """Make the folder of a new run: the next number under `runs/<recipe>-<name>/`, or the folder named by the user.

    Args:
        recipe: Name of the recipe.
        name: Name of the run.
        out: Folder to use instead.
        force: Replace `out` when an earlier run is in it.
        hold: Where the folder's lock is held; not locked when None.
        needed: As of `check_replaceable`.
        named: As of `check_replaceable`.

    Returns:
        The folder, empty; for the processes started by rank 0, the folder that rank 0 made.

    Raises:
        RecipeError: When something is in the folder that is not to be replaced, or the processes cannot agree on one.
        RunError: When a run is at work in it.
    """
    if process_rank() != 0:
        return _made_by_rank_zero(out)
    if out is None:
        parent = RUNS / f"{recipe}-{name}"
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / str(max(run_numbers(parent), default=0) + 1)
            try:
                path.mkdir()
            except FileExistsError:  # another run took this number in the meantime
                continue
            if hold is not None:
                hold.enter_context(locked(path))
            return path
    check_out(out, force=force, needed=needed, named=named)
    out.mkdir(parents=True, exist_ok=True)
    if hold is not None:
        hold.enter_context(locked(out))
    remove_run(out)
    return out


def check_out(out: Path, *, force: bool, needed: Sequence[Path] = (), named: Sequence[Path] = ()) -> None:
    """Refuse a folder that holds something already, unless it is a run that `force` may replace, see `replace`."""
    if out.is_symlink() and not out.exists():
        raise RecipeError(f"--out {out}: this is a link to nothing; give a folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise RecipeError(f"--out {out}: a file has this name; give a folder")
    refuse_live(out)
    if is_unused(out):
        return
    if not holds_run(out):
        raise RecipeError(f"--out {out}: the folder is not empty and holds no run; give another folder")
    if not force:
        raise RecipeError(f"--out {out}: a run is in it; add --resume to go on with it or --force to replace it")
    check_replaceable(out, needed, named)


def newest_folder(recipe: str, name: str) -> Path:
    """Return the folder of the newest run of a recipe.

    Raises:
        RecipeError: When there is none.
    """
    parent = RUNS / f"{recipe}-{name}"
    numbers = run_numbers(parent)
    if not numbers:
        raise RecipeError(f"--resume: no run is under {parent}; start one without it, or name a folder with --out")
    return parent / str(max(numbers))


def run_numbers(parent: Path) -> list[int]:
    """Return the numbers of the runs under a folder."""
    if not parent.is_dir():
        return []
    return [int(path.name) for path in parent.iterdir() if path.is_dir() and path.name.isdecimal()]


def _made_by_rank_zero(out: Path | None) -> Path:
    """The folder that rank 0 made: named by the environment, or by the user and about to appear."""
    if FOLDER_KEY in os.environ:
        return Path(os.environ[FOLDER_KEY])
    if out is None:
        raise RecipeError("several processes run at once: give --out DIR, so that they share one run folder")
    Board(out).wait(READY)
    return out
