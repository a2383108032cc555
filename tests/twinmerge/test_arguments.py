"""What the parts of merging refuse when they are made, each in one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.twinmerge import tiny
from twinmerge import (
    FeatureDataModule,
    FinetuneModule,
    Head,
    Router,
    RouterModule,
    check_routing,
    densify,
    knn_router,
    merge,
    save,
)

X = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 0}, "the router's width is 0; give a whole number of at least 1"),
        ({"width": 2.5}, "the router's width is 2.5; give a whole number of at least 1"),
        ({"tasks": -1}, "the router's tasks is -1; give a whole number of at least 1"),
        ({"tasks": True}, "the router's tasks is True; give a whole number of at least 1"),
        ({"kind": "x"}, "router kind 'x' is unknown; choose mlp, linear or knn"),
        ({"temperature": math.nan}, "the router's temperature is nan; give a number above 0"),
        ({"temperature": math.inf}, "the router's temperature is inf; give a number above 0"),
        ({"temperature": "a"}, "the router's temperature is 'a'; give a number above 0"),
        ({"top_k": -1}, "the router's top_k is -1; give a whole number of at least 0"),
        ({"top_k": 9}, "the router's top_k is 9, but there are 2 tasks"),
        ({"neighbours": 0}, "the router's neighbours is 0; give a whole number of at least 1"),
        ({"bank": -1}, "the router's bank is -1; give a whole number of at least 0"),
    ],
)
def test_a_router_refuses_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Router(**({"width": 4, "tasks": 2} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 0}, "the head's width is 0; give a whole number of at least 1"),
        ({"labels": True}, "the head's labels is True; give a whole number of at least 1"),
        ({"norm": math.nan}, "the head's norm is nan; give a number of at least 0"),
        ({"norm": -1}, "the head's norm is -1; give a number of at least 0"),
        ({"layer_norm": "x"}, "the head's layer_norm is 'x'; give True or False"),
        ({"dense": 3}, "the head's dense is 3; give True or False"),
    ],
)
def test_a_head_refuses_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Head(**({"width": 4, "labels": 2} | given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("tasks", True),
        ("kind", "x"),
        ("learning_rate", 0),
        ("learning_rate", math.inf),
        ("learning_rate", "a"),
        ("weight_decay", -1),
        ("weight_decay", math.nan),
        ("top_k", -1),
    ],
)
def test_the_training_of_a_router_refuses_it(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        RouterModule(**({"width": 4, "tasks": 2} | {name: value}))


@pytest.mark.parametrize(
    ("sets", "given", "message"),
    [
        ((X, X), {"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
        ((X, X), {"batch_size": 2.5}, "batch_size: expected a whole number >= 1, got 2.5"),
        ((X, X), {"seed": -1}, "seed: expected a whole number >= 0"),
        ((X, (X[0], X[1][:2])), {}, r"validation has features \(4, 3\) and task ids \(2,\)"),
        ((X[0], X[0]), {}, "train: expected a list of 2 values"),
        (((X[0][:0], X[1][:0]), X), {}, "train has features .* at least one"),
        (((X[0], X[0][:, 0]), X), {}, "train has task ids of torch.float32"),
        (((X[0] * math.nan, X[1]), X), {}, "train has features of torch.float32 that are not all finite"),
    ],
)
def test_features_that_are_none_are_refused(sets: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureDataModule(*sets, **given)


def test_a_bank_of_other_tasks_is_refused() -> None:
    for features, task, tasks, message in (
        (X[0], torch.tensor([0, 1, 0, 5]), 2, "the bank has task ids of torch.int64 from 0 to 5"),
        (X[0], X[1][:2], 2, "the bank has features"),
        (X[0] * math.nan, X[1], 2, "the bank has features of torch.float32 that are not all finite"),
        (X[0], X[1], 0, "tasks: expected a whole number >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            knn_router(features, task, tasks)
    with pytest.raises(ValueError, match="neighbours: expected a whole number >= 1, got 0"):
        knn_router(*X, 2, neighbours=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("labels", -1),
        ("labels", True),
        ("labels", 2.5),
        ("heads", "x"),
        ("pooling", "x"),
        ("parts", "heads"),
        ("metric", "x"),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("weight_decay", -1),
        ("warmup", 2),
        ("warmup", -1),
        ("frozen", "enc"),
        ("frozen", (1,)),
        ("lora_rank", -1),
        ("lora_rank", True),
        ("seed", -1),
        ("seed", 2**65),
    ],
)
def test_the_training_of_an_expert_refuses_it(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        FinetuneModule(**({"model": nn.Linear(1, 1), "labels": 2} | {name: value}))


def test_an_expert_needs_a_body_and_frozen_parameters_that_exist() -> None:
    with pytest.raises(ValueError, match=r"a Linear has no config\.hidden_size to make a head for"):
        FinetuneModule(nn.Linear(2, 2), labels=2)
    with pytest.raises(ValueError, match=r"frozen is zzz, which is in no parameter's name of BertModel; name parts"):
        FinetuneModule(tiny.bert(), labels=2, frozen=("zzz",))
    held = FinetuneModule(tiny.bert(), labels=2, frozen=("embeddings.", "zzz")).model.embeddings
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_a_body_alone_needs_the_number_of_labels() -> None:
    with pytest.raises(ValueError, match="labels is 0, but a BertModel computes no loss of its own from labels"):
        FinetuneModule(tiny.bert())


def test_labels_and_tokenizers_that_fit_no_twin_are_refused(tmp_path: Path) -> None:
    names = {name: value.detach() + 0.01 for name, value in tiny.bert().named_parameters()}
    twin, _ = merge(tiny.bert(), {"a": names, "b": names}, rank=2)
    twin.heads["a"] = Head(32, 3)
    for given, message in (
        ({"labels": {"zz": ["x"]}}, "labels are given for 'zz', which is no task; the tasks are a, b"),
        ({"labels": {"a": ["x"]}}, "1 labels are given for 'a', whose head has 3 outputs; name each"),
        ({"tokenizer": 5}, "tokenizer is 5; give a tokenizer or processor"),
    ):
        with pytest.raises(ValueError, match=message):
            save(twin, tmp_path / "twin", **given)
        assert not (tmp_path / "twin").exists()


def test_a_mixture_of_no_numbers_and_no_batch_are_refused() -> None:
    for weights, message in (({"a": math.nan}, "weights: expected"), ({"a": "1"}, "weights: expected"), (3, "weights")):
        with pytest.raises(ValueError, match=message):
            densify(None, weights)
    with pytest.raises(ValueError, match="tolerance: expected a finite number > 0, got -1"):
        check_routing(None, tolerance=-1)
    with pytest.raises(ValueError, match="no batch is given to compare on"):
        check_routing(None)
