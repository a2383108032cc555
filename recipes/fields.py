"""Checked values for `__post_init__` of a recipe: each check returns its value or raises a `FieldError`."""

import math
import re
from typing import TypeVar

Number = TypeVar("Number", int, float)
LAST_SEED = 2**32 - 1  # what numpy's and Lightning's generators take
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class FieldError(ValueError):
    """One field of a recipe is wrong; the front turns it into `file:line: key: message`.

    Args:
        where: Field of the dataclass that raises, dotted for what is inside it (`"tasks.0.name"`).
        message: What is wrong, the value got and what is accepted.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where
        self.message = message


def check_name(value: str, where: str) -> str:
    """Return a name that is safe as a folder and as a key: 1 to 64 letters, digits, `_` and `-`.

    >>> check_name("sms-spam", "name")
    'sms-spam'
    >>> check_name("../up", "name")
    Traceback (most recent call last):
    recipes.fields.FieldError: name: expected 1 to 64 letters, digits, '_' or '-', got '../up'
    """
    if not NAME.fullmatch(value):
        raise FieldError(where, f"expected 1 to 64 letters, digits, '_' or '-', got {value!r}")
    return value


def check_unique(values: list[str], where: str) -> list[str]:
    """Return the values when no two are equal.

    >>> check_unique(["a", "b", "a"], "tasks")
    Traceback (most recent call last):
    recipes.fields.FieldError: tasks: expected different values, got 'a' twice
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            raise FieldError(where, f"expected different values, got {value!r} twice")
    return values


def check_range(
    value: Number, where: str, *, low: float = -math.inf, high: float = math.inf, low_open: bool = False
) -> Number:
    """Return a finite number in [low, high], or in (low, high] with `low_open`.

    >>> check_range(0.5, "scaling", low=0, high=1)
    0.5
    >>> check_range(0, "rank", low=1)
    Traceback (most recent call last):
    recipes.fields.FieldError: rank: expected a number >= 1, got 0
    """
    inside = low < value <= high if low_open else low <= value <= high
    if not (inside and (isinstance(value, int) or math.isfinite(value))):
        bounds = [f"{'>' if low_open else '>='} {low:g}"] if low > -math.inf else []
        bounds += [f"<= {high:g}"] if high < math.inf else []
        finite = bounds and math.isfinite(value)
        accepted = " ".join(["a number" if finite else "a finite number", " and ".join(bounds)]).strip()
        raise FieldError(where, f"expected {accepted}, got {_short(value)}")
    return value


def check_seed(value: int, where: str = "seed") -> int:
    """Return a seed that every generator takes.

    >>> check_seed(-1)
    Traceback (most recent call last):
    recipes.fields.FieldError: seed: expected a number >= 0 and <= 4294967295, got -1
    """
    if not 0 <= value <= LAST_SEED:
        raise FieldError(where, f"expected a number >= 0 and <= {LAST_SEED}, got {_short(value)}")
    return value


def _short(value: float) -> str:
    """A number as a message shows it; Python itself refuses to write thousands of digits."""
    bits = value.bit_length() if isinstance(value, int) else 0
    return f"a whole number of {bits} bits" if bits > 200 else str(value)


def check_positive(value: Number, where: str) -> Number:
    """Return a finite number above zero.

    >>> check_positive(-1.0, "learning_rate")
    Traceback (most recent call last):
    recipes.fields.FieldError: learning_rate: expected a number > 0, got -1.0
    """
    return check_range(value, where, low=0, low_open=True)
