"""Scores that a merge found before, kept in the user's cache under everything that decides them.

A changed base, expert, head, input or number format, another version of a library that computes and any changed line of
this project make another name, so a score is only found where the same forward would give it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recipes.data.wheels import cache_root
from recipes.running.built_with import built_with

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder


class Kept:
    """Scores by what decides them.

    Args:
        folder: Run folder, for the log.
        decides: What all of them depend on: tensors, modules, texts, numbers, and mappings and sequences of such.
    """

    def __init__(self, folder: RunFolder, *decides: object) -> None:
        self.folder = folder
        self._root = cache_root() / "scores"
        self._decides = fingerprint([built_with("twinmerge", "recipes"), decides])
        self.found = 0

    def find(self, *of: object) -> tuple[dict[str, float], float] | None:
        """Scores by task and milliseconds an input of a model; None for one that is not there, or damaged."""
        try:
            entry = json.loads(self._file(of).read_text(encoding="utf-8"))
            tasks, milliseconds = (
                {str(task): float(score) for task, score in entry["tasks"].items()},
                float(entry["ms_per_input"]),
            )
            whole = entry["seal"] == fingerprint([tasks, milliseconds])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not whole:
            return None
        self.found += 1
        if self.found == 1:
            self.folder.say(f"scores of the very same models on the very same inputs are taken from {self._root}")
        return tasks, milliseconds

    def keep(self, tasks: Mapping[str, float], milliseconds: float, *of: object) -> None:
        """Keep the scores of a model; a cache that cannot be written keeps nothing."""
        file = self._file(of)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        entry = {"tasks": dict(tasks), "ms_per_input": milliseconds, "seal": fingerprint([dict(tasks), milliseconds])}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(entry), encoding="utf-8")
            beside.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()

    def _file(self, of: Sequence[object]) -> Path:
        return self._root / f"{fingerprint([self._decides, *of])}.json"


def fingerprint(thing: object) -> str:
    """sha256 of a value and of all that it holds.

    Args:
        thing: A tensor, a module, a text, a number, None, or mappings, sequences and dataclasses of such.

    Raises:
        TypeError: For anything else, whose content is not known.
    """
    found = hashlib.sha256()
    _feed(found, thing)
    return found.hexdigest()


def _feed(found: hashlib._Hash, thing: object) -> None:
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        found.update(f"tensor {plain.dtype} {tuple(plain.shape)} ".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b"")
    elif isinstance(thing, nn.Module):
        config, settings = getattr(thing, "config", None), {name: _settings(one) for name, one in thing.named_modules()}
        _feed(found, ["module", repr(thing), str(config), settings, thing.state_dict()])
    elif is_dataclass(thing) and not isinstance(thing, type):
        _feed(found, [type(thing).__qualname__, {field.name: getattr(thing, field.name) for field in fields(thing)}])
    elif isinstance(thing, Mapping):
        found.update(f"mapping {len(thing)} ".encode())
        for name, value in thing.items():
            _feed(found, name)
            _feed(found, value)
    elif thing is None or isinstance(thing, str | int | float):
        found.update(f"{type(thing).__name__} {len(repr(thing))} {thing!r} ".encode())
    elif isinstance(thing, Sequence):
        found.update(f"sequence {len(thing)} ".encode())
        for value in thing:
            _feed(found, value)
    else:
        raise TypeError(f"expected tensors, modules, texts and numbers, got {type(thing).__name__}")


def _settings(module: nn.Module) -> list[object]:
    """What a module does beside its tensors: its class, and its attributes that are plain values or functions."""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    kept = {
        name: value for name, value in plain.items() if value is None or isinstance(value, str | int | float | tuple)
    }
    called = {name: getattr(value, "__qualname__", "") for name, value in plain.items() if callable(value)}
    return [type(module).__module__, type(module).__qualname__, {n: str(value) for n, value in kept.items()}, called]
