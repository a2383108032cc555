"""What a recipe or checkpoint names by its import path."""

from __future__ import annotations

import importlib
from typing import Any


def find(what: str, path: str) -> Any:
    """The class or function at an import path.

    Args:
        what: The word for it in errors, as ``game``.
        path: As in ``rl.envs.vault_maze.VaultMaze``.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {path!r} cannot be imported ({error}); give the path of a class.") from error


def make(what: str, path: str, found: Any, arguments: dict[str, Any] | None) -> Any:
    """Call what was found.

    Args:
        what: As in :func:`find`.
        path: Likewise.
        found: What it returned.
        arguments: By name.

    Raises:
        ValueError: If it does not take them.
    """
    try:
        return found(**(arguments or {}))
    except TypeError as error:
        raise ValueError(f"{what} {path!r} does not take {arguments} ({error}); see its docstring.") from error
