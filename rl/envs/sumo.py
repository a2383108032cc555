"""A wrestling match of two bodies in a ring, simulated by MuJoCo: whoever leaves the ring loses."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.drawing import blank, disc
from rl.envs.markov_game import Actions, BatchedGame, State
from rl.envs.sumo_bodies import BODIES, Body

if TYPE_CHECKING:
    import mujoco

LOWEST = 0.25  # an ant whose torso is lower, or upside down, has fallen


class Sumo(BatchedGame):
    r"""Two equal bodies in a round ring; we are red.

    Leaving the ring, or falling over, loses the match: +1 to the winner, -1 to the loser, 0 to both if it happens to
    both in the same step or if time is up. On the way, our reward also has ``shaping`` times the change of how much
    farther blue is from the centre than we are, in radii of the ring. The game is zero-sum.

    Every player sees the match from its own place and heading: where the centre, the opponent and the edges are, how
    both move, how much time is left, and the joints of its own body.

    Args:
        body: ``pusher``, a box that thrusts and turns, cheap to simulate; ``ant``, four legs with eight motors; or
            ``walker``, an ant that trots by itself and is told, like a pusher, how fast ahead and how to turn.
        horizon: Decisions of a match.
        starts: Where bodies start: ``front`` face to face, ``all`` with any headings.
        shaping: Weight of the dense part of the reward.

    Raises:
        ImportError: If MuJoCo is not installed.
        ValueError: If an argument is out of range.

    Reference:
        The rules follow the sumo of Bansal et al. (2018), "Emergent complexity via multi-agent competition", arXiv
        1710.03748; bodies, sizes and rewards are ours.
    """

    seats = ("red", "blue")

    def __init__(
        self,
        body: Literal["pusher", "ant", "walker"] = "pusher",
        horizon: int = 60,
        starts: Literal["all", "front"] = "all",
        shaping: float = 0.1,
    ) -> None:
        if body not in BODIES or starts not in {"all", "front"}:
            raise ValueError(
                f"body is {body!r} and starts {starts!r}, but they must be one of {', '.join(BODIES)}, and all or front"
            )
        if horizon < 1 or shaping < 0:
            raise ValueError(f"the horizon is {horizon} and shaping {shaping}, but they must be at least 1 and 0")
        self.body: Body = BODIES[body]()
        self.horizon, self.starts, self.shaping = horizon, starts, shaping
        model, _ = _compiled(self.body.xml)
        self._width = int(_mujoco().mj_stateSize(model, _mujoco().mjtState.mjSTATE_FULLPHYSICS))
        self._decision = float(model.opt.timestep) * self.body.substeps  # in seconds
        if self.body.gait is not None:
            self.discount = 0.995  # walks are slow: the same match takes about twice as many decisions
        joints = 2 * self.body.motors + 10 if body == "ant" else 0
        self.players = dict.fromkeys(self.seats, 1)
        self.observation_dim = dict.fromkeys(self.seats, 15 + joints)
        self.n_actions = dict.fromkeys(self.seats, 0)
        self.action_dim = dict.fromkeys(self.seats, self.body.motors if self.body.gait is None else 2)

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """``physics`` of MuJoCo, (batch, ...), ``time`` and ``done``; bodies opposite each other at half the radius."""
        draw = torch.rand(batch, 4, generator=generator, dtype=torch.float64)
        side = 2 * torch.pi * draw[:, 0]
        place = torch.stack([side.cos(), side.sin()], dim=1) * (self.body.ring * (0.4 + 0.2 * draw[:, 1:2]))
        spread = torch.pi if self.starts == "all" else 0.3
        heading = torch.stack([side + torch.pi, side], dim=1) + spread * (2 * draw[:, 2:] - 1)
        physics = torch.zeros(batch, self._width, dtype=torch.float64)
        for seat, sign in enumerate((1, -1)):
            position = physics[:, 1 + seat * self.body.positions :][:, : self.body.positions]
            position[:] = torch.tensor(self.body.rest, dtype=torch.float64)
            position[:, :2] = sign * place
            if self.body.positions == 3:
                position[:, 2] = heading[:, seat]
            else:
                position[:, 3], position[:, 6] = (heading[:, seat] / 2).cos(), (heading[:, seat] / 2).sin()
        time = torch.zeros(batch, dtype=torch.int64)
        return {"physics": physics, "time": time, "done": torch.zeros(batch, dtype=torch.bool)}

    def observe(self, state: State) -> dict[str, Tensor]:
        """Both bodies' motion in the own frame, distances to the edge, time left; an ant's joints and posture."""
        left = 1 - state["time"].double() / self.horizon
        views = [self._pose(state["physics"], seat) for seat in (0, 1)]
        seen = {}
        for seat, name in enumerate(self.seats):
            own, other = views[seat], views[1 - seat]
            axis = torch.stack([own["heading"].cos(), own["heading"].sin()], dim=1)

            def turned(vector: Tensor, axis: Tensor = axis) -> Tensor:
                return torch.stack(
                    [(vector * axis).sum(1), vector[:, 1] * axis[:, 0] - vector[:, 0] * axis[:, 1]], dim=1
                )

            angle = other["heading"] - own["heading"]
            parts = [
                turned(-own["place"]),
                turned(own["motion"]),
                turned(other["place"] - own["place"]),
                turned(other["motion"]),
                torch.stack([angle.cos(), angle.sin(), own["spin"], other["spin"]], dim=1),
                torch.stack([self.body.ring - _distance(one["place"]) for one in (own, other)] + [left], dim=1),
            ]
            if self.body.gait is None:
                parts += [own["posture"], other["posture"][:, :4]]
            seen[name] = torch.cat(parts, dim=1).float()[:, None]
        return seen

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """Drive all motors, or lead the gaits, for one decision; nothing is random."""
        live = ~state["done"]
        physics = state["physics"].clone()
        if live.any():
            commands = [actions[seat][live, 0].double().clamp(-1, 1) for seat in self.seats]
            if self.body.gait is not None:
                seconds = state["time"][live] * self._decision
                commands = [self.body.gait(command, seconds) for command in commands]
            control = torch.cat(commands, dim=1)
            physics[live] = torch.from_numpy(_advance(self.body, physics[live].numpy(), control.numpy()))
        time = state["time"] + live
        before, after = self._lead(state["physics"]), self._lead(physics)
        lost = torch.stack([self._lost(physics, seat) for seat in (0, 1)], dim=1) & live[:, None]
        done = state["done"] | lost.any(1) | (time >= self.horizon)
        reward = lost[:, 1].double() - lost[:, 0].double() + self.shaping * (after - before)
        return {"physics": physics, "time": time, "done": done}, reward.float().masked_fill(~live, 0), done

    def frame(self, state: State, row: int) -> NDArray[np.uint8]:
        """The ring from above; a small disc marks each body's front."""
        image = blank(200, 200)
        scale, reach = 80 / self.body.ring, 0.25 if self.body.positions == 3 else 0.4
        disc(image, (100, 100), 80, (230, 225, 210))
        for seat, colour in enumerate([(200, 60, 50), (50, 90, 200)]):
            pose = self._pose(state["physics"][row : row + 1], seat)
            x, y = pose["place"][0].tolist()
            angle = float(pose["heading"][0])
            disc(image, (100 - scale * y, 100 + scale * x), scale * reach, colour)
            front = (x + reach * np.cos(angle), y + reach * np.sin(angle))
            disc(image, (100 - scale * front[1], 100 + scale * front[0]), scale * reach / 3, (40, 40, 40))
        return image

    def _pose(self, physics: Tensor, seat: int) -> dict[str, Tensor]:
        """Place, heading, motion and spin of one body, and an ant's posture: height, axis, tumbling and joints."""
        body = self.body
        position = physics[:, 1 + seat * body.positions :][:, : body.positions]
        speed = physics[:, 1 + 2 * body.positions + seat * body.speeds :][:, : body.speeds]
        if body.positions == 3:
            heading, spin, posture = position[:, 2], speed[:, 2], position[:, :0]
        else:
            w, x, y, z = position[:, 3:7].unbind(1)
            heading = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
            up = torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=1)
            spin = speed[:, 5]
            posture = torch.cat([position[:, 2:3], up, speed[:, 3:5], position[:, 7:], speed[:, 6:]], dim=1)
        return {"place": position[:, :2], "heading": heading, "motion": speed[:, :2], "spin": spin, "posture": posture}

    def _lead(self, physics: Tensor) -> Tensor:
        """How much farther from the centre blue is than red, in radii of the ring."""
        red, blue = (_distance(self._pose(physics, seat)["place"]) for seat in (0, 1))
        return (blue - red) / self.body.ring

    def _lost(self, physics: Tensor, seat: int) -> Tensor:
        """Whether a body is out of the ring or has fallen."""
        pose = self._pose(physics, seat)
        out = _distance(pose["place"]) > self.body.ring
        return out if self.body.positions == 3 else out | (pose["posture"][:, 0] < LOWEST) | (pose["posture"][:, 3] < 0)


def charging_blue(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A scripted target with a weakness, for pushers: it charges whom it sees ahead, and idles when flanked.

    Within 60 degrees of its heading it steers towards the opponent and thrusts; otherwise it turns slowly at random.

    Args:
        observation: (batch, 1, 15).
        mask: Not used.
        generator: Of the noise in its motors, of standard deviation 0.2.

    Returns:
        Actions (batch, 1, 2): thrust and turn in [-1, 1].
    """
    ahead, aside = observation[..., 4], observation[..., 5]
    bearing = torch.atan2(aside, ahead)
    noise = 0.2 * torch.randn(*bearing.shape, 2, generator=generator)
    charge = torch.stack([torch.ones_like(bearing), (3 * bearing).clamp(-1, 1)], dim=-1)
    chosen = torch.where((bearing.abs() < torch.pi / 3)[..., None], charge, torch.zeros_like(charge))
    return (chosen + noise).clamp(-1, 1)


def _distance(place: Tensor) -> Tensor:
    """From the centre, (batch,)."""
    return place.square().sum(1).sqrt()


@lru_cache(maxsize=8)
def _compiled(xml: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The model and a scratch state; games hold neither, so that they can be pickled."""
    library = _mujoco()
    model = library.MjModel.from_xml_string(xml)
    return model, library.MjData(model)


def _advance(body: Body, physics: NDArray[np.float64], control: NDArray[np.float64]) -> NDArray[np.float64]:
    """Physics states (n, ...) after one decision, each row alone: no solver state is carried from one to the next."""
    model, data = _compiled(body.xml)
    states, _ = import_module("mujoco.rollout").rollout(model, data, physics, control[:, None], nstep=body.substeps)
    return np.ascontiguousarray(states[:, -1])


def _mujoco() -> ModuleType:
    """MuJoCo's module, or a sentence that says how to get it."""
    try:
        return import_module("mujoco")
    except ImportError as error:
        raise ImportError("sumo needs MuJoCo, which is not installed: pip install 'gapbridge[games]'") from error
