"""Blocks made from the signature that they feed."""

import dataclasses
import sys
from typing import Literal, get_type_hints

import pytest

from recipes.fields import FieldError
from recipes.front.schema import fields_of
from recipes.front.signature import FedBlock, takes

HEAVY = '''
"""A module that must not be imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gapbridge.arguments import Count, PositiveShare
from torch import nn

raise RuntimeError("imported")

Kind = Literal["a", "b"]


class Module:
    """Train.

    Args:
        data: What to train on.
        hidden: Widths of
            the layers.
        kind: Which way.
        model: A network.
        discount: Of rewards.
    """

    def __init__(
        self, data: str, hidden: Sequence[Count] = (64, 64), *, kind: Kind = "a", model: nn.Module | None = None,
        discount: PositiveShare | None = None,
    ) -> None:
        pass
'''


@pytest.fixture
def block(tmp_path, monkeypatch):
    (tmp_path / "heavy_code.py").write_text(HEAVY.strip() + "\n")
    monkeypatch.syspath_prepend(tmp_path)

    @takes("heavy_code:Module", leave_out={"data": "the block data", "model": "no model can be named in YAML"})
    @dataclasses.dataclass
    class Training(FedBlock):
        """How to train.

        Attributes:
            passes: How often.
        """

        passes: int = 3

        def __post_init__(self):
            if self.passes < 1:
                raise FieldError("passes", "too few")

    assert "heavy_code" not in sys.modules
    return Training


def test_every_argument_is_a_key_with_its_type_default_and_help(block):
    rows = {row.name: (row.kind, row.default, row.help) for row in fields_of(block)}
    assert rows == {
        "passes": (int, 3, "How often."),
        "hidden": (list[int], [64, 64], "Widths of the layers."),
        "kind": (Literal["a", "b"], "a", "Which way."),
        "discount": (get_type_hints(block)["discount"], None, "Of rewards."),
    }
    assert block().arguments() == {"hidden": [64, 64], "kind": "a", "discount": None}
    assert block().hidden is not block().hidden


@pytest.mark.parametrize(
    ("name", "value"), [("hidden", [0]), ("kind", "c"), ("discount", 1.5), ("discount", 0.0), ("passes", 0)]
)
def test_a_value_that_the_code_refuses_is_refused_under_its_key(block, name, value):
    with pytest.raises(FieldError) as caught:
        block(**{name: value})
    assert caught.value.where == name


def test_what_is_left_out_must_exist(block):
    with pytest.raises(ValueError, match="no argument date"):
        takes("heavy_code:Module", leave_out={"date": "a slip"})


@pytest.mark.parametrize(
    ("file", "override", "sentence"),
    [
        ("csp_tiny.yaml", "adaptation.trace=2", "trace: expected a finite number >= 0 and <= 1, got 2"),
        ("csp_tiny.yaml", "adaptation.constraint=lagrange", "did you mean 'lagrangian'?"),
        ("hpo_tiny.yaml", "training.reuse=-1", "training.reuse: expected a whole number >= 0, got -1"),
        (
            "hpo_tiny.yaml",
            "methods={hpo: {estimator: mixd}}",
            "methods.hpo.estimator: expected one of 'mixed', 'score'",
        ),
        ("explain_tiny.yaml", "estimation.n_jobs=0", "estimation.n_jobs: expected a whole number <= -1 or"),
        ("distill_tiny.yaml", "lora_rank=-1", "lora_rank: expected a whole number >= 0, got -1"),
    ],
)
def test_the_front_says_what_a_shipped_recipe_accepts(front, file, override, sentence):
    done = front(file, override, "--check")
    assert done.code == 2
    assert sentence in done.err
