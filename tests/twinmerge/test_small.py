"""A twin is no larger than its experts together, and says what was left out to make its folders small."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open

import twinmerge
from tests.twinmerge import foreign, tiny
from tests.twinmerge.foreign import CLASSIFIER, full
from twinmerge import merge_folders, save

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # transformers' own, from PEFT
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
]


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def wordy(kind: str, root: Path) -> Path:
    """A base that is mostly embeddings, as small encoders are."""
    sizes = {**foreign.OTHER_SIZES.get(kind, foreign.SIZES), "vocab_size": 4000}
    torch.manual_seed(0)
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes)).save_pretrained(root)
    foreign.tokenizer().save_pretrained(root)
    return root


@pytest.mark.parametrize(("kind", "stored"), [("bert", "float32"), ("distilbert", "bfloat16"), ("gpt2", "float16")])
def test_a_twin_of_two_whole_fine_tunes_is_smaller_than_they(kind: str, stored: str, tmp_path: Path) -> None:
    base = wordy(kind, tmp_path / "base")
    if stored != "float32":
        transformers.AutoModel.from_pretrained(base).to(getattr(torch, stored)).save_pretrained(base)
    for seed, task in enumerate("ab"):
        full(CLASSIFIER, stored, seed=seed)(base, tmp_path / task)
    twin = merge_folders(base, {task: tmp_path / task for task in "ab"})
    assert twin.dtype == getattr(torch, stored)
    folder = save(twin, tmp_path / "twin", tokenizer=base)
    assert weights(folder) <= weights(tmp_path / "a") + weights(tmp_path / "b")
    again, inputs = twinmerge.load(folder, dtype=torch.float32), foreign.batch()
    for index, task in enumerate("ab"):
        plain = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(plain, folder / "experts" / task).eval()
        with torch.no_grad():
            got, wanted = model(**inputs)[0], again(**inputs, router_weights=torch.eye(2)[[index] * 3])[0]
        mask = inputs["attention_mask"].bool()
        tolerance = 1e-4 if stored == "float32" else 0.02 * float(wanted.abs().max())
        assert torch.allclose(got[mask], wanted[mask], atol=tolerance)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "mpnet"])
def test_matrices_alone_are_served_by_plain_peft_in_one_batch(kind: str, tmp_path: Path) -> None:
    base = foreign.base(kind, tmp_path / "base")
    for seed, task in enumerate("abc"):
        full("AutoModel", seed=seed)(base, tmp_path / task)
    twin = merge_folders(base, {task: tmp_path / task for task in "abc"}, dense="none", rank={"rank": 3})
    assert all(0 < share < 0.5 for share in twin.left_out.values())
    folder = save(twin, tmp_path / "twin", tokenizer=base)
    cards = [json.loads((folder / "experts" / task / "adapter_config.json").read_text()) for task in "abc"]
    assert all(card["modules_to_save"] is None and card["bias"] == "none" for card in cards)
    plain = transformers.AutoModel.from_pretrained(folder)
    model: Any = peft.PeftModel.from_pretrained(plain, folder / "experts/a", adapter_name="a")
    for task in "bc":
        model.load_adapter(folder / "experts" / task, adapter_name=task)
    inputs = foreign.batch()
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        got = model.eval()(**inputs, adapter_names=["b", "a", "c"])[0]
        wanted = twin(**inputs, router_weights=torch.eye(3)[[1, 0, 2]])[0]
        assert torch.allclose(got[mask], wanted[mask], atol=1e-4)
        model.add_weighted_adapter(["a", "b", "c"], [0.5, 0.3, 0.2], "mix", combination_type="cat")
        model.set_adapter("mix")
        wanted = twin(**inputs, router_weights=torch.tensor([[0.5, 0.3, 0.2]]))[0]
        assert torch.allclose(model(**inputs)[0][mask], wanted[mask], atol=1e-4)


def test_what_barely_changed_is_left_to_the_shared_expert_and_said(tmp_path: Path) -> None:
    base = tiny.bert()
    experts = tiny.differences(base, rank=None, experts=2)
    for expert in experts:
        expert["embeddings.word_embeddings.weight"] *= 1e-5
    states = {t: tiny.dense_state(base, [e], [1.0]) for t, e in zip("ab", experts, strict=True)}
    twin, exclusive = twinmerge.merge(tiny.bert(), states, "average", rank={"density": 1.0})
    assert "embeddings.word_embeddings.weight" not in exclusive.experts["a"]
    assert 0 < exclusive.left_out["a"] < 1e-9
    with safe_open(save(twin, tmp_path / "twin") / "experts/a/adapter_model.safetensors", "pt") as file:
        assert not any("word_embeddings" in key for key in file.keys())  # noqa: SIM118 - no mapping
