"""Arguments checked by their own annotations: one mechanism for Python and YAML.

A signature says what it accepts: `Literal["mixed", "score"]`, `Positive`, `Sequence[Count]`, `Share | None`. Calling
:func:`check_arguments` first in the function refuses everything else in one sentence; the recipe front reads the same
annotations for its YAML.
"""

import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


class ArgumentError(ValueError):
    """An argument is wrong; the message says which, the value got and what is accepted.

    Args:
        name: The argument.
        message: What is accepted, and the value got.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`.

    Attributes:
        low: Lowest number.
        high: Highest number.
        above: The lowest number itself is left out.
        below: The highest number itself is left out.
        infinite: Infinity is a number too, where it means no limit.

    >>> print(Range(0, 1, above=True))
    > 0 and <= 1
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return (self.infinite or math.isfinite(value)) and over and under

    def __str__(self) -> str:
        bounds = [f"{'>' if self.above else '>='} {_digits(self.low)}"] if self.low > -math.inf else []
        bounds += [f"{'<' if self.below else '<='} {_digits(self.high)}"] if self.high < math.inf else []
        return " and ".join(bounds)


def _digits(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(0, above=True)]
Limit = Annotated[float, Range(0, above=True, infinite=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
ProperShare = Annotated[float, Range(0, 1, below=True)]
Processes = Annotated[int, Range(high=-1)] | Count  # as joblib counts: -1 is one a core
OpenShare = Annotated[float, Range(0, 1, above=True, below=True)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what the generators of numpy, torch and Lightning all take


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Compare arguments with the annotations of the function that takes them.

    Args:
        function: The function, such as the `__init__` of a class.
        values: Its arguments by name, such as `locals()`; other names are left alone.

    Raises:
        ArgumentError: For the first argument that its annotation does not accept.

    >>> def train(rate: Positive = 0.1, method: Literal["mixed", "score"] = "mixed"): ...
    >>> check_arguments(train, {"rate": 1e-3, "method": "mixd"})
    Traceback (most recent call last):
    gapbridge.arguments.ArgumentError: method: expected one of 'mixed', 'score', got 'mixd'; did you mean 'mixed'?
    >>> check_arguments(train, {"rate": float("inf")})
    Traceback (most recent call last):
    gapbridge.arguments.ArgumentError: rate: expected a finite number > 0, got inf
    """
    for name, annotation in _annotations(function).items():
        if name in values and not accepts(annotation, values[name]):
            raise ArgumentError(name, refusal(annotation, values[name]))


@functools.cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in inspect.signature(function).parameters if name in hints}


def accepts(annotation: object, value: Any) -> bool:
    """Say whether a value fits an annotation; one that says nothing of values, as a protocol, accepts everything.

    A list is anything with an order that can be read twice: no text, no mapping, no set and no generator.

    >>> accepts(Sequence[Count], [64, 0]), accepts(Share | None, None), accepts(float, float("nan"))
    (False, True, False)
    >>> accepts(Mapping[str, Count], {"rank": 8}), accepts(Callable[[str], int], 3), accepts(Range, Range)
    (True, False, False)
    """
    if annotation in (typing.Any, object):
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        return any(accepts(member, value) for member in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is Annotated:
        return accepts(arguments[0], value) and all(value in rule for rule in arguments[1:] if isinstance(rule, Range))
    if annotation in (None, type(None)):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if annotation is str:
        return isinstance(value, str)
    if origin in {list, tuple, Sequence} and arguments:
        return _is_list(value) and _each(arguments, origin, list(value))
    if origin in {dict, Mapping} and arguments:
        return isinstance(value, Mapping) and all(
            accepts(arguments[0], key) and accepts(arguments[1], item) for key, item in value.items()
        )
    if Callable in (annotation, origin):
        return callable(value)
    return not isinstance(annotation, type) or _is_one(annotation, value)


def _is_list(value: object) -> bool:
    unordered = isinstance(value, str | bytes | Mapping | set | frozenset)
    return not unordered and hasattr(value, "__iter__") and not hasattr(value, "__next__")


def _is_one(kind: type, value: object) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be looked for, or a mapping of typed keys
        return True


def _each(arguments: tuple[Any, ...], origin: Any, values: list[Any]) -> bool:
    if origin is tuple and Ellipsis not in arguments:
        return len(values) == len(arguments) and all(map(accepts, arguments, values))
    some = bool(values) or get_origin(arguments[0]) is not Annotated  # numbers with a range are at least one
    return some and all(accepts(arguments[0], value) for value in values)


def refusal(annotation: object, value: object) -> str:
    """Return what is expected and what was got, in words."""
    members = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if isinstance(value, type) and any(isinstance(kind, type) and issubclass(value, kind) for kind in members):
        hint = f"; make one of it, as {value.__name__}(...)"
    return f"expected {describe(annotation)}, got {shown(value)}{hint}"


def shown(value: object) -> str:
    """Return a value as one line of a message, cut where it is long.

    >>> shown([1, 2]), shown("a" * 200)[-6:]
    ('[1, 2]', 'aaa...')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def describe(annotation: object) -> str:
    """Return an annotation in words.

    >>> describe(Sequence[Count]), describe(Share | None)
    ('a list of at least one, each a whole number >= 1', 'a finite number >= 0 and <= 1 or None')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, types.UnionType}:
        return " or ".join(map(describe, arguments))
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(repr, arguments))}"
    if origin is Annotated:
        rules = [rule for rule in arguments[1:] if isinstance(rule, Range)]
        finite = "a number" if any(rule.infinite for rule in rules) else "a finite number"
        number = "a whole number" if arguments[0] is int else finite
        return " ".join([number, *(str(rule) for rule in arguments[1:] if isinstance(rule, Range) and str(rule))])
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values"
    if origin in {list, tuple, Sequence} and arguments:
        return f"a list{' of at least one' * (get_origin(arguments[0]) is Annotated)}, each {describe(arguments[0])}"
    if origin in {dict, Mapping} and arguments:
        return f"a mapping from {describe(arguments[0])} to {describe(arguments[1])}"
    if Callable in (annotation, origin):
        return "a function"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "True or False",
        type(None): "None",
        Hashable: "a name",
        typing.Any: "any value",
        object: "any value",
    }
    if isinstance(annotation, type) and annotation not in words:
        return f"{'an' if annotation.__name__[0] in 'AEIOU' else 'a'} {annotation.__name__}"
    return words.get(annotation) or str(getattr(annotation, "__name__", annotation))
