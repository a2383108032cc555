"""What `merge_folders` refuses before it reads a folder, and what reaches the merge of adapters."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import twinmerge
from tests.twinmerge import tiny
from twinmerge import Exclusive, Router, merge, merge_folders, merge_lora
from twinmerge.folders import Expert
from twinmerge.one_call import combine, merge_experts

TWO = {"a": "one", "b": "two"}
TEXTS = {"a": ["x", "y"], "b": ["x", "y"]}


def last(pretrained: dict[str, Tensor], experts: list[dict[str, Tensor]], *, share: float = 1.0) -> dict[str, Tensor]:
    """A merge of one's own."""
    return {name: base + share * (experts[-1][name] - base) for name, base in pretrained.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": float("inf")}, "each a finite number, got inf"),
        ({"scale": float("nan")}, "each a finite number, got nan"),
        ({"scale": True}, "each a finite number, got True"),
        ({"scale": "a"}, "each a finite number, got 'a'"),
        ({"scal": 0.3}, "the merge method task_arithmetic has no option 'scal'; did you mean 'scale'"),
        ({"scale": 0.3, "method": "average"}, "the merge method average has no option 'scale'; its options are none"),
        ({"scale": 0.3, "method": last}, "the merge method last has no option 'scale'; did you mean 'share'"),
        ({"method": last, "share": "x"}, "share: expected a number, got 'x'"),
        ({"method": 3}, "method: expected text or a function, got 3"),
        ({"rank": 2.5}, "rank: expected a whole number or a mapping"),
        ({"rank": True}, "rank: expected a whole number or a mapping"),
        ({"rank": {"rank": 2.5}}, "rank.rank: expected a whole number or None, got 2.5"),
        ({"rank": {"rnk": 3}}, "rank: no rank policy is called 'rnk'; choose one of rank, density, energy, budget"),
        ({"seed": -1}, "seed: expected a whole number >= 0"),
        ({"seed": True}, "seed: expected a whole number >= 0"),
        ({"seed": 1.5}, "seed: expected a whole number >= 0"),
        ({"labels": {"c": ["x"]}}, "labels are given for 'c', which is no task; the tasks are a, b"),
        ({"labels": {"a": "xy"}}, "labels: expected a mapping from text to a list"),
        ({"texts": TEXTS}, "texts are what a router is made from, and router is None; choose mlp, linear, knn"),
        ({"texts": TEXTS, "router": Router(4, 2)}, "router is made already"),
        ({"folders": {"a/b": "one", "c": "two"}}, "task name 'a/b' is not a folder name"),
        ({"folders": {"": "one", "c": "two"}}, "task name '' is not a folder name"),
        ({"folders": ["one", "two"]}, "folders: expected a mapping from text to text or a Path"),
        ({"folders": {1: "one", 2: "two"}}, "folders: expected a mapping from text to text or a Path"),
        ({"router": True}, "router: expected text or a Router or None, got True"),
        ({"router": "knn", "texts": {"a": "words", "b": "words"}}, "texts: expected a mapping from text to a list"),
        ({"router": "knn", "texts": TEXTS | {"c": ["x", "y"]}}, "texts are given for 'c', which is no task"),
        ({"router": "knn", "texts": {"a": ["x", "y"]}}, "needs texts of every task"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_anything_is_read(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared whole
        merge_folders(**({"base": "base", "folders": TWO} | given))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def adapters(name: str) -> dict[str, Expert]:
    """Two experts that are adapters of one matrix of rank 2."""
    torch.manual_seed(0)
    shape = tiny.bert().get_parameter(name).shape
    made = {}
    for task in "ab":
        terms = {name: (1.0, torch.randn(shape[0], 2), torch.randn(2, shape[1]))}
        state = {n: p.detach().clone() for n, p in tiny.bert().named_parameters()}
        state[name] += terms[name][1] @ terms[name][2]
        made[task] = Expert(state, terms, None, None, "", 0)
    return made


MATRIX = "encoder.layer.0.attention.self.query.weight"
POSITIONS = "embeddings.position_embeddings.weight"


def test_adapters_take_the_same_options_as_whole_experts() -> None:
    for method, options in (("task_arithmetic", {"scal": 0.9}), ("average", {"scale": 0.9})):
        with pytest.raises(ValueError, match="has no option"):
            combine(tiny.bert(), adapters(MATRIX), method, {"rank": 4}, **options)
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        combine(tiny.bert(), adapters(MATRIX), "task_arithmetic", 4, scale=float("inf"))
    with pytest.raises(ValueError, match="choose all, norms, biases or none"):
        combine(tiny.bert(), adapters(MATRIX), "task_arithmetic", 4, dense="some")
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        merge_lora(tiny.bert(), {}, float("nan"), 4)


def test_an_unset_scale_of_adapters_is_that_of_the_method() -> None:
    experts = adapters(MATRIX)
    base = tiny.bert().get_parameter(MATRIX)
    twin = combine(tiny.bert(), experts, "task_arithmetic", 4)
    shared = next(p for n, p in twin.named_parameters() if n.endswith("layer.0.attention.self.query.weight"))
    wanted = base + 0.3 * sum(expert.state[MATRIX] - base for expert in experts.values())
    torch.testing.assert_close(shared, wanted, rtol=1e-5, atol=1e-5)


def test_adapters_of_what_all_inputs_share_are_left_out_where_that_is_asked() -> None:
    _, whole = merge_experts(tiny.bert(), adapters(POSITIONS), "task_arithmetic", 4, dense="all")
    twin, bare = merge_experts(tiny.bert(), adapters(POSITIONS), "task_arithmetic", 4, dense="none")
    assert [POSITIONS in kept for kept in whole.experts.values()] == [True, True]
    assert [POSITIONS in kept for kept in bare.experts.values()] == [False, False]
    assert twin.left_out == pytest.approx({"a": 1.0, "b": 1.0})


def test_a_method_of_ones_own_and_a_plain_rank_are_taken() -> None:
    experts = adapters(MATRIX)
    states = {task: expert.state for task, expert in experts.items()}
    _, exclusive = merge(tiny.bert(), states, last, rank=3)
    assert isinstance(exclusive, twinmerge.Exclusive)
    assert exclusive.ranks["a"][MATRIX] == 3
    assert "b" not in {task for task, kept in exclusive.experts.items() if kept}
    assert isinstance(combine(tiny.bert(), experts, last, 3, share=0.5), torch.nn.Module)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda base, experts: None, "gives a NoneType; it must give tensors by the base's names"),
        (lambda base, experts: {}, "gives no 'embeddings.word_embeddings.weight'; it must give every parameter"),
        (lambda base, experts: {k: v * float("nan") for k, v in base.items()}, "gives NaN or infinite values for"),
        (
            lambda base, experts: {k: v[:1] for k, v in base.items()},
            "gives 'embeddings.word_embeddings.weight' in shape",
        ),
        (lambda base: base, "cannot be called with the base's parameters and the experts'"),
    ],
)
def test_what_a_method_of_ones_own_gives_is_looked_at(method: Any, message: str) -> None:
    states = {task: expert.state for task, expert in adapters(MATRIX).items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared whole
        merge(tiny.bert(), states, method, rank=3)
    assert message in str(caught.value)


def test_a_base_that_is_a_twin_already_is_refused() -> None:
    experts = adapters(MATRIX)
    states = {task: expert.state for task, expert in experts.items()}
    twin, _ = merge(tiny.bert(), states, rank=3)
    with pytest.raises(ValueError, match="which has experts already, as merging makes a twin of it in place"):
        merge(twin, states, rank=3)
    with pytest.raises(ValueError, match="which has experts already"):
        merge_lora(twin, {task: expert.terms for task, expert in experts.items()}, 0.3, 3)
    for given, message in (
        ({"experts": list(states.values())}, "experts: expected a mapping from text to a mapping"),
        ({"experts": TWO}, "experts: expected a mapping from text to a mapping"),
        ({"model": "base"}, "model: expected a Module, got 'base'"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(**({"model": tiny.bert(), "experts": states, "rank": 3} | given))


def test_the_seed_reaches_a_method_that_draws() -> None:
    seen = []

    def drawn(pretrained: Any, experts: Any, *, seed: int = 0) -> dict[str, Tensor]:
        seen.append(seed)
        return last(pretrained, experts)

    combine(tiny.bert(), adapters(MATRIX), drawn, {"density": 0.5}, seed=7)
    assert seen == [7]


def test_what_a_merge_returns_has_a_public_name() -> None:
    assert "Exclusive" in inspect.signature(merge_lora).return_annotation
    assert twinmerge.Exclusive is Exclusive
