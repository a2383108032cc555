"""The recipes as data, value by value against the published tables."""

import pytest

from distill import REGIMES, DistillError, method, regime

# setting: A2, A1, previous ImageNet, previous CIFAR
TABLE = {
    "epochs": (300, 600, 100, 240),
    "image_size": (224, 224, 224, 32),
    "batch_size": (2048, 2048, 512, 64),
    "optimizer": ("lamb", "lamb", "momentum", "momentum"),  # timm's `sgd` is Nesterov's, `momentum` is not
    "momentum": (0.9, 0.9, 0.9, 0.9),
    "learning_rate": (5e-3, 5e-3, 0.2, 0.05),
    "schedule": ("cosine", "cosine", "multistep", "multistep"),
    "schedule_on": ("epoch", "epoch", "epoch", "epoch"),
    "milestones": ((), (), (30, 60, 90), (150, 180, 210)),
    "decay_rate": (0.1, 0.1, 0.1, 0.1),
    "warmup_epochs": (5, 5, 0, 0),
    "weight_decay": (0.02, 0.01, 1e-4, 5e-4),
    "decay": ("matrices", "matrices", "all", "all"),
    "smoothing": (0.0, 0.1, 0.0, 0.0),
    "hard": ("bce", "bce", "ce", "ce"),
    "drop_path": (0.05, 0.05, 0.0, 0.0),
    "dropout": (0.0, 0.0, 0.0, 0.0),
    "repeats": (3, 3, 1, 1),
    "auto_augment": ("rand-m7-mstd0.5", "rand-m7-mstd0.5", "", ""),
    "mixup": (0.1, 0.2, 0.0, 0.0),
    "cutmix": (1.0, 1.0, 0.0, 0.0),
    "color_jitter": (0.0, 0.0, 0.0, 0.0),
    "erase": (0.0, 0.0, 0.0, 0.0),
    "crop": ("random_resized", "random_resized", "random_resized", "pad"),
    "flip": (0.5, 0.5, 0.5, 0.5),
    "test_crop": (0.95, 0.95, 0.875, 1.0),
    "ema": (0.0, 0.0, 0.0, 0.0),
    "clip": (0.0, 0.0, 0.0, 0.0),
}
STRONGER = {
    "min_lr": 1e-6,
    "warmup_lr": 1e-6,
    "hard_reduction": "mean",
    "mix_probability": 1.0,
    "switch_probability": 0.5,
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "interpolation": "random",
}
VIT = {
    "epochs": 300,
    "batch_size": 8 * 128,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "min_lr": 1e-6,
    "weight_decay": 0.05,
    "warmup_epochs": 20,
    "warmup_lr": 5e-7,
    "smoothing": 0.1,
    "hard": "ce",
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "erase": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.0,
    "clip": 5.0,
    "ema": 0.99996,
}


@pytest.mark.parametrize(("column", "name"), list(enumerate(["A2", "A1", "previous_imagenet", "previous_cifar"])))
def test_regimes_are_the_published_table(column, name):
    found = {key: getattr(REGIMES[name], key) for key in TABLE}
    assert found == {key: values[column] for key, values in TABLE.items()}
    if name in ("A1", "A2"):
        assert {key: getattr(REGIMES[name], key) for key in STRONGER} == STRONGER


def test_substitutes_are_labelled_and_as_published():
    assert {key: getattr(REGIMES["substitute_imagenet_vit"], key) for key in VIT} == VIT
    cifar = REGIMES["substitute_cifar_vit"]
    assert {k: getattr(cifar, k) for k in VIT} == {**VIT, "min_lr": 1e-5, "ema": 0.0}
    cnn = REGIMES["substitute_cifar_cnn"]
    assert (cnn.optimizer, cnn.learning_rate, cnn.min_lr, cnn.weight_decay) == ("sgd", 0.05, 1e-3, 2e-3)
    assert (cnn.warmup_epochs, cnn.smoothing, cnn.hard, cnn.mixes) == (3, 0.1, "ce", False)
    assert all("substitute" in r.source for name, r in REGIMES.items() if name.startswith("substitute"))


def test_methods_are_as_published():
    assert method("kd", "A1") == {"hard": {"weight": 1.0}, "kd": {"weight": 1.0, "temperature": 1.0}}
    assert method("dkd", "A2")["dkd"] == {"weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 1.0}
    assert method("dist", "A2")["dist"] == {"weight": 1.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0}
    assert method("rkd", "A2")["hard"]["kind"] == "ce"  # the published commands train hints with cross-entropy
    assert method("kd", "previous_cifar") == {"hard": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}
    assert method("dkd", "previous_cifar")["dkd"]["ramp"] == 20.0
    assert method("kd", "previous_imagenet")["kd"] == {"weight": 0.5, "temperature": 1.0}
    with pytest.raises(DistillError, match="no method is called 'dk' for A1"):
        method("dk", "A1")


def test_every_published_method_builds():
    from distill.losses import check_terms

    for name in REGIMES:
        for known in ("ce", "kd", "dkd", "dist", "rkd", "review", "crd"):
            check_terms(method(known, name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs: expected a whole number >= 1, got 0"),
        ({"hard": "mse"}, "hard: expected one of 'bce', 'ce', got 'mse'"),
        ({"epochs": 4}, "warmup_epochs is 5, but it must be below the 4 epochs"),
        ({"learning_rate": float("inf")}, "learning_rate: expected a finite number > 0, got inf"),
        ({"epochs": True}, "epochs: expected a whole number >= 1, got True"),
        ({"momentum": -1}, "momentum: expected a finite number >= 0 and < 1, got -1"),
        ({"scale": (0.5, 0.1)}, r"scale is \(0.5, 0.1\), but it must rise"),
        ({"milestones": [0]}, "milestones holds 0"),
        ([1], r"changes: expected a mapping from text to any value or None, got \[1\]"),
        (5, "changes: expected a mapping from text to any value or None, got 5"),
    ],
)
def test_wrong_values_are_refused(changes, sentence):
    with pytest.raises(DistillError, match=sentence):
        regime("A2", changes)
