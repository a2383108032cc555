"""Static merges tried on small tensors, so that what a method refuses is found before anything is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch

from twinmerge.functional.state import State
from twinmerge.methods import FURTHER, OURS, WITH_DATA, find, options_for

SIDE = 16  # of the matrices


def tried(
    method: str, options: Mapping[str, object], tasks: Sequence[str], shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, object]:
    """The options of a static merge as its arguments, after as many small random models as there are experts took them.

    Methods of other packages are not tried, since they may need the tensors of a real model; their options are
    compared with their signatures.

    Args:
        method: Its name.
        options: Of the method, but for its statistics, which are made up.
        tasks: Names of the experts in order.
        shapes: Of the real tensors by name, of which one is tried of all that the options do not tell apart; None where
            they are not known.

    Returns:
        The options; what is given by the experts' names is in their order.

    Warns:
        UserWarning: For an option that is given for a part of tensors' names and fits none of them.

    Raises:
        ValueError: When the method is unknown, or refuses its options or the number of experts, in its own words.
    """
    function = find(method)
    filled = WITH_DATA[method].option if method in WITH_DATA else ""
    if filled in options:
        raise ValueError(f"{method} has no option '{filled}' to set; it comes from the statistics of the experts.")
    given = options_for(function, {**options, **({filled: []} if filled else {})}, tasks)
    given.pop(filled, None)
    for part in _unfit(given, shapes or {}):
        warnings.warn(f"{method}: an option is given for '{part}', which no tensor's name has in it.", stacklevel=2)
    if method in (*OURS, *FURTHER, *WITH_DATA):
        models = small_models(len(tasks) + 1, given, shapes)
        made_up = {filled: [_statistics(method, models[0])] * len(tasks)} if filled else {}
        merged: State = function(models[0], models[1:], **given, **made_up)
        if odd := [name for name, value in merged.items() if not value.isfinite().all()]:
            raise ValueError(
                f"{method} gives NaN or infinite values for '{odd[0]}' of a small model; give other options."
            )
    return given


def small_models(
    count: int, options: Mapping[str, object], shapes: Mapping[str, Sequence[int]] | None = None
) -> list[State]:
    """Random models with one small tensor for all whose names and dimensions the options do not tell apart."""
    parts = sorted(set(_parts(list(options.values()))))
    if shapes is None:
        shapes = {".".join([*parts, "weight"]): (SIDE, SIDE), ".".join([*parts, "bias"]): (SIDE,)}
    one_each = {(len(shape) > 1, *(part in name for part in parts)): name for name, shape in shapes.items()}
    sides = {name: (SIDE, SIDE) if key[0] else (SIDE,) for key, name in one_each.items()}
    draw = torch.Generator().manual_seed(0)
    return [{name: torch.randn(side, generator=draw) for name, side in sides.items()} for _ in range(count)]


def _unfit(options: Mapping[str, object], shapes: Mapping[str, object]) -> list[str]:
    """Parts of names that no tensor has; `*` stands for all others."""
    parts = sorted({*_parts(list(options.values()))} - {"*"})
    return [part for part in parts if shapes and not any(part in name for name in shapes)]


def _parts(setting: object) -> Iterator[str]:
    """The parts of tensors' names in an option, however deep."""
    if isinstance(setting, Mapping):
        yield from map(str, setting)
        setting = list(setting.values())
    if isinstance(setting, Sequence) and not isinstance(setting, str):
        yield from chain.from_iterable(map(_parts, setting))


def _statistics(method: str, model: State) -> State:
    """What a method with data takes of an expert: Gram matrices of linear layers, or a number for every weight."""
    if method == "regmean":
        return {name: torch.eye(SIDE) for name, value in model.items() if value.dim() == 2}
    return {name: torch.ones_like(value) for name, value in model.items()}
