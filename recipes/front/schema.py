"""What a dataclass says about itself: its fields, their types in words, their help, its values as plain data."""

import dataclasses
import difflib
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

REQUIRED = dataclasses.MISSING
MANY = 14  # a message lists at most so many keys


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a recipe.

    Attributes:
        name: The key.
        kind: Its type, resolved.
        default: Its default value, or `REQUIRED`.
        help: Its text in the class docstring, on one line.
    """

    name: str
    kind: object
    default: Any
    help: str


@functools.cache
def fields_of(schema: type) -> tuple[Field, ...]:
    """Return the fields of a dataclass with types, defaults and help.

    >>> @dataclasses.dataclass
    ... class Method:
    ...     '''How to merge.
    ...
    ...     Attributes:
    ...         rank: Rank of each exclusive expert.
    ...     '''
    ...     rank: int = 8
    >>> fields_of(Method)
    (Field(name='rank', kind=<class 'int'>, default=8, help='Rank of each exclusive expert.'),)
    """
    kinds = typing.get_type_hints(schema)
    helps: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        for entry in docstring_parser.parse(base.__doc__ or "").params:
            helps[entry.arg_name] = " ".join((entry.description or "").split())
    rows = []
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        rows.append(Field(field.name, kinds[field.name], default, helps.get(field.name, "")))
    return tuple(rows)


def summary_of(schema: type) -> str:
    """Return the first sentence of a class docstring."""
    return docstring_parser.parse(schema.__doc__ or "").short_description or ""


def members(kind: object) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone.

    >>> members(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    return get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)


def describe(kind: object) -> str:
    """Return a type in words.

    >>> describe(list[int] | Literal["auto"] | None)
    "a list of whole numbers, 'auto' or null"
    >>> describe(int | float | None)
    'a number or null'
    """
    kinds = members(kind)
    words = [_word(member) for member in kinds if not (member is int and float in kinds)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(kind: object) -> str:
    plain = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        type(None): "null",
        Any: "any value",
        dict: "a mapping",
        list: "a list",
    }
    if kind in plain:
        return plain[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        shown = [show(value) for value in arguments]
        return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        return f"a mapping from names to {_plural(arguments[1])}"
    if origin is tuple:
        return f"a list of {_plural(arguments[0])}" if Ellipsis in arguments else f"a list of {len(arguments)} values"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(field.name for field in fields_of(typing.cast('type', kind)))}"
    return getattr(kind, "__name__", str(kind))


def _plural(kind: object) -> str:
    plain: dict[object, str] = {
        int: "whole numbers",
        float: "numbers",
        str: "texts",
        bool: "true or false",
        Path: "paths",
        Any: "values",
    }
    return plain.get(kind) or ("mappings" if dataclasses.is_dataclass(kind) else f"values, each {describe(kind)}")


def show(value: object) -> str:
    """Return a value as a message shows it, cut at 60 characters.

    >>> show({"a": None}), show("x" * 99)[-5:]
    ("{'a': null}", 'xx...')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{show(key)}: {show(item)}' for key, item in value.items())}}}"
    elif isinstance(value, list):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def to_plain(value: object) -> Any:
    """Return a recipe as plain values: what YAML and JSON can hold.

    >>> to_plain({"path": Path("a/b"), "pair": (1, 2)})
    {'path': 'a/b', 'pair': [1, 2]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields_of(type(value))}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def did_you_mean(got: str, accepted: list[str]) -> str:
    """Return `did you mean 'rank'? Accepted: rank, scale`, without the guess when nothing is near.

    >>> did_you_mean("rnk", ["rank", "scale"])
    "did you mean 'rank'? Accepted: rank, scale"
    """
    near = difflib.get_close_matches(got, accepted, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    shown, more = accepted, ""
    if len(accepted) > MANY:
        shown = difflib.get_close_matches(got, accepted, n=MANY, cutoff=0)
        more = f" and {len(accepted) - MANY} more, see --schema"
    return f"{guess}Accepted: {', '.join(shown) or 'none'}{more}"
