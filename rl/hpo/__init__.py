"""Hybrid Policy Optimization: unbiased mixed gradients for actions that are a mode and, with it, real numbers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.hpo.acting import Action
    from rl.hpo.agent import Agent
    from rl.hpo.best_known import best_known
    from rl.hpo.data import SeedDataModule
    from rl.hpo.module import HPOModule
    from rl.hpo.policies import HybridPolicy
    from rl.hpo.policy_file import export_policy, load_policy, save_policy
    from rl.hpo.surrogate import advantages_of, clipped_surrogate, mixed_surrogate

# Resolved on first use: importing the package must not cost what torch and lightning cost.
_WHERE = {
    "Action": "acting",
    "Agent": "agent",
    "HPOModule": "module",
    "HybridPolicy": "policies",
    "SeedDataModule": "data",
    "advantages_of": "surrogate",
    "best_known": "best_known",
    "clipped_surrogate": "surrogate",
    "export_policy": "policy_file",
    "load_policy": "policy_file",
    "mixed_surrogate": "surrogate",
    "save_policy": "policy_file",
}
__all__ = [
    "Action",
    "Agent",
    "HPOModule",
    "HybridPolicy",
    "SeedDataModule",
    "advantages_of",
    "best_known",
    "clipped_surrogate",
    "export_policy",
    "load_policy",
    "mixed_surrogate",
    "save_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rl.hpo' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"rl.hpo.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
