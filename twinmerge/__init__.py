"""Twin-Merging: a shared expert, SVD-compressed exclusive experts and a router of every input to its own mixture."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinmerge.artefact import load, save, verify
    from twinmerge.dense import check_routing, densify
    from twinmerge.errors import CheckpointError
    from twinmerge.merging import merge, merge_lora, shared_expert
    from twinmerge.modeling_twin import Head, Router, attach
    from twinmerge.module import FinetuneModule
    from twinmerge.routable import preflight
    from twinmerge.router import FeatureDataModule, RouterModule, fit_temperature, knn_router

# Resolved on first use: importing the package must not cost what torch and transformers cost.
_WHERE = {
    "CheckpointError": "errors",
    "FeatureDataModule": "router",
    "FinetuneModule": "module",
    "Head": "modeling_twin",
    "Router": "modeling_twin",
    "RouterModule": "router",
    "attach": "modeling_twin",
    "check_routing": "dense",
    "densify": "dense",
    "fit_temperature": "router",
    "knn_router": "router",
    "load": "artefact",
    "merge": "merging",
    "merge_lora": "merging",
    "preflight": "routable",
    "save": "artefact",
    "shared_expert": "merging",
    "verify": "artefact",
}
__all__ = [
    "CheckpointError",
    "FeatureDataModule",
    "FinetuneModule",
    "Head",
    "Router",
    "RouterModule",
    "attach",
    "check_routing",
    "densify",
    "fit_temperature",
    "knn_router",
    "load",
    "merge",
    "merge_lora",
    "preflight",
    "save",
    "shared_expert",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'twinmerge' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"twinmerge.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
