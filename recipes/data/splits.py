"""A text task in three splits, and the seeded order from which every cut and subsample is taken."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from recipes.data.image_tasks import Picture
from recipes.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Split", "Text", "TextTask", "stratified_order", "text_key"]

Text = str | tuple[str, str] | Picture  # what a row reads: of an image task its picture
Row = TypeVar("Row")


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        texts: One string a row, or a pair of strings; of an image task one picture.
        labels: Class indices for classification, floats for regression; as long as ``texts``.
    """

    texts: list[str] | list[tuple[str, str]] | list[Picture]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextTask:
    """A task ready to train on.

    Attributes:
        name: Name of the task.
        labels: Class names in the order of the indices; empty for regression.
        train: Rows to fit on.
        validation: Rows to choose settings on.
        test: Rows to report on.
        metric: One of the metrics of `recipes.data.sources.TaskSource`.
        kind: ``classification``, ``regression`` or ``images``.
        notes: What was left out or contradicts itself, one sentence each.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    metric: str
    kind: str
    notes: tuple[str, ...] = ()

    def in_order(self, labels: tuple[str, ...]) -> TextTask:
        """The same task with its class names in another order.

        Raises:
            RunError: When these are not the task's own names.
        """
        if sorted(labels) != sorted(self.labels):
            raise RunError(
                f"task {self.name!r}: labels are {', '.join(self.labels)}, and {', '.join(labels)} are asked for; name "
                "the task's own labels in the model's order"
            )
        place = {self.labels.index(name): index for index, name in enumerate(labels)}

        def turned(split: Split) -> Split:
            return Split(split.texts, [place[int(label)] for label in split.labels])

        train, validation, test = map(turned, (self.train, self.validation, self.test))
        return replace(self, labels=labels, train=train, validation=validation, test=test)


def text_key(text: Text) -> Text:
    r"""The form under which two texts count as the same: case folded, white space collapsed.

    >>> text_key("  Hello\n World ")
    'hello world'
    """
    if isinstance(text, Picture):
        return text.key
    if isinstance(text, tuple):
        return (" ".join(text[0].split()).casefold(), " ".join(text[1].split()).casefold())
    return " ".join(text.split()).casefold()


def stratified_order(groups: Sequence[Hashable], seed: int) -> list[int]:
    """A seeded order of the rows in which every prefix has about the groups' proportions.

    Row ``i``, the ``k``-th of a shuffled group of ``n`` rows, is placed by ``(k + 1/2) / n``, ties in shuffled order.
    The first rows are therefore a stratified sample of any size, and smaller samples are contained in larger ones.

    Args:
        groups: One group a row: the class, or one constant for a plain shuffle.
        seed: Any integer; the same seed gives the same order on every machine.

    Returns:
        A permutation of ``range(len(groups))``.

    >>> sorted(stratified_order("aabb", seed=0)[:2])[0] in (0, 1)
    True
    """
    shuffled = list(range(len(groups)))
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
    sizes = Counter(groups)
    seen: dict[Hashable, int] = defaultdict(int)
    place: dict[int, float] = {}
    for index in shuffled:
        group = groups[index]
        place[index] = (seen[group] + 0.5) / sizes[group]
        seen[group] += 1
    return sorted(shuffled, key=place.__getitem__)  # the sort is stable, so ties stay shuffled
