"""Batched differentiable simulators with hybrid actions, their protocol and its checker, and adapters to Gymnasium."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.envs.hybrid import HybridSimulator, Noise, State, chosen_action, play, reported_cost

# Resolved on first use: importing the package must not cost what torch costs.
_WHERE = {
    "HybridSimulator": "hybrid",
    "Noise": "hybrid",
    "State": "hybrid",
    "chosen_action": "hybrid",
    "play": "hybrid",
    "reported_cost": "hybrid",
}
__all__ = ["HybridSimulator", "Noise", "State", "chosen_action", "play", "reported_cost"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rl.envs' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"rl.envs.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
