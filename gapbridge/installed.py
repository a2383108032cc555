"""What installed packages register, read once for as long as nothing is installed or removed."""

import functools
import os
import sys
from importlib import metadata

Places = tuple[tuple[str, tuple[int, int, int] | None], ...]


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """Return the entry points of a group, sorted by name.

    `importlib.metadata` opens a file of every installed package at each call, which is most of the time that an answer
    of the command line takes. Here they are read again only when a folder of `sys.path` has changed, as it does when a
    package is installed or removed.

    Args:
        group: Name of the group, such as ``gapbridge.recipes``.

    Example:
        >>> entry_points("a group that nobody has")
        []
    """
    return list(_read(group, tuple((place, _state(place)) for place in sys.path)))


@functools.lru_cache(maxsize=16)
def _read(group: str, places: Places) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group; the places are what they depend on."""
    return tuple(sorted(metadata.entry_points(group=group), key=lambda point: point.name))


def _state(place: str) -> tuple[int, int, int] | None:
    """What tells a folder from what it was before."""
    try:
        found = os.stat(place or ".")
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
