"""Arguments are checked when an object is made: one mechanism for choices, kinds of numbers and their ranges."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], ranges: Mapping[str, str]) -> None:
    """Refuse arguments that a function's annotations or their ranges do not allow.

    Checked are the kinds ``bool``, ``int``, ``float``, ``Literal``, sequences of these, and any of these or None; what
    is annotated otherwise is left alone. A whole number is a number, and numpy's numbers are numbers; a bool is
    neither, and no number may be nan or, unless its range has it, infinite.

    Args:
        function: Whose annotations say what each argument is, as ``HPOModule.__init__``.
        values: Arguments by name; names that the function does not have are left alone.
        ranges: Interval of a number, or of each number of a sequence, by name: ``(0, 1]`` is above 0 and at most 1,
            ``[0, inf)`` is finite and at least 0. A sequence with a range must not be empty.

    Raises:
        ValueError: For the first argument that is not allowed: its name, what it is, and what is accepted.

    Example:
        >>> def train(rate: float = 0.1, kind: Literal["fast", "slow"] = "fast", widths: Sequence[int] = (8,)) -> None:
        ...     pass
        >>> check_arguments(train, {"rate": 0.1, "kind": "slow", "widths": [8]}, {"widths": "[1, inf)"})
        >>> check_arguments(train, {"kind": "fsat"}, {})
        Traceback (most recent call last):
        ValueError: kind is 'fsat', but it must be 'fast' or 'slow'; did you mean 'fast'?
        >>> check_arguments(train, {"rate": -1}, {"rate": "(0, inf)"})
        Traceback (most recent call last):
        ValueError: rate is -1, but it must be a number in (0, inf).
        >>> check_arguments(train, {"widths": [0]}, {"widths": "[1, inf)"})
        Traceback (most recent call last):
        ValueError: widths is [0], but it must hold only whole numbers in [1, inf), at least one.
    """
    hints = get_type_hints(function)
    for name in inspect.signature(function).parameters:
        if name in values and name in hints and not _fits(values[name], hints[name], ranges.get(name)):
            value, accepted = values[name], _accepted(hints[name], ranges.get(name))
            raise ValueError(f"{name} is {value!r}, but it must {accepted}{_meant(value, hints[name])}")


def _fits(value: Any, hint: Any, interval: str | None) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, interval) for one in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(hint))
    if origin in (Sequence, list, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        return bool(value or interval is None) and all(_fits(one, get_args(hint)[0], interval) for one in value)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool) and _inside(float(value), interval)
    return True


def _inside(value: float, interval: str | None) -> bool:
    if interval is None:
        return math.isfinite(value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)


def _accepted(hint: Any, interval: str | None) -> str:
    kinds = [one for one in (get_args(hint) if _is_union(hint) else (hint,)) if one is not type(None)]
    kind, end = kinds[0], " or None" if _is_union(hint) and type(None) in get_args(hint) else ""
    within = f" in {interval}" if interval else ""
    words = {bool: "True or False", int: f"a whole number{within}", float: f"a number{within or ' that is finite'}"}
    if get_origin(kind) is Literal:
        options = [repr(option) for option in get_args(kind)]
        return "be " + (", ".join(options[:-1]) + " or " if options[1:] else "") + options[-1] + end
    if get_origin(kind) in (Sequence, list, tuple):
        each = "whole numbers" if get_args(kind)[0] is int else "numbers"
        return f"hold only {each}{within}" + (", at least one" if interval else "") + end
    return f"be {words.get(kind, kind)}{end}"


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _meant(value: Any, hint: Any) -> str:
    if get_origin(hint) is Literal and isinstance(value, str):
        near = difflib.get_close_matches(value, [one for one in get_args(hint) if isinstance(one, str)], 1)
        if near:
            return f"; did you mean {near[0]!r}?"
    return "."
