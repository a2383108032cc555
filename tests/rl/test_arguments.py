"""One mechanism refuses arguments of the wrong kind, out of range, or not among the choices."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from rl.arguments import check_arguments


def made(
    rate: float = 0.1,
    share: float | None = None,
    steps: int = 1,
    kind: Literal["fast", "slow"] = "fast",
    widths: Sequence[int] = (8,),
    loud: bool = False,
    other: object = None,
) -> None: ...


RANGES = {"rate": "(0, inf)", "share": "(0, 1]", "steps": "[0, inf)", "widths": "[1, inf)"}


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 1e-9, "share": 1.0, "steps": 0, "kind": "slow", "widths": [1, 2], "loud": True},
        {"rate": 1, "share": None, "widths": (3,), "other": object(), "unknown": -1},
        {"rate": np.float32(0.5), "steps": np.int64(3), "widths": [np.int32(4)]},
    ],
)
def test_what_fits_is_accepted(values):
    check_arguments(made, values, RANGES)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", -1.0, "rate is -1.0, but it must be a number in (0, inf)."),
        ("rate", 0, "a number in (0, inf)"),
        ("rate", math.inf, "a number in (0, inf)"),
        ("rate", math.nan, "a number in (0, inf)"),
        ("rate", "0.1", "a number in (0, inf)"),
        ("rate", True, "a number in (0, inf)"),
        ("share", 1.5, "share is 1.5, but it must be a number in (0, 1] or None."),
        ("share", math.nan, "a number in (0, 1] or None"),
        ("steps", -1, "a whole number in [0, inf)"),
        ("steps", 1.0, "a whole number in [0, inf)"),
        ("kind", "fsat", "kind is 'fsat', but it must be 'fast' or 'slow'; did you mean 'fast'?"),
        ("kind", False, "'fast' or 'slow'."),
        ("widths", [0], "hold only whole numbers in [1, inf), at least one"),
        ("widths", [], "at least one"),
        ("widths", [True], "whole numbers"),
        ("widths", "88", "whole numbers"),
        ("widths", 8, "whole numbers"),
        ("loud", 1, "loud is 1, but it must be True or False."),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, value, words):
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        check_arguments(made, {name: value}, RANGES)
    assert words in str(error.value)
