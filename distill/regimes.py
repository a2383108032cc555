"""The training regimes of published comparisons as data: what the older and the stronger recipes are, value by value.

`A1` and `A2` are the two stronger ImageNet recipes of the vanilla-KD paper, read from its published commands;
`previous_imagenet` and `previous_cifar` the protocols that earlier methods were ranked with. The names that begin with
`substitute_` are recipes of the same first authors' next paper for the students whose settings were never published
(ViT students, the paper's CIFAR recipes B and C): use them, but do not report them as the paper's.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill.arguments import check_given
from distill.errors import DistillError
from gapbridge.arguments import Count, NotNegative, Positive, PositiveShare, ProperShare, Share, Whole

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

    epochs: Count = 300
    batch_size: Count = 2048
    image_size: Count = 224
    optimizer: str = "lamb"
    learning_rate: Positive = 5e-3
    momentum: ProperShare = 0.9
    weight_decay: NotNegative = 0.02
    decay: Literal["matrices", "all"] = "matrices"
    schedule: Literal["cosine", "multistep"] = "cosine"
    schedule_on: Literal["epoch", "update"] = "epoch"
    min_lr: NotNegative = 1e-6
    milestones: tuple[int, ...] = ()
    decay_rate: Positive = 0.1
    warmup_epochs: NotNegative = 5
    warmup_lr: NotNegative = 1e-6
    hard: Literal["bce", "ce"] = "bce"
    hard_reduction: Literal["mean", "sum_classes"] = "mean"
    smoothing: ProperShare = 0.0
    drop_path: ProperShare = 0.05
    dropout: ProperShare = 0.0
    repeats: Count = 3
    auto_augment: str = "rand-m7-mstd0.5"
    mixup: NotNegative = 0.1
    cutmix: NotNegative = 1.0
    mix_probability: Share = 1.0
    switch_probability: Share = 0.5
    color_jitter: NotNegative = 0.0
    erase: Share = 0.0
    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    padding: Whole = 4
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    flip: Share = 0.5
    test_crop: PositiveShare = 0.95
    ema: ProperShare = 0.0
    clip: NotNegative = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        check_given(Regime.__init__, vars(self))
        if self.warmup_epochs >= self.epochs:
            raise DistillError(f"warmup_epochs is {self.warmup_epochs}, but it must be below the {self.epochs} epochs")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise DistillError(f"{name} is {(low, high)}, but it must rise")
        if odd := [epoch for epoch in self.milestones if epoch < 1]:
            raise DistillError(f"milestones holds {odd[0]}, but the rate changes at an epoch, 1 or later")
        for name in ("milestones", "scale", "ratio"):  # YAML gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def mixes(self) -> bool:
        """Whether labels become distributions."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


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
    check_given(regime, {"name": name, "changes": changes})
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
    check_given(method, {"name": name, "regime_name": regime_name})
    known = {"previous_cifar": _CIFAR, "previous_imagenet": _PREVIOUS_IMAGENET}.get(regime_name, _STRONGER)
    if name not in known:
        raise DistillError(f"no method is called {name!r} for {regime_name}; {_meant(name, known)}")
    return {term: dict(options) for term, options in known[name].items()}


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return (
        f"did you mean {close[0]!r}? accepted are {', '.join(known)}" if close else f"accepted are {', '.join(known)}"
    )
