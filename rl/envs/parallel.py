"""The boundary to PettingZoo: parallel environments as batched games, and batched games as parallel environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.envs.check_batched import BATCH
from rl.envs.markov_game import Actions, BatchedGame, State
from rl.envs.native_actions import action_size, native_action
from rl.envs.petting_zoo import (
    as_parallel,
    flat,
    imported,
    in_turn,
    is_masked,
    look_space,
    require_parallel,
    require_seats,
    require_seen_masks,
    width_of,
)

try:  # only to be an instance of PettingZoo's class where it is installed
    from pettingzoo import ParallelEnv
except ImportError:
    ParallelEnv = object

_SEEDS = 2**31


class ParallelGame(BatchedGame):
    """Copies of a PettingZoo environment, stepped one after the other, as a batched game.

    The environment is a parallel one, or one that takes turns (``env``, as of PettingZoo's classic games), which is
    converted by ``aec_to_parallel`` or ``turn_based_aec_to_parallel``. Observations are flattened by Gymnasium's rules,
    discrete ones to one-hot vectors, and may be dictionaries with ``observation`` and ``action_mask``. Actions are
    discrete, of which several at once (MultiDiscrete, MultiBinary, and Dict and Tuple of any depth) are numbered
    through, or boxes, to which [-1, 1] is scaled. Our reward is the mean over our agents. An agent that has left its
    episode sees zeros; it and one that waits for its turn are not active. Environments keep their own state, so only
    the state that was returned last can be stepped on.

    Args:
        environment: A function that makes the environment, or its import path, as ``mpe2.simple_tag_v3.parallel_env``.
        ours: Names of our agents.
        target: Names of the target's agents. Every agent belongs to one side, and agents of a side have the same
            spaces.
        horizon: Steps after which an episode is cut, if the environment has not ended it.
        arguments: Keyword arguments of the function.
        discount: In (0, 1].
        at_once: How many copies are held at most, at least 5; more episodes are played one batch after the other. None
            holds one for every episode of a batch, hundreds in an evaluation: costly where each runs an engine.

    Raises:
        ValueError: If there is no such function, what it makes is no environment of PettingZoo, an agent does not exist
            or is on no side, or spaces of a side differ or are of another kind, or ``at_once`` is too small. See also
            :func:`rl.envs.check_parallel.check_parallel_env`.
    """

    seats = ("ours", "target")

    def __init__(
        self,
        environment: str | Callable[..., object],
        ours: Sequence[str],
        target: Sequence[str],
        horizon: int,
        arguments: Mapping[str, object] | None = None,
        discount: float = 0.99,
        at_once: int | None = None,
    ) -> None:
        if at_once is not None and at_once < BATCH:
            raise ValueError(
                f"at_once is {at_once}, but checks begin {BATCH} episodes together; give at least that, or leave it out"
            )
        self._make = environment if callable(environment) else imported(environment)
        self._arguments = dict(arguments or {})
        self.agents = dict(zip(self.seats, (list(ours), list(target)), strict=True))
        self.horizon, self.discount, self.at_once = horizon, discount, at_once
        self._environments = [self.new_environment()]
        self._run = self._tick = 0
        probe = self._environments[0]
        require_parallel(probe)
        require_seats(probe, self.agents)
        self.players = {seat: len(names) for seat, names in self.agents.items()}
        self.observation_dim, self.n_actions, self.action_dim = {}, {}, {}
        for seat, names in self.agents.items():
            space = probe.action_space(names[0])
            for name in names[1:]:
                if probe.action_space(name) != space or width_of(probe, name) != width_of(probe, names[0]):
                    raise ValueError(f"{name} and {names[0]} are both in seat '{seat}', but their spaces differ")
            self.observation_dim[seat] = width_of(probe, names[0])
            self.n_actions[seat], self.action_dim[seat] = action_size(space, names[0])

    def new_environment(self) -> ParallelEnv:
        """A copy of the environment in which all act at once.

        Raises:
            ValueError: If it cannot be made with its arguments.
        """
        try:
            made = self._make(**self._arguments)
        except TypeError as error:
            raise ValueError(f"the environment cannot be made with arguments {self._arguments} ({error})") from error
        return as_parallel(made)

    def reset(self, batch: int, generator: torch.Generator) -> State:
        """Reset as many copies, each with a seed of its own from the generator."""
        if batch > (self.at_once or batch):
            raise ValueError(
                f"{batch} episodes are to begin, but at_once holds {self.at_once} copies; give a higher at_once, or "
                "begin fewer at a time"
            )
        while len(self._environments) < batch:
            self._environments.append(self.new_environment())
        seeds = torch.randint(_SEEDS, (batch,), generator=generator).tolist()
        seen = []
        for env, seed in zip(self._environments, seeds, strict=False):
            looks, infos = env.reset(seed=seed)
            require_seen_masks(env, infos)
            seen.append(looks)
        self._run, self._tick = self._run + 1, 0
        return self._state(seen, torch.zeros(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64))

    def observe(self, state: State) -> dict[str, Tensor]:
        """The observations that the environments gave last."""
        return {seat: state[f"observation_{seat}"] for seat in self.seats}

    def action_mask(self, state: State) -> dict[str, Tensor] | None:
        """The masks of those sides whose environment gives them."""
        masks = {seat: state[f"mask_{seat}"] for seat in self.seats if f"mask_{seat}" in state}
        return masks or None

    def active(self, state: State) -> dict[str, Tensor]:
        """Which agents are in their episode and do not wait for their turn."""
        return {seat: state[f"active_{seat}"] for seat in self.seats}

    def agent_names(self, seat: str) -> list[str]:
        """Names of the environment's agents on a side."""
        return self.agents[seat]

    def impossible(self, seat: str, observations: Tensor) -> Tensor:
        """Observations outside the bounds of the seat's space."""
        space = gymnasium.spaces.flatten_space(look_space(self._environments[0], self.agents[seat][0]))
        if not isinstance(space, gymnasium.spaces.Box):
            return super().impossible(seat, observations)
        low, high = (torch.from_numpy(x.astype(np.float32).reshape(-1)) for x in (space.low, space.high))
        return ((observations < low) | (observations > high)).any(1)

    def step(self, state: State, actions: Actions, generator: torch.Generator) -> tuple[State, Tensor, Tensor]:
        """Step every copy whose episode is not done."""
        if (stamp := state["stamp"][0].tolist()) != [self._run, self._tick]:
            raise ValueError(
                f"this state is number {stamp}, but the environments are at {[self._run, self._tick]}; a PettingZoo "
                "environment can only go on from its last state, so play one batch at a time"
            )
        self._tick += 1
        done, time = state["done"].clone(), state["time"].clone()
        seen: list[Mapping[str, object]] = []
        reward = torch.zeros(len(done))
        for row, env in enumerate(self._environments[: len(done)]):
            if done[row]:
                seen.append({})
                continue
            moves = {
                name: native_action(env.action_space(name), actions[seat][row, place].numpy()[()])
                for seat, names in self.agents.items()
                for place, name in enumerate(names)
                if name in env.agents
            }
            observations, rewards, _, _, _ = env.step(moves)
            seen.append(observations)
            if unpaid := [name for name in self.agents["ours"] if name in moves and name not in rewards]:
                raise ValueError(f"the environment pays {unpaid[0]} nothing for a step that it took; return its reward")
            reward[row] = sum(float(rewards.get(name, 0)) for name in self.agents["ours"]) / self.players["ours"]
            time[row] += 1
            done[row] = not env.agents or time[row] >= self.horizon
        following = self._state(seen, done, time)
        for name in following:
            if name.startswith("observation_"):  # an episode that is done keeps its last look
                following[name][state["done"]] = state[name][state["done"]]
        return following, reward, done

    def frame(self, state: State, row: int) -> NDArray[np.uint8]:
        """What the environment renders; it must have been made with ``render_mode='rgb_array'``."""
        render = getattr(self._environments[row], "render", None)
        if render is None:
            raise NotImplementedError(f"{type(self._environments[row]).__name__} has no render, so it has no replay")
        try:
            picture = render()
        except NotImplementedError:  # as of PettingZoo's own classes, without a word
            picture = None
        if picture is None:
            raise NotImplementedError("the environment rendered nothing; give arguments: {render_mode: rgb_array}")
        return np.asarray(picture, dtype=np.uint8)

    def _state(self, seen: Sequence[Mapping[str, object]], done: Tensor, time: Tensor) -> State:
        """Observations and masks of all agents of all copies as tensors."""
        state: State = {"done": done, "time": time, "stamp": torch.tensor([self._run, self._tick]).expand(len(done), 2)}
        for seat, names in self.agents.items():
            looks = np.zeros((len(seen), len(names), self.observation_dim[seat]), dtype=np.float32)
            masks = np.ones((len(seen), len(names), max(self.n_actions[seat], 1)), dtype=bool)
            active = np.zeros((len(seen), len(names)), dtype=bool)
            spaces = [look_space(self._environments[0], name) for name in names]
            masked = is_masked(self._environments[0], names[0])
            for row, observations in enumerate(seen):
                for place, name in enumerate(names):
                    if name not in observations:
                        continue
                    look = observations[name]
                    if masked and isinstance(look, Mapping):
                        masks[row, place] = np.asarray(look["action_mask"], dtype=bool)
                        look = look["observation"]
                    looks[row, place] = flat(spaces[place], look)
                    active[row, place] = in_turn(self._environments[row], name) and masks[row, place].any()
            masks[..., 0] |= ~masks.any(-1)  # who waits has no legal action, but a law needs one
            state[f"observation_{seat}"] = torch.from_numpy(looks)
            state[f"active_{seat}"] = torch.from_numpy(active)
            if masked:
                state[f"mask_{seat}"] = torch.from_numpy(masks)
        return state


class GameAsParallelEnv(ParallelEnv):  # type: ignore[misc]
    """One episode of a batched game as a PettingZoo parallel environment.

    Agents are named as the game names them, ``<seat>_<number>`` unless it says otherwise. Ours are paid our reward, the
    target's its negative. Where a game has action masks, observations are dictionaries with ``observation`` and
    ``action_mask``, as PettingZoo's are.

    Args:
        game: The game.
    """

    render_mode = "rgb_array"

    def __init__(self, game: BatchedGame) -> None:
        self.game = game
        self.metadata = {"name": type(game).__name__, "render_modes": ["rgb_array"]}
        self._place = {name: (seat, i) for seat in game.seats for i, name in enumerate(game.agent_names(seat))}
        self.possible_agents = list(self._place)
        self.agents: list[str] = []
        self._generator = torch.Generator()
        masks = game.action_mask(game.reset(1, self._generator)) or {}
        self._observation_spaces = {
            name: self._observation_space(seat, masks) for name, (seat, _) in self._place.items()
        }
        self._action_spaces: dict[str, gymnasium.Space[object]] = {
            name: gymnasium.spaces.Discrete(game.n_actions[seat])
            if game.n_actions[seat]
            else gymnasium.spaces.Box(-1, 1, (game.action_dim[seat],), np.float32)
            for name, (seat, _) in self._place.items()
        }

    def observation_space(self, agent: str) -> gymnasium.Space[object]:
        """Of one agent."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[object]:
        """Of one agent."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Begin an episode; without a seed it goes on with the chance of the last one."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self._state = self.game.reset(1, self._generator)
        self.agents = list(self.possible_agents)
        return self._look(), {name: {} for name in self.agents}

    def step(
        self, actions: Mapping[str, object]
    ) -> tuple[dict[str, object], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, object]]]:
        """Carry out one action of every agent."""
        joint = {}
        for seat in self.game.seats:
            chosen = [np.asarray(actions[name]) for name, (side, _) in self._place.items() if side == seat]
            joint[seat] = torch.from_numpy(np.stack(chosen))[None]
            joint[seat] = joint[seat].long() if self.game.n_actions[seat] else joint[seat].float()
        self._state, reward, done = self.game.step(self._state, joint, self._generator)
        looks, ended = self._look(), bool(done)
        paid = {
            name: float(reward) if seat == self.game.seats[0] else -float(reward)
            for name, (seat, _) in self._place.items()
        }
        self.agents = [] if ended else self.agents
        everyone = self.possible_agents
        return looks, paid, dict.fromkeys(everyone, ended), dict.fromkeys(everyone, False), {n: {} for n in everyone}

    def decides(self, agent: str) -> bool:
        """Whether the next step asks the agent; else it has left or waits, and its action is not carried out."""
        seat, place = self._place[agent]
        active = self.game.active(self._state) or {}
        return seat not in active or bool(active[seat][0, place])

    def render(self) -> NDArray[np.uint8]:
        """A picture, (height, width, 3)."""
        return self.game.frame(self._state, 0)

    def close(self) -> None:
        """Nothing is held."""

    def _observation_space(self, seat: str, masks: Mapping[str, Tensor]) -> gymnasium.Space[object]:
        look = gymnasium.spaces.Box(-np.inf, np.inf, (self.game.observation_dim[seat],), np.float32)
        if seat not in masks:
            return look
        return gymnasium.spaces.Dict(
            {"observation": look, "action_mask": gymnasium.spaces.MultiBinary(self.game.n_actions[seat])}
        )

    def _look(self) -> dict[str, object]:
        """What every agent sees."""
        seen, masks = self.game.observe(self._state), self.game.action_mask(self._state) or {}
        looks: dict[str, object] = {name: seen[seat][0, i].numpy() for name, (seat, i) in self._place.items()}
        for name, (seat, i) in self._place.items():
            if seat in masks:
                looks[name] = {"observation": looks[name], "action_mask": masks[seat][0, i].numpy().astype(np.int8)}
        return looks
