"""Constrained Self-Play: adapt to a target known only through data, for the worst target that agrees with the data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.csp.baselines import baseline, imitate
    from rl.csp.cloning import clone
    from rl.csp.data import RolloutDataModule
    from rl.csp.dataset import TargetData, check_dataset, load_data, record_target, save_data
    from rl.csp.module import CSPModule
    from rl.csp.pairs import Pairs
    from rl.csp.policies import ScriptedPolicy, SeatPolicy
    from rl.csp.rollout import pairs_of, play
    from rl.csp.worst_case import WorstCase, estimate_worst_case

# Resolved on first use: importing the package must not cost what torch and lightning cost.
_WHERE = {
    "CSPModule": "module",
    "Pairs": "pairs",
    "RolloutDataModule": "data",
    "ScriptedPolicy": "policies",
    "SeatPolicy": "policies",
    "TargetData": "dataset",
    "WorstCase": "worst_case",
    "baseline": "baselines",
    "check_dataset": "dataset",
    "clone": "cloning",
    "estimate_worst_case": "worst_case",
    "imitate": "baselines",
    "load_data": "dataset",
    "pairs_of": "rollout",
    "play": "rollout",
    "record_target": "dataset",
    "save_data": "dataset",
}
__all__ = [
    "CSPModule",
    "Pairs",
    "RolloutDataModule",
    "ScriptedPolicy",
    "SeatPolicy",
    "TargetData",
    "WorstCase",
    "baseline",
    "check_dataset",
    "clone",
    "estimate_worst_case",
    "imitate",
    "load_data",
    "pairs_of",
    "play",
    "record_target",
    "save_data",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rl.csp' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"rl.csp.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
