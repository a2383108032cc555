"""The training regimes of published comparisons as data: what the older and the stronger recipes are, value by value.

`A1` and `A2` are the two stronger ImageNet recipes of the vanilla-KD paper, read from its published commands;
`previous_imagenet` and `previous_cifar` the protocols that earlier methods were ranked with. The names that begin with
`substitute_` are recipes of the same first authors' next paper for the students whose settings were never published
(ViT students, the paper's CIFAR recipes B and C): use them, but do not report them as the paper's.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from distill.errors import DistillError

Terms = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Regime:
    """How a student is trained, whatever the distillation loss.

    Attributes:
        epochs: Passes over the data.
        batch_size: Images of one update on all processes together.
        image_size: Side of the training and test images, in pixels.
        optimizer: Name of a timm optimizer.
        learning_rate: Peak rate.
        momentum: Of SGD.
        weight_decay: Of the optimizer.
        decay: What it is for: matrices, as timm does, or all parameters, as the older protocols do.
        schedule: Name of a timm schedule.
        schedule_on: Whether the rate changes every epoch, as published, or every update, for short runs.
        min_lr: Last rate of the cosine.
        milestones: Epochs at which a multistep schedule multiplies the rate by `decay_rate`.
        decay_rate: Factor at each milestone.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Rate at its start.
        hard: Loss of the labels, bce or ce.
        hard_reduction: Of bce: mean over classes as in the official code, or sum_classes.
        smoothing: Label smoothing.
        drop_path: Stochastic depth.
        dropout: Before the classifier.
        repeats: Repeated augmentation: views of one image in an epoch's draw; 1 is none.
        auto_augment: RandAugment in timm's notation; empty is none.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.
        mix_probability: Share of batches that are mixed.
        switch_probability: Share of these that take CutMix where both are on.
        color_jitter: Strength; 0 is off.
        erase: Probability of random erasing.
        crop: random_resized, pad (zeros around, then a crop of the image's size), or none.
        padding: Pixels on every side for pad.
        scale: Area of a random resized crop, as shares.
        ratio: Its aspect ratios.
        interpolation: Of the crop in training.
        flip: Probability of a horizontal flip.
        test_crop: Share of the resized test image that is kept.
        ema: Decay of the averaged student; 0 is off.
        clip: Limit of the gradient's norm; 0 is none.
        source: Where the values were read.
    """

    epochs: int = 300
    batch_size: int = 2048
    image_size: int = 224
    optimizer: str = "lamb"
    learning_rate: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 0.02
    decay: Literal["matrices", "all"] = "matrices"
    schedule: Literal["cosine", "multistep"] = "cosine"
    schedule_on: Literal["epoch", "update"] = "epoch"
    min_lr: float = 1e-6
    milestones: tuple[int, ...] = ()
    decay_rate: float = 0.1
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    hard: Literal["bce", "ce"] = "bce"
    hard_reduction: Literal["mean", "sum_classes"] = "mean"
    smoothing: float = 0.0
    drop_path: float = 0.05
    dropout: float = 0.0
    repeats: int = 3
    auto_augment: str = "rand-m7-mstd0.5"
    mixup: float = 0.1
    cutmix: float = 1.0
    mix_probability: float = 1.0
    switch_probability: float = 0.5
    color_jitter: float = 0.0
    erase: float = 0.0
    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    flip: float = 0.5
    test_crop: float = 0.95
    ema: float = 0.0
    clip: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        for name in ("epochs", "batch_size", "image_size", "learning_rate", "repeats"):
            _check(name, getattr(self, name), "above 0", getattr(self, name) > 0)
        for name in ("weight_decay", "min_lr", "warmup_epochs", "warmup_lr", "mixup", "cutmix", "clip", "padding"):
            _check(name, getattr(self, name), "at least 0", getattr(self, name) >= 0)
        for name in ("smoothing", "drop_path", "dropout", "ema"):
            _check(name, getattr(self, name), "from 0 to below 1", 0 <= getattr(self, name) < 1)
        for name in ("mix_probability", "switch_probability", "erase", "flip"):
            _check(name, getattr(self, name), "from 0 to 1", 0 <= getattr(self, name) <= 1)
        _check("warmup_epochs", self.warmup_epochs, f"below the {self.epochs} epochs", self.warmup_epochs < self.epochs)
        _check("test_crop", self.test_crop, "above 0 and up to 1", 0 < self.test_crop <= 1)
        for name, hint in get_type_hints(Regime).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal:
                _check(name, value, f"one of {', '.join(get_args(hint))}", value in get_args(hint))
            elif get_origin(hint) is tuple:
                object.__setattr__(self, name, tuple(value))  # YAML gives lists

    @property
    def mixes(self) -> bool:
        """Whether labels become distributions."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


def _check(name: str, value: object, accepted: str, fits: bool) -> None:
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise DistillError(f"{name} is {value}, but it must be {accepted}")


A2 = Regime(source="README of the official code, strategy A2")
REGIMES: dict[str, Regime] = {
    "A2": A2,
    "A1": dataclasses.replace(
        A2,
        epochs=600,
        weight_decay=0.01,
        smoothing=0.1,
        mixup=0.2,
        source="README of the official code, strategy A1",
    ),
    "previous_imagenet": Regime(
        epochs=100,
        batch_size=512,
        optimizer="momentum",  # timm's name of SGD without Nesterov's step
        learning_rate=0.2,
        weight_decay=1e-4,
        decay="all",
        schedule="multistep",
        milestones=(30, 60, 90),
        warmup_epochs=0,
        hard="ce",
        drop_path=0.0,
        repeats=1,
        auto_augment="",
        mixup=0.0,
        cutmix=0.0,
        interpolation="bilinear",
        test_crop=0.875,
        source="mdistiller's ImageNet configuration (CRD, DKD and DIST protocol)",
    ),
    "previous_cifar": Regime(
        epochs=240,
        batch_size=64,
        image_size=32,
        optimizer="momentum",
        learning_rate=0.05,
        weight_decay=5e-4,
        decay="all",
        schedule="multistep",
        milestones=(150, 180, 210),
        warmup_epochs=0,
        hard="ce",
        drop_path=0.0,
        repeats=1,
        auto_augment="",
        mixup=0.0,
        cutmix=0.0,
        crop="pad",
        test_crop=1.0,
        source="mdistiller's CIFAR-100 configuration (CRD protocol)",
    ),
    "substitute_imagenet_vit": dataclasses.replace(
        A2,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=5e-4,
        weight_decay=0.05,
        warmup_epochs=20,
        warmup_lr=5e-7,
        hard="ce",
        smoothing=0.1,
        drop_path=0.0,
        repeats=1,
        auto_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
        erase=0.25,
        mixup=0.8,
        ema=0.99996,
        clip=5.0,
        source="OFAKD imagenet/vit_mlp: a substitute, not the paper's",
    ),
    "substitute_imagenet_cnn": dataclasses.replace(
        A2, ema=0.9998, source="OFAKD imagenet/stronger: a substitute, not the paper's"
    ),
    "substitute_cifar_cnn": dataclasses.replace(
        A2,
        batch_size=1024,
        optimizer="sgd",
        learning_rate=0.05,
        min_lr=1e-3,
        weight_decay=2e-3,
        warmup_epochs=3,
        hard="ce",
        smoothing=0.1,
        drop_path=0.0,
        repeats=1,
        auto_augment="",
        mixup=0.0,
        cutmix=0.0,
        source="OFAKD cifar/cnn: a substitute, not the paper's B or C",
    ),
    "substitute_cifar_vit": dataclasses.replace(
        A2,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=5e-4,
        min_lr=1e-5,
        weight_decay=0.05,
        warmup_epochs=20,
        warmup_lr=5e-7,
        hard="ce",
        smoothing=0.1,
        drop_path=0.0,
        repeats=1,
        auto_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
        erase=0.25,
        mixup=0.8,
        clip=5.0,
        source="OFAKD cifar/vit_mlp: a substitute, not the paper's B or C",
    ),
}

# Weights and temperatures that the methods were published with. In the official code the hint baselines train with
# cross-entropy and the logit methods with bce.
_HARD: dict[str, object] = {"weight": 1.0}
_STRONGER: dict[str, Terms] = {
    "ce": {"hard": _HARD},
    "kd": {"hard": _HARD, "kd": {"weight": 1.0, "temperature": 1.0}},
    "binary_kd": {"hard": _HARD, "binary_kd": {"weight": 1.0}},
    "dkd": {"hard": _HARD, "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 1.0}},
    "dist": {"hard": _HARD, "dist": {"weight": 1.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0}},
    "cc": {"hard": {"weight": 1.0, "kind": "ce"}, "cc": {"weight": 1.0, "factor": 0.02}},
    "rkd": {"hard": {"weight": 1.0, "kind": "ce"}, "rkd": {"weight": 1.0, "distance": 25.0, "angle": 50.0}},
    "review": {"hard": {"weight": 1.0, "kind": "ce"}, "review": {"weight": 1.0, "ramp": 1.0}},
    "crd": {"hard": {"weight": 1.0, "kind": "ce"}, "crd": {"weight": 1.0, "negatives": 16384, "temperature": 0.07}},
}
_PREVIOUS_IMAGENET: dict[str, Terms] = {
    **_STRONGER,
    "kd": {"hard": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 1.0}},
    "dkd": {"hard": _HARD, "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 0.5, "temperature": 1.0, "ramp": 1.0}},
}
_CIFAR: dict[str, Terms] = {
    "ce": {"hard": _HARD},
    "kd": {"hard": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    "lskd": {"hard": {"weight": 0.1}, "kd": {"weight": 9.0, "temperature": 2.0, "standardised": True}},
    "ctkd": {"hard": {"weight": 0.1}, "ctkd": {"weight": 0.9}},
    "dkd": {"hard": _HARD, "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "ramp": 20.0}},
    "dist": {"hard": _HARD, "dist": {"weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 4.0}},
    "rkd": {"hard": _HARD, "rkd": {"weight": 1.0, "distance": 25.0, "angle": 50.0}},
    "review": {"hard": _HARD, "review": {"weight": 5.0, "ramp": 20.0}},
    "crd": {"hard": _HARD, "crd": {"weight": 0.8, "negatives": 16384, "temperature": 0.07}},
}


def regime(name: str, changes: Mapping[str, Any] | None = None) -> Regime:
    """A regime of the table with some values changed.

    Args:
        name: A key of `REGIMES`.
        changes: New values by attribute.

    Raises:
        DistillError: If a name or a value is wrong.

    Example:
        >>> regime("A1", {"epochs": 1200}).smoothing
        0.1
    """
    if name not in REGIMES:
        raise DistillError(f"no regime is called {name!r}; {_meant(name, REGIMES)}")
    names = [field.name for field in dataclasses.fields(Regime)]
    for key in changes or {}:
        if key not in names:
            raise DistillError(f"a regime has no {key!r}; {_meant(key, names)}")
    return dataclasses.replace(REGIMES[name], **(changes or {}))


def method(name: str, regime_name: str) -> Terms:
    """Terms of a method as it was published for a regime.

    Args:
        name: `ce` (labels only), `kd`, `dkd`, `dist` and others.
        regime_name: A key of `REGIMES`.

    Raises:
        DistillError: If no such method was published there.

    Example:
        >>> method("kd", "previous_cifar")["kd"]
        {'weight': 0.9, 'temperature': 4.0}
    """
    known = {"previous_cifar": _CIFAR, "previous_imagenet": _PREVIOUS_IMAGENET}.get(regime_name, _STRONGER)
    if name not in known:
        raise DistillError(f"no method is called {name!r} for {regime_name}; {_meant(name, known)}")
    return {term: dict(options) for term, options in known[name].items()}


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return (
        f"did you mean {close[0]!r}? accepted are {', '.join(known)}" if close else f"accepted are {', '.join(known)}"
    )
