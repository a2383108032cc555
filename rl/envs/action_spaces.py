"""Split the action spaces of Gymnasium environments into a mode and real parameters, and put actions together again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from rl.errors import SimulatorError

Array = NDArray[np.float64]
Build = Callable[[Any, Array], object]  # from a mode, an int or with heads one for each, and its parameters
Path = tuple[Hashable, ...]  # of a part of a nested space
Parameters = Literal["all", "own"]


@dataclass(frozen=True)
class HybridActions:
    """A mode and, for every mode, parameters in a box; or the modes of several heads, and parameters in one box.

    Attributes:
        low: Lower bounds (n_modes, action_dim), -inf where there is none; with heads (1, action_dim).
        high: Upper bounds, inf where there is none.
        used: False where a mode has fewer parameters than the widest one.
        join: From a mode and its parameters (action_dim,) to an action of the space; with heads, from one mode for
            each.
        heads: Number of modes of each head, none for a single choice.
    """

    low: Array
    high: Array
    used: NDArray[np.bool_]
    join: Build
    heads: tuple[int, ...] = ()

    @property
    def n_modes(self) -> int:
        """Number of modes; 1 with heads."""
        return len(self.low)

    @property
    def action_dim(self) -> int:
        """Number of parameters of the widest mode."""
        return int(self.low.shape[1])

    def feasible(self, raw: Tensor) -> Tensor:
        """Real numbers mapped into the boxes.

        A sigmoid between two bounds, a softplus above or below one, and nothing where there is none; 0 where a mode has
        no such parameter.

        Args:
            raw: (..., n_modes, action_dim).

        Returns:
            Parameters of the same shape.
        """
        low, high = (torch.as_tensor(bound).to(raw) for bound in (self.low, self.high))
        below, above = low.isfinite(), high.isfinite()
        floor, ceiling = low.where(below, 0.0), high.where(above, 0.0)
        inside = floor + (ceiling - floor) * raw.sigmoid()
        one_sided = torch.where(below, floor + softplus(raw), torch.where(above, ceiling - softplus(raw), raw))
        return torch.where(below & above, inside, one_sided) * torch.as_tensor(self.used).to(raw)


def split_actions(space: spaces.Space[object], parameters: Parameters | None = None) -> HybridActions:
    r"""Read an action space as one mode, or one for each of several heads, and its parameters.

    ===========================================  =============================================================
    space                                        what the parameters of a mode are
    ===========================================  =============================================================
    ``Discrete``, ``Box``                        none; all of them, in the only mode
    ``Dict``, ``Tuple`` of Discrete and boxes    all boxes, whatever the mode (as in gym-hybrid)
    the same, and the only box has J rows        the row of the mode; the others are 0 or the nearest bound
    ``Tuple(Discrete(J), Tuple(J boxes))``       its own box (as in gym-platform and gym-goal)
    ``OneOf`` of boxes and Discretes             its own box; every value of a Discrete is a mode without any
    ``MultiDiscrete``, ``MultiBinary``           none; a head for each of their numbers
    ``Dict``, ``Tuple`` with several of these    all boxes, whatever the modes of the heads
    ===========================================  =============================================================

    ``Dict`` and ``Tuple`` may be nested to any depth, and without anything discrete they have a single mode.

    J modes beside J boxes, or beside one box of J numbers, can be meant either way: with ``parameters`` unset, such a
    space is refused rather than guessed.

    Args:
        space: An action space of Gymnasium.
        parameters: What the boxes beside a Discrete are: ``all`` of them the parameters of every mode, or each mode's
            ``own``, its box or its row of the only box. None reads them as the table says.

    Returns:
        Its parts.

    Raises:
        SimulatorError: If the space is none of these, or can be meant either way.

    Example:
        >>> actions = split_actions(spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))]))
        >>> actions.n_modes, actions.low.tolist()
        (3, [[0.0, -1.0], [0.0, -1.0], [0.0, -1.0]])
        >>> actions.join(1, np.array([0.5, -0.5]))
        (1, array([0.5], dtype=float32), array([-0.5], dtype=float32))
    """
    if isinstance(space, spaces.Discrete):
        return _modes([[]] * int(space.n), lambda mode, _: int(space.start) + mode)
    if isinstance(space, spaces.Box):
        return _modes([[_real(space, space)]], lambda _, values: _fill(space, values))
    if isinstance(space, spaces.OneOf):
        return _one_of(space)
    if isinstance(space, spaces.Dict | spaces.Tuple | spaces.MultiDiscrete | spaces.MultiBinary):
        return _product(space, parameters)
    raise _refusal(space, f"it is a {type(space).__name__}")


def _leaves(space: spaces.Space[object], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[object]]]:
    """The parts of a nested space that are no Dict or Tuple, by their paths."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _leaves(part, (*path, key))
    else:
        yield path, space


def _nested(space: spaces.Space[object], values: Mapping[Path, object], path: Path = ()) -> object:
    """An element of a nested space from those of its leaves."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(part, values, (*path, key)) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(part, values, (*path, index)) for index, part in enumerate(space.spaces))
    return values[path]


def _product(space: spaces.Space[object], parameters: Parameters | None) -> HybridActions:
    """Choices beside boxes: a single Discrete is the mode, anything more are heads."""
    leaves = list(_leaves(space))
    kinds = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    choices = {path: part for path, part in leaves if isinstance(part, kinds)}
    boxes = {path: _real(part, space) for path, part in leaves if path not in choices}
    if not choices:
        return _modes([list(boxes.values())], lambda _, values: _nested(space, _filled(boxes, values)))
    ((mode_path, discrete), *more) = choices.items()
    if more or not isinstance(discrete, spaces.Discrete):
        return _heads(space, choices, boxes, parameters)
    count = int(discrete.n)

    def assemble(mode: int, others: Mapping[Path, object]) -> object:
        return _nested(space, {**others, mode_path: int(discrete.start) + mode})

    boxes_alone = list(boxes.values())
    if _box_tuple(space, count):
        return _own_boxes(boxes_alone, lambda filled: dict(zip(boxes, filled, strict=True)), assemble)
    if _are_own(space, boxes_alone, count, parameters):
        if len(boxes) == count:
            return _own_boxes(boxes_alone, lambda filled: dict(zip(boxes, filled, strict=True)), assemble)
        ((path, box),) = boxes.items()
        rows = [spaces.Box(np.array(box.low[i]), np.array(box.high[i]), dtype=box.dtype.type) for i in range(count)]
        return _own_boxes(rows, lambda filled: {path: np.stack(filled)}, assemble)
    return _modes([boxes_alone] * count, lambda mode, values: assemble(mode, _filled(boxes, values)))


def _box_tuple(space: spaces.Space[object], count: int) -> bool:
    """Whether one of two parts is a Tuple of a box for each mode, which can only be meant one way."""
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else list(getattr(space, "spaces", []))
    nested = [part for part in parts if isinstance(part, spaces.Tuple)]
    return (
        len(parts) == 2
        and any(isinstance(part, spaces.Discrete) for part in parts)
        and len(nested) == 1
        and len(nested[0].spaces) == count
        and all(isinstance(part, spaces.Box) for part in nested[0].spaces)
    )


def _heads(
    space: spaces.Space[object],
    choices: Mapping[Path, spaces.Space[object]],
    boxes: Mapping[Path, spaces.Box],
    parameters: Parameters | None,
) -> HybridActions:
    """A head for every number of the choices."""
    if parameters == "own":
        raise _refusal(space, "with several choices no box can be one mode's own")
    sizes = {path: _head_sizes(part) for path, part in choices.items()}

    def join(mode: Sequence[int], values: Array) -> object:
        found: dict[Path, object] = dict(_filled(boxes, values))
        rest = np.asarray(mode, dtype=np.int64)
        for path, part in choices.items():
            mine, rest = rest[: len(sizes[path])], rest[len(sizes[path]) :]
            start = np.asarray(getattr(part, "start", 0))
            chosen = mine.reshape(part.shape) + start
            found[path] = int(chosen) if isinstance(part, spaces.Discrete) else chosen.astype(part.dtype)
        return _nested(space, found)

    return replace(_modes([list(boxes.values())], join), heads=tuple(size for row in sizes.values() for size in row))


def _head_sizes(part: spaces.Space[object]) -> list[int]:
    """Number of modes of each number of a choice."""
    if isinstance(part, spaces.Discrete):
        return [int(part.n)]
    if isinstance(part, spaces.MultiDiscrete):
        return [int(size) for size in part.nvec.ravel()]
    return [2] * int(np.prod(part.shape))


def _filled(boxes: Mapping[Path, spaces.Box], values: Array) -> dict[Path, Array]:
    """Elements of several boxes from the parameters of all of them, one box after the other."""
    ends = np.cumsum([int(np.prod(box.shape)) for box in boxes.values()])
    pieces = np.split(values[: ends[-1]], ends[:-1]) if len(ends) else []
    return {path: _fill(box, piece) for (path, box), piece in zip(boxes.items(), pieces, strict=True)}


def _own_boxes(
    boxes: Sequence[spaces.Box],
    gather: Callable[[list[Array]], Mapping[Path, object]],
    assemble: Callable[[int, Mapping[Path, object]], object],
) -> HybridActions:
    """A box for each mode; the others are 0 or their nearest bound when it is not their turn."""

    def join(mode: int, values: Array) -> object:
        filled = [_fill(box, values if i == mode else np.zeros(0)) for i, box in enumerate(boxes)]
        return assemble(mode, gather(filled))

    return _modes([[box] for box in boxes], join)


def _are_own(space: object, boxes: Sequence[spaces.Box], count: int, parameters: Parameters | None) -> bool:
    """Whether each mode has its own box or its own row of the only box."""
    a_box_each = len(boxes) == count
    a_row_each = len(boxes) == 1 and bool(boxes[0].shape) and boxes[0].shape[0] == count
    if count == 1 or not (a_box_each or a_row_each):
        if parameters == "own" and count > 1:
            raise _refusal(space, f"its {count} modes have neither a box nor a row of the only box each")
        return False
    if parameters is None and (a_box_each or len(boxes[0].shape) == 1):
        found = f"{count} boxes" if a_box_each else f"a box of {count} numbers"
        raise SimulatorError(
            f"the action space {space} has {count} modes beside {found}, which may be one for each mode or all for "
            "every mode; say which: parameters='own' or parameters='all'"
        )
    return parameters != "all"


def _one_of(space: spaces.OneOf) -> HybridActions:
    """Every box is a mode, and every value of a Discrete."""
    modes: list[tuple[int, spaces.Box | None, int]] = []
    for index, part in enumerate(space.spaces):
        if isinstance(part, spaces.Discrete):
            modes += [(index, None, int(part.start + value)) for value in range(int(part.n))]
        else:
            modes.append((index, _real(part, space), 0))

    def join(mode: int, values: Array) -> object:
        index, box, value = modes[mode]
        return index, value if box is None else _fill(box, values)

    return _modes([[] if box is None else [box] for _, box, _ in modes], join)


def _modes(boxes: Sequence[Sequence[spaces.Box]], join: Build) -> HybridActions:
    """Bounds of every mode, padded to the widest one."""
    lows = [np.concatenate([np.zeros(0), *(box.low.ravel() for box in row)]) for row in boxes]
    highs = [np.concatenate([np.zeros(0), *(box.high.ravel() for box in row)]) for row in boxes]
    shape = len(boxes), max(len(low) for low in lows)
    low, high, used = np.full(shape, -np.inf), np.full(shape, np.inf), np.zeros(shape, dtype=bool)
    for i, (below, above) in enumerate(zip(lows, highs, strict=True)):
        low[i, : len(below)], high[i, : len(above)], used[i, : len(below)] = below, above, True
    return HybridActions(low, high, used, join)


def _fill(box: spaces.Box, values: Array) -> Array:
    """An element of a box from its first values; what is missing is 0, and all is clipped to the box."""
    size = int(np.prod(box.shape))
    padded = np.zeros(size)
    padded[: min(size, len(values))] = values[:size]
    return padded.reshape(box.shape).astype(box.dtype).clip(box.low, box.high)


def _real(part: object, space: spaces.Space[object]) -> spaces.Box:
    if not isinstance(part, spaces.Box) or not np.issubdtype(part.dtype, np.floating):
        raise _refusal(space, f"its part {part} is not a Box of real numbers")
    return part


def _refusal(space: object, why: str) -> SimulatorError:
    return SimulatorError(
        f"the action space {space} cannot be split into modes and real parameters: {why}; accepted are Discrete, "
        "MultiDiscrete, MultiBinary, real boxes, Dict and Tuple of these to any depth, Tuple(Discrete(J), Tuple of J "
        "boxes), and OneOf of boxes and Discretes: wrap the environment to offer one of these"
    )


class FlatActions(gymnasium.ActionWrapper):  # type: ignore[misc]
    """A hybrid action space as one flat Box, for agents that take no other, such as those of Stable-Baselines3.

    The first ``n_modes`` numbers vote for the mode, which is their argmax, or with heads the numbers of each head for
    its mode; the others are the parameters, clipped to the box of that mode. Votes for what ``info["action_mask"]``
    forbids are not counted. Structure is lost: a Gaussian policy then explores the modes through noise on votes, and
    all modes share one set of parameters.

    Args:
        env: An environment whose action space :func:`split_actions` accepts.
        bound: Votes, and parameters without bounds of their own, are within plus and minus this.
        parameters: As :func:`split_actions` has it; None takes what the environment's attribute ``parameters`` says.
    """

    def __init__(
        self, env: gymnasium.Env[object, object], bound: float = 10.0, parameters: Parameters | None = None
    ) -> None:
        super().__init__(env)
        self.parts = split_actions(env.action_space, parameters or getattr(env.unwrapped, "parameters", None))
        self._ends = np.cumsum(self.parts.heads or (self.parts.n_modes,))
        self._allowed: object = None
        votes = np.full(self._ends[-1], bound)
        low = np.where(self.parts.used, self.parts.low, np.inf).min(axis=0)
        high = np.where(self.parts.used, self.parts.high, -np.inf).max(axis=0)
        low, high = np.where(np.isfinite(low), low, -bound), np.where(np.isfinite(high), high, bound)
        self.action_space = spaces.Box(
            np.concatenate([-votes, low]).astype(np.float32), np.concatenate([votes, high]).astype(np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[object, dict[str, object]]:
        """A new episode of the environment."""
        seen, info = self.env.reset(seed=seed, options=options)
        self._allowed = info.get("action_mask")
        return seen, info

    def step(self, action: Array) -> tuple[object, object, bool, bool, dict[str, object]]:
        """One decision."""
        seen, reward, terminated, truncated, info = self.env.step(self.action(action))
        self._allowed = info.get("action_mask")
        return seen, reward, terminated, truncated, info

    def action(self, action: Array) -> object:
        """The environment's action."""
        *votes, values = np.split(action, self._ends)
        if self._allowed is not None:
            rows = np.asarray(self._allowed, dtype=bool).reshape(len(votes), -1)
            votes = [np.where(row[: len(vote)], vote, -np.inf) for vote, row in zip(votes, rows, strict=True)]
        modes = [int(np.argmax(each)) for each in votes]
        return self.parts.join(modes if self.parts.heads else modes[0], np.asarray(values, dtype=np.float64))
