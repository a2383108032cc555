"""What an environment of PettingZoo is asked before it is played: its kind, its sides, its spaces, whose turn it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rl.loading import find, made_by

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv

FACTORIES = ("env", "raw_env", "parallel_env")  # what PettingZoo's modules call that which makes an environment


def require_parallel(environment: object) -> None:
    """Refuse what is no PettingZoo parallel environment.

    Raises:
        ValueError: In one sentence that says what it is instead.
    """
    if all(
        hasattr(environment, name) for name in ("possible_agents", "reset", "step", "observation_space", "action_space")
    ):
        if not hasattr(environment, "agent_iter"):
            return
        converter = "aec_to_parallel" if acts_at_once(environment) else "turn_based_aec_to_parallel"
        advice = f"it takes turns; convert it with pettingzoo.utils.{converter}"
    elif isinstance(environment, gymnasium.Env):
        advice = "it is a Gymnasium environment for one agent"
    else:
        advice = "it needs possible_agents, reset, step, observation_space(agent) and action_space(agent)"
    raise ValueError(f"{type(environment).__name__} is no PettingZoo ParallelEnv: {advice}")


def as_parallel(environment: object) -> ParallelEnv:
    """A PettingZoo environment in which all agents act at once: itself, or what its converter makes of it.

    Args:
        environment: A parallel environment, or one that takes turns.

    Raises:
        ValueError: If PettingZoo is not installed and the environment takes turns.
    """
    if not hasattr(environment, "agent_iter"):
        return environment
    try:
        from pettingzoo.utils import conversions
    except ImportError as error:
        raise ValueError(
            f"{type(environment).__name__} takes turns, and converting it needs PettingZoo, which is not installed: "
            "pip install 'gapbridge[games]'"
        ) from error
    if acts_at_once(environment):
        return conversions.aec_to_parallel(environment)
    return conversions.turn_based_aec_to_parallel(environment)


def acts_at_once(environment: object) -> bool:
    """Whether the turns of an environment are only a way to collect the actions of one moment."""
    return bool(getattr(environment, "metadata", {}).get("is_parallelizable", False))


def in_turn(environment: ParallelEnv, name: str) -> bool:
    """Whether an agent is in its episode and, where turns are taken, has the turn."""
    if name not in environment.agents:
        return False
    if hasattr(environment, "decides"):
        return bool(environment.decides(name))
    turns = getattr(environment, "aec_env", None)
    return turns is None or acts_at_once(turns) or bool(turns.agent_selection == name)


def require_seats(environment: ParallelEnv, agents: Mapping[str, Sequence[str]]) -> None:
    """Refuse sides that are empty, overlap, leave an agent out or name one that does not exist.

    Raises:
        ValueError: In one sentence.
    """
    known, named = list(environment.possible_agents), [name for names in agents.values() for name in names]
    for seat, names in agents.items():
        if isinstance(names, str) or not names:
            raise ValueError(f"seat '{seat}' is {names!r}, but it must be a list of at least one of {', '.join(known)}")
        for name in names:
            if name not in known:
                raise ValueError(
                    f"seat '{seat}' has an agent '{name}', which does not exist; there are {', '.join(known)}"
                )
    if missing := [name for name in known if name not in named]:
        raise ValueError(f"{', '.join(missing)} belongs to no seat; put every agent on our side or on the target's")
    if len(set(named)) < len(named):
        raise ValueError(f"an agent is on both sides or named twice in {dict(agents)}; every agent has one place")


def imported(path: str) -> Callable[..., object]:
    """What makes an environment, by its import path; it is checked, not called.

    PettingZoo's modules call theirs ``env``, ``raw_env`` or ``parallel_env``; besides, there may be the class of an
    environment, or a function that is annotated to return one.

    Args:
        path: As in ``mpe2.simple_tag_v3.parallel_env``.

    Raises:
        ValueError: If there is nothing of the kind.
    """
    found = find("environment", path)
    if callable(found) and (path.rpartition(".")[2] in FACTORIES or _is_environment(made_by(found))):
        return found
    raise ValueError(
        f"environment '{path}' is neither called {', '.join(FACTORIES)}, as PettingZoo's are, nor the class of an "
        "environment or a function annotated to return one; pass the function itself to ParallelGame, or annotate it"
    )


def _is_environment(made: type | None) -> bool:
    """Whether a class has what an environment of PettingZoo has."""
    return made is not None and all(
        callable(getattr(made, name, None)) for name in ("reset", "step", "observation_space", "action_space")
    )


def is_masked(environment: ParallelEnv, name: str) -> bool:
    """Whether an agent is told which actions are legal.

    Raises:
        ValueError: If it is told in another way than PettingZoo's, in which nobody would read it.
    """
    space = environment.observation_space(name)
    parts = set(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else set[str]()
    if "action_mask" in parts and parts != {"observation", "action_mask"}:
        raise ValueError(
            f"{name} observes {', '.join(sorted(parts))}; beside action_mask there must be observation alone, so put "
            "everything else that it sees into observation"
        )
    return "action_mask" in parts


def require_seen_masks(environment: ParallelEnv, infos: Mapping[str, object]) -> None:
    """Refuse masks that stand beside the observations, where nobody would read them.

    Args:
        environment: The environment.
        infos: By agent, as its reset gave them.

    Raises:
        ValueError: In one sentence.
    """
    for name, info in infos.items():
        if isinstance(info, Mapping) and "action_mask" in info and not is_masked(environment, name):
            raise ValueError(
                f"{name} is told its legal actions in infos; give them in its observation, a Dict with observation and "
                "action_mask, so that policies see them"
            )


def look_space(environment: ParallelEnv, name: str) -> gymnasium.Space[object]:
    """What an agent observes, without its mask."""
    space: gymnasium.Space[object] = environment.observation_space(name)
    return space["observation"] if is_masked(environment, name) else space


def flat(space: gymnasium.Space[object], look: object) -> NDArray[np.float32]:
    """A flattened observation.

    Raises:
        ValueError: If it has another number of entries than its space.
    """
    flat = look if isinstance(space, gymnasium.spaces.Box) else gymnasium.spaces.flatten(space, look)
    numbers = np.asarray(flat, dtype=np.float32).reshape(-1)
    if isinstance(space, gymnasium.spaces.Box) and numbers.size != math.prod(space.shape):
        raise ValueError(f"an observation has shape {np.shape(numbers)}, but its space has shape {space.shape}")
    return numbers


def width_of(environment: object, name: str) -> int:
    """Length of an agent's flattened observation."""
    space = look_space(environment, name)
    if not space.is_np_flattenable:
        raise ValueError(
            f"{name} observes {space}, which has no fixed length, so it cannot be flattened; wrap the environment"
        )
    return int(gymnasium.spaces.flatdim(space))
