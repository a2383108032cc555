"""Wrestling against a target that is weak in one half of the ring, where it was recorded, and strong in the other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rl.envs.markov_game import Actions, State
from rl.envs.sumo import Sumo

RING = 1.6  # radius; larger than Sumo's, so that there is time to change the half
SIDE = 0.1  # distance from the middle line, in radii, from which on scripts call a half their own
OTHER_X, OWN_X = 16, 15  # where observations have the opponent's and the own place along the line between the halves


class HalfSumo(Sumo):
    """Two boxes in a ring whose right half (x above 0) was recorded and whose left half was not; we are red.

    Rules are those of `Sumo`, with these changes. We are weaker: our motors have the share ``power`` of blue's. Players
    also see where they and their opponent stand along x, in radii of the ring, and their own heading. Matches start
    close to each other in the left half or in the right.

    The task is made so that a method can tell itself from others: going to the right half first is safe, as the data
    show a sluggish target there, and fighting where the match starts pays only against the target that a fitted model
    makes of these data. See ``benchmarks/csp_halfsumo.py``, which measures that before anything is trained.

    Args:
        horizon: Decisions of a match.
        starts: ``right`` as recorded, ``all`` for both halves alike.
        power: Of our motors, in (0, 1].
        shaping: As in `Sumo`.

    Raises:
        ImportError: If MuJoCo is not installed.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        horizon: int = 60,
        starts: Literal["all", "right"] = "all",
        power: float = 0.7,
        shaping: float = 0.1,
    ) -> None:
        if starts not in {"all", "right"} or not 0 < power <= 1:
            raise ValueError(
                f"starts is {starts!r} and power {power}, but they must be all or right, and above 0 and at most 1"
            )
        super().__init__("pusher", horizon, "all", shaping)
        self.where, self.power = starts, power
        self.body = self.body._replace(ring=RING)
        self.observation_dim = {seat: width + 4 for seat, width in self.observation_dim.items()}

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """Bodies a quarter of the radius to either side of a point in one of the halves."""
        state = super().reset(batch, generator)
        draw = torch.rand(batch, 4, generator=generator, dtype=torch.float64)
        angle = 2 * torch.pi * draw[:, 0]
        apart = 0.28 * RING * torch.stack([angle.cos(), angle.sin()], dim=1)
        along = (0.35 + 0.15 * draw[:, 1]) * RING
        if self.where == "all":
            along = torch.where(draw[:, 3] < 0.5, -along, along)
        centre = torch.stack([along, 0.5 * (draw[:, 2] - 0.5) * RING], dim=1)
        physics, width = state["physics"], self.body.positions
        physics[:, 1:3], physics[:, 1 + width : 3 + width] = centre + apart, centre - apart
        return state

    def observe(self, state: State) -> dict[str, Tensor]:
        """What `Sumo` shows, then both places along x and the own heading's cosine and sine."""
        seen = super().observe(state)
        views = [self._pose(state["physics"], seat) for seat in (0, 1)]
        for seat, name in enumerate(self.seats):
            own, other = views[seat], views[1 - seat]
            parts = [own["place"][:, 0] / RING, other["place"][:, 0] / RING]
            parts += [own["heading"].cos(), own["heading"].sin()]
            seen[name] = torch.cat([seen[name], torch.stack(parts, dim=1).float()[:, None]], dim=-1)
        return seen

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """As in `Sumo`, with our motors at their power."""
        red, blue = self.seats
        return super().step(state, {red: actions[red] * self.power, blue: actions[blue]}, generator)


def strong_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Charges wherever it is; what a target that answers to nothing in the data may do."""
    return _noisy(_charge(observation), 0.15, generator)


def sluggish_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Charges at a third of its power wherever it is: what a model fitted to the right half may take it for."""
    return _noisy(0.3 * _charge(observation), 0.15, generator)


def half_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """The target: sluggish while its opponent is in the right half, strong while it is in the left."""
    charge = _charge(observation)
    return _noisy(torch.where((observation[..., OTHER_X] > 0)[..., None], 0.3 * charge, charge), 0.15, generator)


def fighting_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Fights where it is."""
    return _noisy(_charge(observation), 0.1, generator)


def careful_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Goes to the right half first, and fights there."""
    return _noisy(_right_first(observation, SIDE, 0.55), 0.1, generator)


def recorded_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """How we played while the target was recorded: as `careful_red`, with noise that shows more of the half."""
    return _noisy(_right_first(observation, 0.12, 0.5), 0.4, generator)


def _charge(observation: Tensor) -> Tensor:
    """Thrust and turn towards the opponent, (..., 2)."""
    return _towards(observation[..., 4], observation[..., 5], 1.5)


def _right_first(observation: Tensor, side: float, goal: float) -> Tensor:
    """Drive to the point (goal, 0) while left of ``side`` radii, else charge."""
    cosine, sine = observation[..., 17], observation[..., 18]
    # The centre in the own frame, moved along x as seen from there.
    ahead, aside = observation[..., 0] + goal * cosine, observation[..., 1] - goal * sine
    there = (observation[..., OWN_X] > side)[..., None]
    return torch.where(there, _charge(observation), _towards(ahead, aside, 1.0))


def _towards(ahead: Tensor, aside: Tensor, thrust: float) -> Tensor:
    bearing = torch.atan2(aside, ahead)
    return torch.stack([(thrust * bearing.cos()).clamp(-0.2, 1), (3 * bearing).clamp(-1, 1)], dim=-1)


def _noisy(action: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return (action + deviation * torch.randn(action.shape, generator=generator)).clamp(-1, 1)
