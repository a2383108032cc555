"""Merging real state dicts and PEFT folders: certificates, rank policies, and LoRA products against dense merges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from tests.twinmerge import tiny
from twinmerge import check_routing, merge, merge_lora, shared_expert
from twinmerge.checkpoints import check_compatible, inspect_checkpoint, read_lora, read_state
from twinmerge.exclusive import exclusive_experts
from twinmerge.merging import set_parameters

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
    pytest.mark.filterwarnings("ignore:.*lora_B.bias.*"),
]
BUILDS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Tensor]]]] = {
    "bert": (tiny.bert, tiny.text),
    "gpt2": (tiny.gpt2, tiny.text),
    "mixtral": (tiny.mixtral, tiny.text),
    "vit": (tiny.vit, tiny.images),
    "stem": (tiny.stem, tiny.images),
}


def fine_tuned(
    build: Callable[[], Any], count: int = 3, size: float = 0.1, frozen: tuple[str, ...] = ()
) -> dict[str, dict]:
    states = {}
    for i, task in enumerate(tiny.TASKS[:count]):
        generator = torch.Generator().manual_seed(i + 1)
        states[task] = {
            n: p.detach() + (0 if any(f in n for f in frozen) else size) * torch.randn(p.shape, generator=generator)
            for n, p in build().named_parameters()
        }
    return states


def run(model: Any, state: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return functional_call(model, state, kwargs=inputs)[0]


def real(output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    mask = inputs.get("attention_mask")
    return output if mask is None else output[mask.bool()]


@pytest.mark.parametrize("name", BUILDS)
def test_full_rank_is_the_weighted_expert_whatever_the_shared_one(name: str) -> None:
    build, batch = BUILDS[name]
    inputs, experts, weights = batch(), fine_tuned(build), tiny.mixtures(4)
    mixed = []
    for i, row in enumerate(weights):
        state = {
            n: sum(w * e[n] for w, e in zip(row, experts.values(), strict=True)) for n in next(iter(experts.values()))
        }
        mixed.append(run(build(), state, {k: v[i : i + 1] for k, v in inputs.items()}))
    for method, options in (
        ("average", {}),
        ("task_arithmetic", {"scale": 0.3}),
        ("ties", {"scale": 1.0, "density": 0.2}),
    ):
        twin, exclusive = merge(build(), experts, method, rank={"density": 1.0}, dense="all", **options)
        with torch.no_grad():
            got = twin(**inputs, router_weights=weights)[0]
            one = twin(**inputs, router_weights=torch.eye(3)[1:2])[0]
        torch.testing.assert_close(real(got, inputs), real(torch.cat(mixed), inputs), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            real(one, inputs), real(run(build(), experts["topic"], inputs), inputs), rtol=1e-4, atol=1e-4
        )
        assert max(r for task in exclusive.residuals.values() for r in task.values()) < 1e-5


@pytest.mark.parametrize("policy", [{"rank": 3}, {"density": 0.2}, {"energy": 0.6}, {"budget": 60_000}])
@pytest.mark.parametrize("name", BUILDS)
def test_every_policy_keeps_its_word(name: str, policy: dict[str, Any]) -> None:
    """The certificate of every tensor is the true residual of what the twin really computes with."""
    build, batch = BUILDS[name]
    base, experts = build(), fine_tuned(build)
    twin, exclusive = merge(build(), experts, "average", rank=policy)
    shared = dict(twin.named_parameters())
    fused = {n for n, p in base.named_parameters() if p.dim() == 3 and n != "wave.weight"}
    for task, expert in exclusive.experts.items():
        for label, residual in exclusive.residuals[task].items():
            parameter, _, index = label.partition("#")
            target = experts[task][parameter] - shared[parameter].detach()
            kept = expert.get(parameter, torch.zeros_like(target))
            if isinstance(kept, tuple):
                kept = kept[0] @ kept[1]
                kept = kept.mT if isinstance(base.get_submodule(parameter.rpartition(".")[0]), Conv1D) else kept
            kept = kept.reshape(target.shape)
            if index:
                assert parameter in fused
                kept, target = kept[int(index)], target[int(index)]
            true = float((target - kept).norm() / target.norm())
            assert abs(true - residual) < 1e-4
            if "energy" in policy:
                assert residual**2 <= 1 - policy["energy"] + 1e-4
    if "rank" in policy:
        ranks = {r for task in exclusive.ranks.values() for r in task.values()}
        assert max(ranks) >= 3
    if "budget" in policy:
        spent = 4 * sum(
            t.numel()
            for expert in exclusive.experts.values()
            for n, d in expert.items()
            if base.get_parameter(n).dim() > 1
            for t in (d if isinstance(d, tuple) else (d,))
        )
        assert spent <= policy["budget"] or name in ("mixtral", "stem", "vit")  # fused factors are padded to one rank
    assert check_routing(twin.eval(), **{k: v[:2] for k, v in batch().items()}) < 1e-3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), size=st.floats(1e-4, 1.0), scale=st.floats(-0.5, 1.5))
def test_shared_plus_exclusive_is_the_expert(seed: int, size: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (6, 9), "fused": (3, 4, 5), "kernel": (4, 3, 2, 2), "b": (7,)}
    base = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    experts = {t: {n: v + size * torch.randn(v.shape, generator=generator) for n, v in base.items()} for t in "ab"}
    shared = {n: v + scale * sum(e[n] - v for e in experts.values()) for n, v in base.items()}
    exclusive = exclusive_experts(shared, experts, density=1.0)
    for task, expert in experts.items():
        for name, value in expert.items():
            kept = exclusive.experts[task][name]
            kept = kept[0] @ kept[1] if isinstance(kept, tuple) else kept
            torch.testing.assert_close(shared[name] + kept.reshape(value.shape), value, rtol=1e-4, atol=1e-5)


def test_unchanged_parameters_are_left_out_and_order_does_not_matter() -> None:
    experts = fine_tuned(tiny.bert, frozen=("embeddings", "pooler"))
    twin, exclusive = merge(tiny.bert(), experts, rank={"rank": 2}, dense="all", scale=0.3)
    assert not any("embeddings" in n or "pooler" in n for e in exclusive.experts.values() for n in e)
    other, _ = merge(tiny.bert(), dict(reversed(experts.items())), rank={"rank": 2}, scale=0.3)
    weights, inputs = tiny.mixtures(4), tiny.text()
    with torch.no_grad():
        a, b = twin(**inputs, router_weights=weights)[0], other(**inputs, router_weights=weights.flip(1))[0]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# LoRA.


def adapters(folder: Path, build: Callable[[], Any], configs: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Real PEFT folders, each with random factors."""
    made = {}
    for i, (task, options) in enumerate(configs.items()):
        model = peft.get_peft_model(build(), peft.LoraConfig(**({"r": 4, "lora_alpha": 6} | options)))
        generator = torch.Generator().manual_seed(i + 1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder / task)
        made[task] = folder / task
    return made


LORA: dict[str, tuple[Callable[[], Any], dict[str, dict[str, Any]]]] = {
    "plain": (tiny.llama, {t: {"target_modules": ["q_proj", "down_proj"]} for t in tiny.TASKS}),
    "unequal": (
        tiny.bert,
        {
            "spam": {"target_modules": ["query", "value"], "r": 2},
            "topic": {"target_modules": "all-linear", "use_rslora": True},
            "mood": {
                "target_modules": ["value", "intermediate.dense", "word_embeddings"],
                "rank_pattern": {"value": 7, r"layer\.1.*dense": 3},
                "alpha_pattern": {"value": 20},
            },
        },
    ),
    "conv1d": (tiny.gpt2, {t: {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} for t in tiny.TASKS}),
    "kernel": (tiny.vit, {t: {"target_modules": ["projection", "q_proj", "query"]} for t in tiny.TASKS}),
}


@pytest.mark.parametrize("case", LORA)
def test_the_product_path_is_the_dense_path(case: str, tmp_path: Path) -> None:
    build, configs = LORA[case]
    folders = adapters(tmp_path, build, configs)
    build().save_pretrained(tmp_path / "base")
    names = tiny.names_of(build())
    terms, dense = {}, {}
    for task, folder in folders.items():
        found = inspect_checkpoint(folder)
        assert found.kind == "lora"
        assert "LoRA adapter" in check_compatible(inspect_checkpoint(tmp_path / "base"), found)
        terms[task] = read_lora(found, names)
        merged = peft.PeftModel.from_pretrained(build(), folder).merge_and_unload()
        dense[task] = {n: p.detach() for n, p in merged.named_parameters()}
    inputs, weights = (tiny.images() if case == "kernel" else tiny.text()), tiny.mixtures(4)
    ours, exclusive = merge_lora(build(), terms, scale=0.4, rank=32)
    theirs, _ = merge(build(), dense, "task_arithmetic", rank={"density": 1.0}, dense="all", scale=0.4)
    for name, parameter in build().named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name), rtol=1e-4, atol=1e-5)
        assert parameter is not None
    with torch.no_grad():
        a, b = (t(**inputs, router_weights=weights)[0] for t in (ours, theirs))
        torch.testing.assert_close(real(a, inputs), real(b, inputs), rtol=1e-4, atol=1e-4)
        for i, task in enumerate(tiny.TASKS):  # one-hot is the adapter that PEFT itself computes
            got = ours(**inputs, router_weights=torch.eye(3)[i : i + 1])[0]
            peft_model = peft.PeftModel.from_pretrained(build(), folders[task]).eval()
            wanted = peft_model(**inputs)[0]
            torch.testing.assert_close(real(got, inputs), real(wanted, inputs), rtol=1e-3, atol=1e-3)
    assert max(r for e in exclusive.residuals.values() for r in e.values()) < 1e-6
    low, _ = merge_lora(
        build(), terms, scale=0.4, rank=2
    )  # truncated alike, by SVD of the product or of the dense difference
    low_dense, _ = merge(build(), dense, "task_arithmetic", rank={"rank": 2}, dense="all", scale=0.4)
    with torch.no_grad():
        a, b = (t(**inputs, router_weights=weights)[0] for t in (low, low_dense))
    assert (real(a, inputs) - real(b, inputs)).abs().mean() < 0.02 * real(b, inputs).abs().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["pooler"]}, "not a LoRA factor"),
        ({"lora_bias": True}, "not a LoRA factor"),
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = adapters(tmp_path, tiny.bert, {"a": {"target_modules": ["query"], **options}})["a"]
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(inspect_checkpoint(folder), tiny.names_of(tiny.bert()))
    assert "\n" not in str(caught.value)


def test_adapters_of_another_base_are_refused(tmp_path: Path) -> None:
    folder = adapters(tmp_path, tiny.bert, {"a": {"target_modules": ["query"]}})["a"]
    tiny.llama().save_pretrained(tmp_path / "llama")
    wide = tiny.bert_classifier()
    wide.save_pretrained(tmp_path / "same")
    assert check_compatible(inspect_checkpoint(tmp_path / "same"), inspect_checkpoint(folder))  # bert. prefix is found
    with pytest.raises(ValueError, match="which the base does not have"):
        check_compatible(inspect_checkpoint(tmp_path / "llama"), inspect_checkpoint(folder))
    tied = {"transformer.wte.weight": (1.0, torch.ones(64, 2), torch.ones(2, 32))}
    with pytest.raises(ValueError, match=r"changes 'transformer.wte.weight' but not 'lm_head.weight', which is tied"):
        merge_lora(tiny.gpt2(), {"a": tied, "b": tied}, 0.5, 2)
    with pytest.raises(ValueError, match="does not have"):
        merge_lora(tiny.gpt2(), {"a": {"x": tied["transformer.wte.weight"]}, "b": {}}, 0.5, 2)


# What merging refuses.


@pytest.mark.parametrize(
    ("experts", "policy", "message"),
    [
        (1, {"rank": 2}, "at least two experts and got 1"),
        (3, {"rank": 0}, "the rank is 0"),
        (3, {"rank": 65}, "takes a rank from 1 to"),
        (3, {"density": 0.0}, "the density is 0"),
        (3, {"density": 1.5}, "the density is 1.5"),
        (3, {"energy": 2.0}, "energy"),
        (3, {"budget": 1}, "the budget is 1"),
        (3, {}, "exactly one"),
        (3, {"rank": 2, "density": 0.1}, "exactly one"),
    ],
)
def test_merge_refuses_what_it_cannot_do(experts: int, policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        merge(tiny.bert(), fine_tuned(tiny.bert, experts), rank=policy, scale=0.3)
    assert "\n" not in str(caught.value)


def test_merge_refuses_foreign_and_broken_states() -> None:
    states = fine_tuned(tiny.bert)
    cases = {
        "lacks the tensor": {n: v for n, v in states["spam"].items() if n != "pooler.dense.bias"},
        "of shape": states["spam"] | {"pooler.dense.bias": torch.ones(5)},
        "NaN or infinite": states["spam"] | {"pooler.dense.bias": torch.full((32,), torch.nan)},
    }
    for message, state in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            merge(tiny.bert(), states | {"spam": state}, rank={"rank": 2}, dense="all", scale=0.3)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="method 'best' is unknown; choose one of average"):
        shared_expert(tiny.bert(), states, "best")
    with pytest.raises(ValueError, match="has no place for 'odd'"):
        set_parameters(tiny.bert(), states["spam"] | {"odd": torch.ones(1)})
    with pytest.raises(ValueError, match="lacks"):
        set_parameters(tiny.bert(), {})
    for rank, message in ((0, "the rank is 0"), (2, "at least two experts")):
        with pytest.raises(ValueError, match=message):
            merge_lora(tiny.bert(), {t: {} for t in ("ab" if rank == 0 else "a")}, 0.5, rank)


@pytest.mark.parametrize("build", [tiny.mixtral, tiny.vit])
def test_names_that_transformers_converts_on_disk_are_found(build: Callable[[], Any], tmp_path: Path) -> None:
    """Fused experts are saved apart, and some models under older names; in memory they are what is merged."""
    build().save_pretrained(tmp_path / "base")
    base, names = inspect_checkpoint(tmp_path / "base"), tiny.names_of(build())
    assert set(names) - set(base.tensors)
    state, _ = read_state(base, names)
    assert all(torch.equal(state[n], p) for n, p in build().named_parameters())
    assert check_compatible(base, base)


def test_states_are_read_from_folders_and_shards_alike(tmp_path: Path) -> None:
    model = tiny.bert_classifier()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    base = tiny.names_of(tiny.bert())
    for folder in ("whole", "sharded"):
        state, rest = read_state(inspect_checkpoint(tmp_path / folder), base)
        assert set(state) == set(base)
        assert set(rest) == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(state[n], model.get_parameter(f"bert.{n}")) for n in base)
