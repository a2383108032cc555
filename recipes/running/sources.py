"""What a recipe names: the paths among its values, and the user's own modules behind its import paths."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_HOME = Path(__file__).resolve().parents[2]
_WINGS = ("gapbridge", "twinmerge", "distill", "rl", "explain", "recipes")
LONGEST = 1000  # characters of a value that may be a path


def named_paths(values: object) -> Iterator[Path]:
    """The files and folders that exist among the values of a recipe.

    Args:
        values: Plain values, nested.
    """
    for text in _texts(values):
        if text and len(text) <= LONGEST and "\0" not in text:
            path = Path(text).expanduser()
            try:
                found = path.exists()
            except OSError:  # a name that no file system takes
                continue
            if found:
                yield path


def user_modules(values: object) -> list[Path]:
    """The user's own files of code behind the import paths of a recipe, and what these import, without importing any.

    Files of a package come with those beside them. Installed packages are known by their versions and left out.

    Args:
        values: Plain values, nested.

    Returns:
        The files, sorted.
    """
    found: set[Path] = set()
    waiting = [text for text in _texts(values) if DOTTED.fullmatch(text)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for file in _files(name):
            if file not in found:
                found.add(file)
                waiting += _imported(file, name)
    return sorted(found)


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, str | Path):
        yield str(values)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


def _files(name: str) -> list[Path]:
    """The user's files on the way to a dotted name: the packages' and the module's, and those beside it."""
    top, *rest = name.split(".")
    try:
        spec = None if top in sys.builtin_module_names else importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [path for path in [Path(spec.origin or "")] if path.is_file() and _own(path)]
    found: list[Path] = []
    for place in map(Path, spec.submodule_search_locations):
        if _own(place):
            found += _within(place, rest)
    return found


def _within(folder: Path, rest: list[str]) -> list[Path]:
    found: list[Path] = []
    for part in ["", *rest]:
        folder = folder / part
        if (folder / "__init__.py").is_file():
            found += folder.glob("*.py")
        elif (module := folder.with_suffix(".py")).is_file() and part:
            return [*found, module]
        elif not folder.is_dir():
            return found
    return found


def _own(path: Path) -> bool:
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [_HOME / wing for wing in _WINGS]
    return not any(path.resolve().is_relative_to(place) for place in [*installed, *ours])


def _imported(file: Path, name: str) -> list[str]:
    """The modules that a file imports, with the relative ones made absolute; none of a file that is no Python."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):  # of the file's own package or one above
            parts = name.split(".")
            for size in range(1, len(parts)):
                found += [".".join([*parts[:size], *filter(None, [node.module]), a.name]) for a in node.names]
    return found
