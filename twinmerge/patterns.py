"""Patterns in a PEFT folder, matched against every module's name: one of a stranger's could take for ever."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from re import _constants as codes, _parser as parser  # type: ignore[attr-defined]
from typing import Any

from twinmerge.errors import CheckpointError

LONGEST = 1000  # characters of a pattern
MOST = 5  # repeats of one pattern: with n of them a match takes at most length**n steps, and names are short
KEYS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


def check_patterns(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse patterns that cannot be matched in a moment: a repeat within a repeat, alternatives or references in one.

    Args:
        folder: Of the adapter, for the message.
        config: Its adapter_config.json.

    Raises:
        CheckpointError: With the key and the pattern.
    """
    for key in KEYS:
        value = config.get(key) or ()
        if key.endswith("_pattern") and not isinstance(value, dict | tuple):
            raise CheckpointError(f"{folder}: {key} of adapter_config.json is no table; copy the folder again.")
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            if reason := _fault(pattern):
                shown = pattern if len(pattern) <= 60 else f"{pattern[:57]}..."
                raise CheckpointError(
                    f"{folder}: {key} has the pattern '{shown}', which {reason}; write the modules' names instead."
                )


def _fault(pattern: str) -> str:
    if len(pattern) > LONGEST:
        return f"has {len(pattern)} characters, more than {LONGEST}"
    try:
        parsed = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    repeats = list(_repeats(parsed))
    if len(repeats) > MOST:
        return f"repeats {len(repeats)} times, more than {MOST}"
    for inner in repeats:
        if any(True for _ in _repeats(inner)) or any(
            code in (codes.BRANCH, codes.GROUPREF) for code, _ in _walk(inner)
        ):
            return "repeats what repeats or varies within itself, so that a match may take for ever"
    return ""


def _repeats(parsed: Any) -> Iterator[Any]:
    """The inside of every repeat of more than once."""
    for code, argument in _walk(parsed):
        if code in _REPEATS and argument[1] > 1:
            yield argument[2]


def _walk(parsed: Any) -> Iterator[tuple[Any, Any]]:
    """Every operation of a parsed pattern, those within others included."""
    for code, argument in parsed:
        yield code, argument
        waiting = [argument]
        while waiting:
            part = waiting.pop()
            if isinstance(part, parser.SubPattern):
                yield from _walk(part)
            elif isinstance(part, list | tuple):
                waiting.extend(part)
