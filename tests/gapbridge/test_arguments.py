"""Arguments against their annotations."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
import pytest

from gapbridge.arguments import (
    ArgumentError,
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Whole,
    check_arguments,
)


def train(
    data: object,
    hidden: Sequence[Count] = (64, 64),
    rate: Positive = 1e-3,
    discount: PositiveShare | None = None,
    trace: Share = 0.95,
    weight: NotNegative = 0.0,
    passes: Whole = 0,
    kind: Literal["mixed", "score"] = "mixed",
    scale: float = 1.0,
    fast: bool = False,
    betas: tuple[float, float] = (0.9, 0.99),
    seed: Seed = 0,
    column: Hashable = "x",
    sizes: Mapping[str, Count] | None = None,
    make: Callable[[str], int] = len,
    bounds: Range | None = None,
) -> None:
    """Take one argument of each kind."""
    check_arguments(train, locals())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", [0]),
        ("hidden", []),
        ("hidden", "64"),
        ("hidden", [1.5]),
        ("rate", 0),
        ("rate", -1e-3),
        ("rate", float("inf")),
        ("rate", float("nan")),
        ("rate", "1e-3"),
        ("discount", 1.5),
        ("discount", 0.0),
        ("trace", 2),
        ("weight", -1),
        ("passes", -1),
        ("passes", 1.0),
        ("passes", True),
        ("kind", "mixd"),
        ("kind", None),
        ("scale", float("nan")),
        ("fast", 1),
        ("betas", (0.9,)),
        ("hidden", {64: 1}),
        ("hidden", {64}),
        ("hidden", iter([64])),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", True),
        ("column", ["x"]),
        ("sizes", {"a": 0}),
        ("sizes", {1: 1}),
        ("sizes", [1]),
        ("make", 3),
        ("make", "len"),
        ("bounds", 3),
        ("bounds", Range),
    ],
)
def test_what_the_annotation_does_not_accept_is_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}: expected .*, got "):
        train(None, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", np.array([3, 4])),
        ("rate", np.float32(0.1)),
        ("rate", 1),
        ("discount", None),
        ("discount", 1.0),
        ("passes", np.int64(3)),
        ("scale", float("inf")),
        ("betas", [0.9, 1]),
        ("seed", 2**32 - 1),
        ("column", ("a", 1)),
        ("sizes", {"a": 1}),
        ("make", lambda text: 3),
        ("bounds", Range(0)),
    ],
)
def test_what_it_accepts_passes(name, value):
    train(object(), **{name: value})


def test_a_near_choice_is_offered():
    with pytest.raises(ArgumentError, match="did you mean 'score'"):
        train(None, kind="scroe")


def test_a_class_in_place_of_an_object_is_told_to_be_made():
    with pytest.raises(ArgumentError, match=r"bounds: expected a Range or None, got the class Range; make one of it"):
        train(None, bounds=Range)


def test_a_refusal_is_one_short_line():
    with pytest.raises(ArgumentError) as caught:
        train(None, bounds="a\n" * 1000)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=r"seed: expected a whole number >= 0 and <= 4294967295, got -1"):
        train(None, seed=-1)
