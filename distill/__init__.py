"""Distillation: vanilla KD under the stronger recipe, its rivals, and students of vision and language."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.cached_data import CachedImageData
    from distill.data import ImageData
    from distill.errors import DistillError
    from distill.glyphs import Glyphs
    from distill.hints import CorrelationHint, CRDHint, CurriculumTemperature, FitNetHint, ReviewHint
    from distill.language import LanguageLoss, LanguageNetwork
    from distill.losses import DIST, DKD, JSD, KD, RKD, BinaryKD, DistillLoss, HardLoss, MultiTemperature
    from distill.module import DistillModule
    from distill.networks import Frozen, ImageNetwork, TextNetwork
    from distill.regimes import REGIMES, Regime, method, regime
    from distill.terms import Outputs
    from distill.tokens import TokenData
    from distill.views import Augmentation, ViewDataset

# Resolved on first use: importing the package must not cost what torch and timm cost.
_WHERE = {
    "Augmentation": "views",
    "BinaryKD": "losses",
    "CRDHint": "hints",
    "CachedImageData": "cached_data",
    "CorrelationHint": "hints",
    "CurriculumTemperature": "hints",
    "DIST": "losses",
    "DKD": "losses",
    "DistillError": "errors",
    "DistillLoss": "losses",
    "DistillModule": "module",
    "FitNetHint": "hints",
    "Frozen": "networks",
    "Glyphs": "glyphs",
    "HardLoss": "losses",
    "ImageData": "data",
    "ImageNetwork": "networks",
    "JSD": "losses",
    "KD": "losses",
    "LanguageLoss": "language",
    "LanguageNetwork": "language",
    "MultiTemperature": "losses",
    "Outputs": "terms",
    "REGIMES": "regimes",
    "RKD": "losses",
    "Regime": "regimes",
    "ReviewHint": "hints",
    "TextNetwork": "networks",
    "TokenData": "tokens",
    "ViewDataset": "views",
    "method": "regimes",
    "regime": "regimes",
}
__all__ = [
    "DIST",
    "DKD",
    "JSD",
    "KD",
    "REGIMES",
    "RKD",
    "Augmentation",
    "BinaryKD",
    "CRDHint",
    "CachedImageData",
    "CorrelationHint",
    "CurriculumTemperature",
    "DistillError",
    "DistillLoss",
    "DistillModule",
    "FitNetHint",
    "Frozen",
    "Glyphs",
    "HardLoss",
    "ImageData",
    "ImageNetwork",
    "LanguageLoss",
    "LanguageNetwork",
    "MultiTemperature",
    "Outputs",
    "Regime",
    "ReviewHint",
    "TextNetwork",
    "TokenData",
    "ViewDataset",
    "method",
    "regime",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'distill' has no attribute {name!r}; it has {', '.join(_WHERE)}.")
    return getattr(importlib.import_module(f"distill.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
