"""Predators and prey of the particle world (simple_tag), many episodes at once in torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.drawing import blank, disc
from rl.envs.markov_game import Actions, BatchedGame, State

STEP, DAMPING, CONTACT_FORCE, CONTACT_MARGIN = 0.1, 0.25, 100.0, 1e-3
PREDATOR_SIZE, PREY_SIZE, OBSTACLE_SIZE = 0.075, 0.05, 0.2
MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])


class PredatorPrey(BatchedGame):
    """A team of slow predators chases faster prey around obstacles on a plane.

    Moves, contacts, observations and rewards are those of ``mpe2.simple_tag_v3`` with its defaults, with which the
    tests compare it step by step. A player pushes itself left, right, down or up, or not at all. Every hit of a
    predator on a prey is worth 10 to every predator and -10 to that prey, which also pays for leaving the screen; a
    seat's reward is what one predator, or all prey together, are paid. The game is not exactly zero-sum; adversaries
    here earn the negative of our reward all the same.

    Args:
        ours: Which side we are, ``predators`` or ``prey``.
        predators: Players of that side, at least 1.
        prey: Likewise.
        obstacles: Fixed discs that nobody passes, at least 0.
        horizon: Steps of every episode.
        starts: ``all`` starts prey anywhere, ``right`` in the right half of the screen, for data that cover only that.
        dtype: Of the simulation; observations are float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> game = PredatorPrey()
        >>> game.seats, dict(game.observation_dim), dict(game.players)
        (('predators', 'prey'), {'predators': 16, 'prey': 14}, {'predators': 3, 'prey': 1})

    Reference:
        Lowe et al. (2017), "Multi-agent actor-critic for mixed cooperative-competitive environments", arXiv 1706.02275.
    """

    def __init__(
        self,
        ours: Literal["predators", "prey"] = "predators",
        predators: int = 3,
        prey: int = 1,
        obstacles: int = 2,
        horizon: int = 25,
        starts: Literal["all", "right"] = "all",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if ours not in {"predators", "prey"} or starts not in {"all", "right"}:
            raise ValueError(
                f"ours is {ours!r} and starts {starts!r}, but they must be predators or prey, all or right"
            )
        if predators < 1 or prey < 1 or obstacles < 0 or horizon < 1:
            raise ValueError(
                f"there are {predators} predators, {prey} prey, {obstacles} obstacles and {horizon} steps, but there "
                "must be at least one of each, obstacles apart"
            )
        self.seats = (ours, "prey" if ours == "predators" else "predators")
        self.players = {"predators": predators, "prey": prey}
        agents = predators + prey
        shared = 4 + 2 * obstacles + 2 * (agents - 1)
        self.observation_dim = {"predators": shared + 2 * prey, "prey": shared + 2 * (prey - 1)}
        self.n_actions = dict.fromkeys(self.players, 5)
        self.action_dim = dict.fromkeys(self.players, 0)
        self.horizon, self.obstacles, self.starts, self.dtype = horizon, obstacles, starts, dtype
        size = [PREDATOR_SIZE] * predators + [PREY_SIZE] * prey + [OBSTACLE_SIZE] * obstacles
        self._size = torch.tensor(size, dtype=dtype)
        self._reach = self._size[:agents, None] + self._size
        self._itself = torch.eye(agents, len(size), dtype=dtype)
        self._push = torch.tensor([3.0] * predators + [4.0] * prey, dtype=dtype)[:, None]
        self._limit = torch.tensor([1.0] * predators + [1.3] * prey, dtype=dtype)
        everyone = torch.arange(agents)
        self._others = torch.stack([everyone[everyone != one] for one in everyone])

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """``position`` (batch, agents + obstacles, 2), predators first, ``velocity`` (batch, agents, 2), and more."""
        agents = len(self._limit)
        place = 2 * torch.rand(batch, len(self._size), 2, generator=generator, dtype=self.dtype) - 1
        place[:, agents:] *= 0.9
        if self.starts == "right":
            prey = place[:, self.players["predators"] : agents]
            prey[..., 0] = prey[..., 0].abs()
        return {
            "position": place,
            "velocity": torch.zeros(batch, agents, 2, dtype=self.dtype),
            "time": torch.zeros(batch, dtype=torch.int64),
            "done": torch.zeros(batch, dtype=torch.bool),
        }

    def observe(self, state: State) -> dict[str, Tensor]:
        """Own velocity and position, obstacles and others relative to it, velocities of the (other) prey."""
        position, velocity = state["position"], state["velocity"]
        agents, predators = len(self._limit), self.players["predators"]
        relative = position[:, None] - position[:, :agents, None]  # (batch, who sees, what, 2)
        obstacles = relative[:, :, agents:].flatten(2)
        others = relative[:, torch.arange(agents)[:, None], self._others].flatten(2)
        common = torch.cat([velocity, position[:, :agents], obstacles, others], dim=2).float()
        prey = velocity[:, predators:].float()
        to_predators = prey.flatten(1)[:, None].expand(-1, predators, -1)
        to_prey = prey[:, self._others[: self.players["prey"], : self.players["prey"] - 1]].flatten(2)
        return {
            "predators": torch.cat([common[:, :predators], to_predators], dim=2),
            "prey": torch.cat([common[:, predators:], to_prey], dim=2),
        }

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """Move by the old velocities, then change these by pushes and contacts; nothing is random."""
        position, velocity, done = state["position"], state["velocity"], state["done"]
        agents = len(self._limit)
        moves = torch.cat([actions["predators"], actions["prey"]], dim=1)
        force = MOVES.to(self.dtype)[moves] * self._push + self._contacts(position)
        moved = position.clone()
        moved[:, :agents] += velocity * STEP
        velocity = velocity * (1 - DAMPING) + force * STEP
        speed = velocity.square().sum(2).sqrt()
        velocity = velocity * (self._limit / speed.clamp(min=1e-12)).clamp(max=1)[..., None]
        time = state["time"] + ~done
        following = {
            "position": torch.where(done[:, None, None], position, moved),
            "velocity": torch.where(done[:, None, None], state["velocity"], velocity),
            "time": time,
            "done": time >= self.horizon,
        }
        reward = self._reward(following["position"]).float().masked_fill(done, 0)
        return following, reward, following["done"]

    def frame(self, state: State, row: int) -> NDArray[np.uint8]:
        """The screen, a little beyond its edges: obstacles grey, predators red, prey green."""
        image, scale = blank(210, 210), 80
        predators, agents = self.players["predators"], len(self._limit)
        colours = (
            [(200, 60, 50)] * predators + [(60, 150, 70)] * (agents - predators) + [(170, 170, 170)] * self.obstacles
        )
        drawn = zip(state["position"][row].tolist(), self._size.tolist(), colours, strict=True)
        for (x, y), size, colour in reversed(list(drawn)):
            disc(image, (105 - scale * y, 105 + scale * x), scale * size, colour)
        return image

    def _contacts(self, position: Tensor) -> Tensor:
        """Force of every contact on every agent, (batch, agents, 2)."""
        apart = position[:, : len(self._limit), None] - position[:, None]
        distance = apart.square().sum(3).sqrt() + self._itself
        depth = torch.logaddexp(torch.zeros((), dtype=self.dtype), (self._reach - distance) / CONTACT_MARGIN)
        strength = CONTACT_FORCE * CONTACT_MARGIN * depth / distance * (1 - self._itself)
        return (strength[..., None] * apart).sum(2)

    def _reward(self, position: Tensor) -> Tensor:
        """What our side is paid at these positions, (batch,)."""
        predators, agents = self.players["predators"], len(self._limit)
        hunted = position[:, predators:agents]
        distance = (position[:, :predators, None] - hunted[:, None]).square().sum(3).sqrt()
        hits = (distance < self._reach[:predators, predators:agents]).sum((1, 2))
        if self.seats[0] == "predators":
            return 10.0 * hits
        out = hunted.abs()
        beyond = torch.where(out < 1, (10 * (out - 0.9)).clamp(min=0), (2 * out - 2).exp().clamp(max=10))
        return -10.0 * hits - beyond.sum((1, 2))


def fleeing_prey(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A scripted target with a weakness: prey that flees in the right half of the screen and dawdles in the left.

    In the right half it pushes away from the nearest predator along the axis on which that is farther from the edge; in
    the left half it moves at random. For one prey, three predators and two obstacles.

    Args:
        observation: (batch, 1, 14).
        mask: Not used.
        generator: Of the random moves.

    Returns:
        Actions (batch, 1).
    """
    place = observation[:, 0, 2:4]
    threats = observation[:, 0, 8:14].reshape(-1, 3, 2)
    nearest = threats.square().sum(2).argmin(1)
    away = -threats[torch.arange(len(place)), nearest]
    room = 1 - place * away.sign()
    axis = (away.abs() * room).argmax(1)
    forward = away[torch.arange(len(place)), axis] > 0
    flee = 1 + 2 * axis + forward
    random = torch.randint(5, (len(place),), generator=generator)
    return torch.where(place[:, 0] > 0, flee, random)[:, None]


def chasing_predators(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Scripted predators that push towards the prey along the longer axis, at random one time in ten.

    For one prey, three predators and two obstacles.

    Args:
        observation: (batch, 3, 16).
        mask: Not used.
        generator: Of the random moves.

    Returns:
        Actions (batch, 3).
    """
    prey = observation[:, :, 12:14]
    axis = prey.abs().argmax(2)
    chase = 1 + 2 * axis + (prey.gather(2, axis[..., None]).squeeze(2) > 0)
    random = torch.rand(axis.shape, generator=generator) < 0.1
    return torch.where(random, torch.randint(5, axis.shape, generator=generator), chase)


def guarding_predators(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A scripted target with a weakness: predators that chase prey in the left half of the screen, dawdle in the right.

    Takes and gives what :func:`chasing_predators` does.
    """
    prey = observation[:, :, 2] + observation[:, :, 12]
    random = torch.randint(5, prey.shape, generator=generator)
    return torch.where(prey < 0, chasing_predators(observation, mask, generator), random)


def roaming_prey(observation: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Scripted prey that moves at random, but turns back from the middle and from the right edge of the screen.

    Takes and gives what :func:`fleeing_prey` does.
    """
    place = observation[:, 0, 2:4]
    random = torch.randint(5, (len(place),), generator=generator)
    vertical = torch.where(place[:, 1].abs() > 0.7, torch.where(place[:, 1] > 0, 3, 4), random)
    sideways = torch.where(place[:, 0] < 0.4, 2, torch.where(place[:, 0] > 0.8, 1, vertical))
    return sideways[:, None]
