"""Placing, quantised bases and assisted decoding: right, or refused with the way out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import twinmerge
from tests.twinmerge import tiny
from twinmerge import attach


def twin_of(seed: int = 1, tasks: tuple[str, ...] = tiny.TASKS) -> Any:
    model = tiny.llama()
    return attach(model, list(tasks), tiny.differences(model, size=0.6, seed=seed), tiny.router(32)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twinmerge.save(twin_of(), tmp_path_factory.mktemp("placed") / "twin")


def test_a_device_map_of_one_device_is_right(folder: Path) -> None:
    ids = tiny.text(4, padding="none")["input_ids"]
    with torch.no_grad():
        wanted = twinmerge.load(folder)(ids).logits
        torch.testing.assert_close(twinmerge.load(folder, device_map="cpu")(ids).logits, wanted)
        torch.testing.assert_close(twinmerge.load(folder, device_map={"": "cpu"})(ids).logits, wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_device_map_of_several_places_is_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    place: dict[str, Any] = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    place |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    with pytest.raises(ValueError, match=r"^the model is spread over cpu, disk .*; load it on one device"):
        twinmerge.load(folder, device_map=place, offload_folder=tmp_path)


class Packed(nn.Linear):
    """A layer of four bits, as bitsandbytes has it: two numbers a byte, unpacked by a forward of its own."""

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x, self.unpacked)

    @classmethod
    def of(cls, stock: nn.Linear) -> Any:
        made = cls(stock.in_features, stock.out_features, bias=False)
        made.unpacked = stock.weight.detach()
        made.weight = nn.Parameter(torch.zeros(stock.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        return made


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_a_quantised_base_is_refused_with_the_way_out(dtype: torch.dtype) -> None:
    model = tiny.llama()
    experts = [{"model.layers.0.self_attn.q_proj.weight": (torch.ones(32, 2), torch.ones(2, 32))}] * 3
    attention = model.model.layers[0].self_attn
    attention.q_proj = Packed.of(attention.q_proj)
    attention.q_proj.weight = nn.Parameter(torch.zeros(512, 1).to(dtype), requires_grad=False)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"q_proj.weight' of .* is quantised \({kind}\).*load the shared"):
        attach(model, tiny.TASKS, experts)


def test_a_base_whose_other_layers_are_quantised_is_right() -> None:
    model, stock = tiny.llama(), tiny.llama()
    for layer in model.model.layers:
        layer.mlp.up_proj = Packed.of(layer.mlp.up_proj)
    experts = [{k: v for k, v in e.items() if "up_proj" not in k} for e in tiny.differences(stock)]
    ids, weights = tiny.text(4, padding="none")["input_ids"], tiny.mixtures(4)
    with torch.no_grad():
        wanted = attach(stock, tiny.TASKS, experts)(ids, router_weights=weights).logits
        torch.testing.assert_close(attach(model, tiny.TASKS, experts)(ids, router_weights=weights).logits, wanted)


@pytest.mark.parametrize("kind", ["shared", "twin", "itself", "lookup"])
def test_assisted_decoding_gives_what_greedy_decoding_gives(kind: str, folder: Path) -> None:
    twin = twin_of()
    options = {
        "shared": {"assistant_model": AutoModelForCausalLM.from_pretrained(folder).eval()},
        "twin": {"assistant_model": twin_of(seed=2)},
        "itself": {"assistant_model": twin},
        "lookup": {"prompt_lookup_num_tokens": 3},
    }[kind]
    for seed in range(3):
        ids = tiny.text(1, padding="none", seed=seed)["input_ids"]
        plain = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False}
        assert torch.equal(twin.generate(ids, **plain, **options), twin.generate(ids, **plain))


def test_an_assistant_of_other_tasks_is_refused_with_the_way_out() -> None:
    ids = tiny.text(1, padding="none")["input_ids"]
    other = twin_of(tasks=("a", "b", "c"))
    with pytest.raises(ValueError, match="a twin of a, b, c and this one of spam, topic, mood; draft with its shared"):
        twin_of().generate(ids, attention_mask=torch.ones_like(ids), assistant_model=other, max_new_tokens=4)
