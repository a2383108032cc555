"""Arguments of this package checked by their annotations, see `gapbridge.arguments`, with this package's error."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

from distill.errors import DistillError
from gapbridge.arguments import ArgumentError, check_arguments


def check_given(function: Callable[..., object], values: Mapping[str, object], who: str = "") -> None:
    """Refuse what the annotations of a function do not accept.

    Args:
        function: Such as the `__init__` of a class.
        values: Arguments by name, such as `locals()`; other names are left alone.
        who: Of whom the sentence speaks; empty where the argument's name says enough.

    Raises:
        DistillError: For the first argument that is not accepted.
    """
    try:
        check_arguments(function, values)
    except ArgumentError as error:
        raise DistillError(f"{who}: {error}" if who else str(error)) from error


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that refuses what its annotations do not accept, with a `DistillError`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: object, *arguments: object, **named: object) -> None:
        given = signature.bind(self, *arguments, **named).arguments
        name = getattr(type(self), "name", "")
        check_given(init, {k: v for k, v in given.items() if k != "self"}, name or type(self).__name__)
        init(self, *arguments, **named)

    return construct


def check_names(names: Mapping[str, object], what: str) -> None:
    """Refuse names that no part of a torch module can have.

    Args:
        names: By name, whatever is called so.
        what: The word for it, as student.

    Raises:
        DistillError: For the first.

    >>> check_names({"a.b": 1}, "term")
    Traceback (most recent call last):
    distill.errors.DistillError: a term is called 'a.b'; give a name that could be a variable's, such as 'mine'
    """
    from torch import nn

    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise DistillError(f"a {what} is called {name!r}; give a name that could be a variable's, such as 'mine'")
