"""Wrestling against a target that was recorded only when it was tired, and that has to be tired out first."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rl.envs.markov_game import Actions, State
from rl.envs.sumo import Sumo

WIDER = 4 / 3  # times as wide as Sumo's ring, so that there is time to go somewhere
LINE = 0.25  # how far right, in radii, we have to go to tire the target
WEAK = 0.0  # share of its power that a tired target uses
OWN_X, TIRED = 15, 19  # where observations have the own place along x, and whether the target is tired


class HalfSumo(Sumo):
    """Two bodies in a ring, in whose right half the target was recorded and in whose left half it was not; we are red.

    Rules are those of `Sumo`, with these changes. We are weaker: our motors have the share ``power`` of blue's. Once we
    have been right of a line, the match is marked as tired, for good, and both see the mark; what it means to the
    target is the target's affair. Players also see where they and their opponent stand along x, in radii of the ring,
    and their own heading. Matches start in the left half, unmarked, or in the right, marked.

    The task is made so that it can tell methods apart. The data hold marked matches alone, and in those the target is
    idle. Crossing the line first, then fighting, is safe: it needs nothing that the data do not show. Fighting at
    once from the left pays only against the target that a fitted model makes of these data. See
    ``benchmarks/csp_ladder.py``, which measures that before anything is trained.

    Args:
        body: ``pusher``, cheap to simulate, or ``walker``, an ant that trots by itself; as in `Sumo`.
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
        body: Literal["pusher", "walker"] = "pusher",
        horizon: int = 120,
        starts: Literal["all", "right"] = "all",
        power: float = 0.7,
        shaping: float = 0.1,
    ) -> None:
        if body not in {"pusher", "walker"}:
            raise ValueError(f"body is {body!r}, but it must be pusher or walker")
        if starts not in {"all", "right"} or not 0 < power <= 1:
            raise ValueError(
                f"starts is {starts!r} and power {power}, but they must be all or right, and above 0 and at most 1"
            )
        super().__init__(body, horizon, "all", shaping)
        self.where, self.power = starts, power
        self.body = self.body._replace(ring=WIDER * self.body.ring)
        self.observation_dim = {seat: width + 5 for seat, width in self.observation_dim.items()}

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """Bodies a quarter of the radius to either side of a point in one of the halves; ``tired`` marks the right."""
        state, ring = super().reset(batch, generator), self.body.ring
        draw = torch.rand(batch, 4, generator=generator, dtype=torch.float64)
        angle = 2 * torch.pi * draw[:, 0]
        apart = 0.28 * ring * torch.stack([angle.cos(), angle.sin()], dim=1)
        along = (0.35 + 0.15 * draw[:, 1]) * ring
        if self.where == "all":
            along = torch.where(draw[:, 3] < 0.5, -along, along)
        centre = torch.stack([along, 0.5 * (draw[:, 2] - 0.5) * ring], dim=1)
        physics, width = state["physics"], self.body.positions
        physics[:, 1:3], physics[:, 1 + width : 3 + width] = centre + apart, centre - apart
        return {**state, "tired": along > 0}

    def observe(self, state: State) -> dict[str, Tensor]:
        """What `Sumo` shows, then both places along x, the own heading's cosine and sine, and the mark."""
        seen = super().observe(state)
        views = [self._pose(state["physics"], seat) for seat in (0, 1)]
        for seat, name in enumerate(self.seats):
            own, other = views[seat], views[1 - seat]
            parts = [own["place"][:, 0] / self.body.ring, other["place"][:, 0] / self.body.ring]
            parts += [own["heading"].cos(), own["heading"].sin(), state["tired"].double()]
            seen[name] = torch.cat([seen[name], torch.stack(parts, dim=1).float()[:, None]], dim=-1)
        return seen

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """As in `Sumo`, with our motors at their power."""
        red, blue = self.seats
        weaker = {red: actions[red] * self.power, blue: actions[blue]}
        following, reward, done = super().step(state, weaker, generator)
        there = self._pose(following["physics"], 0)["place"][:, 0] > LINE * self.body.ring
        return {**following, "tired": state["tired"] | (there & ~state["done"])}, reward, done


def strong_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Charges, tired or not; what a target that answers to nothing in the data may do."""
    return _noisy(_charge(observation), 0.15, generator)


def sluggish_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Hardly moves, tired or not: what a model that was fitted to tired matches may take it for."""
    return _noisy(WEAK * _charge(observation), 0.15, generator)


def half_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """The target: it charges with all its power until it is tired, and hardly at all from then on."""
    charge = _charge(observation)
    return _noisy(torch.where((observation[..., TIRED] > 0.5)[..., None], WEAK * charge, charge), 0.15, generator)


def contrary_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Hardly moves until it is tired, and charges from then on: what no data of tired matches allow."""
    charge = _charge(observation)
    return _noisy(torch.where((observation[..., TIRED] > 0.5)[..., None], charge, WEAK * charge), 0.15, generator)


def fighting_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Fights where it is."""
    return _noisy(_charge(observation), 0.1, generator)


def careful_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Crosses the line first, and then fights."""
    ring = observation[..., 12] + observation[..., :2].norm(dim=-1)  # our distance from the edge and from the centre
    cosine, sine, goal = observation[..., 17], observation[..., 18], 0.5 * ring
    # The centre in the own frame, moved along x as seen from there.
    ahead, aside = observation[..., 0] + goal * cosine, observation[..., 1] - goal * sine
    tired = (observation[..., TIRED] > 0.5)[..., None]
    return _noisy(torch.where(tired, _charge(observation), _towards(ahead, aside, 1.5)), 0.1, generator)


def recorded_red(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """How we played while the target was recorded: we fought, with noise that shows more of it."""
    return _noisy(_charge(observation), 0.4, generator)


def _charge(observation: Tensor) -> Tensor:
    """Thrust and turn towards the opponent, (..., 2)."""
    return _towards(observation[..., 4], observation[..., 5], 1.5)


def _towards(ahead: Tensor, aside: Tensor, thrust: float) -> Tensor:
    bearing = torch.atan2(aside, ahead)
    return torch.stack([(thrust * bearing.cos()).clamp(-0.2, 1), (3 * bearing).clamp(-1, 1)], dim=-1)


def _noisy(action: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return (action + deviation * torch.randn(action.shape, generator=generator)).clamp(-1, 1)
