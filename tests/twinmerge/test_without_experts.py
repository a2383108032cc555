"""A twin that no expert changes: one dense model with several heads, and its folder without exclusive experts."""

import json

import pytest
import torch

import twinmerge
from tests.twinmerge import tiny
from twinmerge import CheckpointError, Head, attach
from twinmerge.serving.mixtures import Mixer


@pytest.fixture
def model():
    made = attach(tiny.bert(), list(tiny.TASKS), [{} for _ in tiny.TASKS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.heads.update({task: Head(32, i + 1) for i, task in enumerate(tiny.TASKS)})
    return made.eval()


def test_it_answers_as_its_stock_model_with_its_heads(model):
    stock, inputs = tiny.bert().eval(), tiny.text()
    assert model.unrouted
    with torch.no_grad():
        hidden = stock(**inputs).last_hidden_state
        for task in tiny.TASKS:
            found = model.classify(**inputs, head=task).logits[:, : model.heads[task].out_proj.out_features]
            assert torch.equal(found, model.heads[task](hidden, inputs.get("attention_mask")))
        assert torch.equal(model(**inputs).last_hidden_state, hidden)
        dense = twinmerge.densify(model, {tiny.TASKS[0]: 1.0})
        assert torch.equal(dense(**inputs).last_hidden_state, hidden)
    with pytest.raises(ValueError, match="no router to choose the head; name one as head, of"):
        model.classify(**inputs)


def test_its_folder_has_no_experts_and_says_so(model, tmp_path):
    folder = twinmerge.save(model, tmp_path / "dense")
    assert not (folder / "experts").exists()
    assert json.loads((folder / "twin.json").read_text())["ranks"] == {}
    card = (folder / "README.md").read_text()
    assert "no exclusive experts" in card
    assert "A Twin-Merging model" not in card
    again, inputs = twinmerge.load(folder), tiny.text()
    with torch.no_grad():
        asked = [tiny.TASKS[i % len(tiny.TASKS)] for i in range(len(inputs["input_ids"]))]
        assert torch.equal(again.classify(**inputs, head=asked).logits, model.classify(**inputs, head=asked).logits)
    with pytest.raises(CheckpointError, match="choose routed or shared"):
        twinmerge.load(folder, f"expert:{tiny.TASKS[0]}")
    with pytest.raises(CheckpointError, match="has no exclusive experts to mix; serve it as the plain model"):
        Mixer(folder)
    card = json.loads((folder / "twin.json").read_text())
    (folder / "twin.json").write_text(json.dumps(card | {"format_version": 2}))
    with pytest.raises(CheckpointError, match="cannot be read as a twin folder"):  # an older folder must have experts
        twinmerge.load(folder, check=False)
