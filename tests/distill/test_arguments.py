"""What the parts of distillation refuse when they are made, each in one sentence."""

from typing import Any

import pytest
import torch
from torch import nn

import distill
from distill import (
    CachedImageData,
    CRDHint,
    DistillError,
    DistillLoss,
    DistillModule,
    FitNetHint,
    Frozen,
    Glyphs,
    ImageData,
    ImageNetwork,
    LanguageLoss,
    ReviewHint,
    TokenData,
    ViewDataset,
)
from distill.views import Augmentation
from tests.distill.nets import CHANGES, CLASSES, linear

HARD: dict[str, Any] = {"hard": {}}
ROWS = [(torch.zeros(1, 4, 4, dtype=torch.uint8), 0)]


class Told(nn.Module):
    """A network that says how many classes it has."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student": 5}, "student: expected a Module or text or a mapping from text to a Module or text, got 5"),
        ({"student": None}, "student: expected a Module or text or a mapping"),
        ({"student": {}}, "no student is given; give a model, the name of one, or several by name"),
        ({"student": {"a.b": linear(1)}}, "a student is called 'a.b'; give a name that could be a variable's"),
        ({"teacher": 5}, "teacher: expected a Module or text or None, got 5"),
        ({"terms": ["kd"]}, "terms: expected a mapping from text to any value or None, got ['kd']"),
        ({"terms": "a.b"}, "terms: expected a mapping from text to any value or None, got 'a.b'"),
        ({"terms": nn.Linear}, "terms: expected a mapping from text to any value or None, got the class Linear"),
        ({"terms": {}}, "no loss is given; accepted are hard, kd"),
        ({"terms": {"a.b": lambda s, t, y: s.logits.sum()}}, "a term is called 'a.b'; give a name"),
        ({"terms": {"keys": lambda s, t, y: s.logits.sum()}}, "a term is called 'keys'; give a name"),
        ({"terms": {"mine": "a.b"}}, "the loss of mine is 'a.b', but it must be a class, an object or a function"),
        ({"terms": {"mine": ["kd"]}}, "the loss of mine is ['kd'], but it must be a class, an object or a function"),
        ({"terms": {"mine": lambda: 0}}, "the loss of mine takes (), but it is called with the student's outputs"),
        ({"terms": {"mine": nn.Linear(2, 2)}}, "the loss of mine takes (input"),
        ({"terms": {"mine": nn.Linear}}, "the loss of mine takes (self, input"),
        ({"terms": HARD, "method": "dkd"}, "the method 'dkd' is given beside terms, which hold instead"),
        ({"student": {"a": linear(1)}, "terms": {"a": 3}}, "the terms of student a are 3, but must be losses by name"),
        ({"changes": 5}, "changes: expected a mapping from text to any value or None, got 5"),
        ({"changes": CHANGES | {"optimizer": "adm"}}, "optimizer 'adm' cannot be made"),
        ({"changes": {"momentum": -1}}, "momentum: expected a finite number >= 0 and < 1, got -1"),
        ({"changes": {"epochs": True}}, "epochs: expected a whole number >= 1, got True"),
        ({"changes": {"learning_rate": float("inf")}}, "learning_rate: expected a finite number > 0, got inf"),
        ({"item_labels": [-1, 0]}, f"labels go from -1 to 0, but there are {CLASSES} classes"),
        ({"item_labels": [0, 99]}, f"labels go from 0 to 99, but there are {CLASSES} classes"),
        ({"student": Told(7)}, f"student student has 7 outputs, but classes is {CLASSES}; give as many"),
        ({"student_options": {"in_chans": 1}}, "the option 'in_chans' is given beside a "),
        ({"teacher": linear(2), "teacher_options": {"pretrained": True}}, "the option 'pretrained' is given beside a "),
    ],
)
def test_a_module_refuses_it_in_one_sentence(given: dict[str, Any], message: str) -> None:
    whole = {"student": linear(1), "terms": HARD, "changes": CHANGES, "classes": CLASSES} | given
    with pytest.raises(DistillError) as caught:
        DistillModule(**whole)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageData("x"), "source: expected one of 'folder'"),
        (lambda: ImageData("digits", classes=0), "classes: expected a whole number >= 1, got 0"),
        (lambda: ImageData("digits", rows=-1), "rows: expected a whole number >= 0, got -1"),
        (lambda: ImageData("digits", test_rows=True), "test_rows: expected a whole number >= 0, got True"),
        (lambda: ImageData("digits", workers=-1), "workers: expected a whole number >= 0, got -1"),
        (lambda: ImageData("digits", workers=True), "workers: expected a whole number >= 0, got True"),
        (lambda: ImageData("digits", seed=-1), "seed: expected a whole number >= 0"),
        (lambda: CachedImageData("digits", views=0), "views: expected a whole number >= 1, got 0"),
        (lambda: CachedImageData("digits", rows=-1), "rows: expected a whole number >= 0, got -1"),
        (lambda: TokenData("/etc/hosts", "x"), "files: expected a list, each text or a Path, got '/etc/hosts'"),
        (lambda: TokenData(["a", "b", "c"], "x", batch_size=0), "batch_size: expected a whole number >= 1, got 0"),
        (lambda: TokenData(["a", "b", "c"], "x", blocks=-1), "blocks: expected a whole number >= 0, got -1"),
        (lambda: TokenData(["a", "b", "c"], "x", seed=-1), "seed: expected a whole number >= 0"),
        (lambda: LanguageLoss(HARD, chunk=-1), "chunk: expected a whole number >= 1, got -1"),
        (lambda: LanguageLoss(HARD, vocabulary="x"), "vocabulary: expected one of 'mask'"),
        (lambda: LanguageLoss(["kd"]), "terms: expected a mapping from text to any value, got ['kd']"),
        (lambda: ViewDataset(ROWS, Augmentation(), 0), "classes: expected a whole number >= 1, got 0"),
        (lambda: ViewDataset(ROWS, Augmentation(), 2, views=-1), "views: expected a whole number >= 0, got -1"),
        (lambda: ViewDataset(ROWS, Augmentation(), 2, smoothing=2), "smoothing: expected a finite number >= 0 and < 1"),
        (lambda: ViewDataset(ROWS, None, 2), "augmentation: expected an Augmentation, got None"),
        (lambda: ImageNetwork(nn.Linear(1, 1), std=(0.0,)), "std: expected a list of at least one, each a finite"),
        (lambda: ImageNetwork(nn.Linear(1, 1), mean=(float("nan"),)), "mean: expected a list of at least one"),
        (lambda: ImageNetwork(nn.Linear(1, 1), (0.1,) * 3, (1.0,) * 2), "mean has 3 channels and std 2"),
        (lambda: ImageNetwork(nn.Linear(1, 1), size=True), "size: expected a whole number >= 0, got True"),
        (lambda: ImageNetwork(3), "model: expected a Module, got 3"),
        (lambda: FitNetHint((8, 8, 8), (8, 8, 8), level=-1), "fitnet: level: expected a whole number >= 0, got -1"),
        (lambda: FitNetHint((0, 8), (8, 8), level=1), "fitnet: student_channels: expected a list of at least one"),
        (lambda: ReviewHint((8, 0), (8, 8)), "review: student_channels: expected a list of at least one"),
        (lambda: ReviewHint(8, 8), "review: student_channels: expected a list of at least one"),
        (lambda: CRDHint(4, 4, [0, 1]), "crd: item_labels: expected a Tensor, got [0, 1]"),
        (lambda: CRDHint(4, 4, torch.tensor([-1, 1])), "item_labels is torch.int64 (2,) from -1, but it must be"),
        (lambda: CRDHint(4, 4, torch.tensor([0.0, 1.0])), "item_labels is torch.float32 (2,) from 0, but it must be"),
        (lambda: CRDHint(4, 4, torch.tensor([0, 1]), seed=-1), "crd: seed: expected a whole number >= 0"),
        (lambda: Glyphs(5, seed=-1), "seed: expected a whole number >= 0"),
        (lambda: Glyphs(True), "items: expected a whole number, got True"),
        (lambda: Glyphs(5, noise=float("inf")), "noise: expected a finite number, got inf"),
        (lambda: Frozen(3), "network: expected a Module, got 3"),
        (lambda: Frozen(nn.Linear(1, 1), torch.int8), "dtype is torch.int8, but weights are floating"),
        (lambda: Augmentation(cutmix=float("inf")), "cutmix: expected a finite number >= 0, got inf"),
        (lambda: DistillLoss({"kd": {}, "mine": 3}), "the loss of mine is 3, but it must be a class"),
    ],
)
def test_a_part_refuses_it_in_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(DistillError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_is_taken_in_every_documented_form() -> None:
    class Mine(distill.Term):
        def forward(self, student: Any, teacher: Any, labels: Any) -> torch.Tensor:
            return student.logits.mean()

    outputs = distill.Outputs(torch.ones(1, 2))
    for given in (Mine, Mine(), lambda s, t, y: s.logits.mean(), {"loss": Mine, "weight": 1.0}):
        assert float(DistillLoss({"mine": given})(outputs, outputs, None)["mine"]) == 1.0
