"""The merge recipe takes classifiers that plain transformers and PEFT made, under their own order of labels."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import twinmerge
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from tests.recipes import tiny

ORDER = {"mood": ["sad", "glad"], "topic": ["trade", "food", "sport"]}  # not the alphabetical order of the data


def train(base: Path, texts: list[str], targets: list[int], labels: list[str], out: Path, *, lora: bool) -> None:
    """Fine-tune a classifier with nothing but transformers, torch and PEFT, and save it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = AutoModelForSequenceClassification.from_pretrained(base, **names)
    if lora:
        model = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
        )
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2 if lora else 3e-3)
    for _ in range(80 if lora else 12):
        loss = model(**batch, labels=torch.tensor(targets)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with one full classifier and one LoRA classifier in the folder `theirs`."""
    world = tiny.World(tmp_path_factory.mktemp("foreign"))
    for name, labels in ORDER.items():
        rows = tiny.sentences(name, 150)
        texts, targets = [text for text, _ in rows], [labels.index(label) for _, label in rows]
        train(world.base, texts, targets, labels, world.folder / "theirs" / name, lora=name == "topic")
    return world


def experts(world, **changes):
    return {name: str(world.folder / "theirs" / name) for name in ORDER} | changes


def accuracy(world, name):
    """Of the folder itself, by plain transformers, on the recipe's test rows."""
    task = load_task(TaskSource(**tiny.task_source(world.folder, name)), 0)
    model = AutoModelForSequenceClassification.from_pretrained(
        world.folder / "theirs" / name, num_labels=len(ORDER[name]), id2label=dict(enumerate(ORDER[name]))
    ).eval()
    batch = AutoTokenizer.from_pretrained(world.base)(list(task.test.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = [ORDER[name][int(i)] for i in model(**batch).logits.argmax(-1)]
    wanted = [task.labels[int(i)] for i in task.test.labels]
    return sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, when transformers reads an adapter folder
def test_their_scores_are_those_of_the_folders_themselves(world):
    unnamed = world.run(world.recipe("merge", experts=experts(world)), "unnamed", "--check")
    assert unnamed.code == 2  # PEFT's folder has no names, and nobody guesses them
    assert "experts.topic: the folder does not name its 3 labels" in unnamed.err
    done = world.run(world.recipe("merge", experts=experts(world), labels={"topic": ORDER["topic"]}), "merged")
    assert done.code == 0, done.err
    row = json.loads((world.folder / "merged/result.json").read_text())["rows"]["experts"]
    for name in ORDER:
        assert row["tasks"][name] == pytest.approx(accuracy(world, name), abs=1e-6)
    assert min(row["tasks"].values()) > 0.8
    twin = twinmerge.load(world.folder / "merged/merged")
    assert twin.heads["mood"].label_names == ["glad", "sad"]  # the data's order


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_labels_are_refused_by_name_at_check(world, tmp_path):
    rows = tiny.sentences("mood", 12)
    train(world.base, [t for t, _ in rows], [0] * 12, ["angry", "calm"], tmp_path / "moods", lora=False)
    done = world.run(world.recipe("merge", experts=experts(world, mood=str(tmp_path / "moods"))), "refused", "--check")
    assert done.code == 2
    assert "experts.mood: " in done.err
    assert "angry" in done.err
    assert "glad" in done.err
    assert not (world.folder / "refused").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_experts_alone_give_static_merges_and_a_twin_that_takes_weights(world):
    recipe = world.recipe("merge", (), experts=experts(world))
    for key in ("tasks", "router", "baselines"):
        recipe.pop(key)
    done = world.run(recipe, "alone")
    assert done.code == 0, done.err
    twin = twinmerge.load(world.folder / "alone/merged")
    batch = AutoTokenizer.from_pretrained(world.base)(["my brother wept"], return_tensors="pt")
    outputs = twin.classify(**batch, head="mood", router_weights=torch.tensor([[1.0, 0.0]]))
    assert outputs.logits[0, :2].isfinite().all()
    assert {path.name for path in (world.folder / "alone/static").iterdir()} >= {"average", "ties"}
