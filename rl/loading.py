"""What a recipe, an argument or a checkpoint names by its import path: found, checked, and only then called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_type_hints

# The arguments that the user gave to `load_from_checkpoint`; None outside of it and under `trust`.
_given: ContextVar[Collection[str] | None] = ContextVar("given", default=None)


@contextmanager
def from_checkpoint(given: Collection[str], *, trust: bool) -> Iterator[None]:
    """Inside, import paths are followed only if the user gave them, unless all are trusted.

    Args:
        given: Names of the arguments that the user gave; all others come from the checkpoint.
        trust: Follow the checkpoint's own paths too.
    """
    before = _given.set(None if trust else frozenset(given))
    try:
        yield
    finally:
        _given.reset(before)


def refuse_strangers(what: str, path: str, arguments: object) -> None:
    """Refuse a path that a checkpoint brought, or its arguments of text, which may name code in their turn.

    Args:
        what: Name of the argument that holds the path; its arguments are in ``{what}_args``.
        path: The import path.
        arguments: Of what is there.

    Raises:
        ValueError: Inside :func:`from_checkpoint`, unless trusted or given by the user.
    """
    given = _given.get()
    if given is None:
        return
    if what not in given:
        raise ValueError(
            f"the checkpoint names the {what} {path!r}, whose code would run: give {what}=... to load_from_checkpoint, "
            "or trust=True if you trust whoever wrote the checkpoint."
        )
    if f"{what}_args" not in given and _has_text(arguments):
        raise ValueError(
            f"the checkpoint names arguments of the {what}, {arguments}, and text among them may name code: give "
            f"{what}_args=... to load_from_checkpoint, or trust=True if you trust whoever wrote the checkpoint."
        )


def _has_text(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_text, value.values()))
    return any(map(_has_text, value)) if isinstance(value, list | tuple | set) else isinstance(value, str | bytes)


def find(what: str, path: str) -> object:
    """The class or function at an import path; it is not called.

    Args:
        what: The word for it in errors, as ``game``.
        path: As in ``rl.envs.vault_maze.VaultMaze``.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise ValueError(f"{what} {path!r} is no import path; give that of a class, such as package.module.Class.")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module of the user's may fail in any way while it is imported
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{what} {path!r} cannot be imported ({reason}); give the path of a class or function."
        ) from error


def made_by(found: object) -> type | None:
    """The class of what a class or function makes: itself, or what the function is annotated to return; else None."""
    if isinstance(found, type):
        return found
    if not callable(found):
        return None
    try:
        returned = get_type_hints(found).get("return")
    except (NameError, TypeError, AttributeError):  # annotations that cannot be read say nothing
        return None
    return returned if isinstance(returned, type) else None


def make(what: str, path: str, found: Callable[..., object], arguments: Mapping[str, object] | None) -> object:
    """Call what was found.

    Args:
        what: As in :func:`find`.
        path: Likewise.
        found: What it returned, checked by the caller.
        arguments: By name.

    Raises:
        ValueError: If it does not take them.
    """
    try:
        return found(**(arguments or {}))
    except TypeError as error:
        raise ValueError(f"{what} {path!r} does not take {arguments} ({error}); see its docstring.") from error
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # likewise
        reason = " ".join(str(error).split()) or "without a word"
        raise ValueError(f"{what} {path!r} failed while it was made ({type(error).__name__}: {reason}).") from error
