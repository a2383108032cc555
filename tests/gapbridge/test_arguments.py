"""Arguments against their annotations."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from gapbridge.arguments import (
    ArgumentError,
    Count,
    NotNegative,
    Positive,
    PositiveShare,
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
    ],
)
def test_what_it_accepts_passes(name, value):
    train(object(), **{name: value})


def test_a_near_choice_is_offered():
    with pytest.raises(ArgumentError, match="did you mean 'score'"):
        train(None, kind="scroe")
