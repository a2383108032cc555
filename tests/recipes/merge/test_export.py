"""The export recipe: a dense model is the routed one under that mixture, and a checkpoint goes there and back."""

import json
import shutil

import pytest
import torch
from lightning import Trainer
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import twinmerge
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.data.text_module import TextDataModule
from tests.recipes import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    """A world with a twin in `twin/merged`."""
    world = tiny.World(tmp_path_factory.mktemp("export"))
    done = world.run(world.recipe("merge", baselines={"scales": [], "probe": False}), "twin")
    assert done.code == 0, done.err
    return world


def export(**changes):
    return {"recipe": "export", "name": "tiny", "source": "twin/merged"} | changes


def exported(world, out, **changes):
    done = world.run(export(**changes), out)
    assert done.code == 0, done.err
    return world.folder / out


@pytest.mark.parametrize("weights", [{}, {"mood": 1.0}, {"mood": 0.25, "topic": 0.75}])
def test_a_dense_model_is_the_routed_one_under_that_mixture(world, weights):
    folder = exported(world, f"dense{len(weights)}", weights=weights) / "dense"
    inputs = AutoTokenizer.from_pretrained(folder)(
        ["the cook ate warm bread", "he wept"], padding=True, return_tensors="pt"
    )
    twin = twinmerge.load(world.folder / "twin/merged")
    row = torch.tensor([[weights.get(task, 0.0) for task in twin.tasks]]).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModel.from_pretrained(folder).eval()(**inputs)[0],
            twin(**inputs, router_weights=row)[0],
            atol=1e-5,
            rtol=1e-5,
        )
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config


def test_a_checkpoint_goes_there_and_back_bit_equal(world):
    checkpoint = exported(world, "there", kind="to_checkpoint", question="topic") / "twin.ckpt"
    back = exported(world, "back", kind="from_checkpoint", question="topic", checkpoint=str(checkpoint)) / "merged"
    source = world.folder / "twin/merged"
    names = sorted(str(f.relative_to(source)) for f in source.rglob("*.safetensors"))
    assert names == sorted(str(f.relative_to(back)) for f in back.rglob("*.safetensors"))
    for name in names:
        first, second = load_file(source / name), load_file(back / name)
        assert first.keys() == second.keys()
        for key in first:  # what a folder keeps merged into the shared expert is a difference in memory: it is rounded
            rounded = 1e-7 if name.startswith("experts") and "lora" not in key else 0
            torch.testing.assert_close(second[key], first[key], atol=rounded, rtol=0)
    cards = [json.loads((folder / "twin.json").read_text()) for folder in (source, back)]
    for key in ("tasks", "router", "heads", "base", "sources"):
        assert cards[0][key] == cards[1][key]
    assert twinmerge.load(back).tasks == ["mood", "topic"]


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # of what is frozen
@pytest.mark.parametrize("parts", [("shared", "experts", "heads"), ("heads",)])
def test_a_fine_tuned_checkpoint_becomes_a_twin_folder(world, tmp_path, parts):
    task = load_task(TaskSource(**tiny.task_source(world.folder, "topic")), 0)
    data = TextDataModule(task, world.base, batch_size=8, max_length=24)
    module = twinmerge.FinetuneModule(
        twinmerge.load(world.folder / "twin/merged").train_only(*parts), question="topic", learning_rate=1e-2
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=3, enable_checkpointing=False, devices=1, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    out = f"tuned{len(parts)}"
    folder = exported(world, out, kind="from_checkpoint", question="topic", checkpoint=str(tmp_path / "tuned.ckpt"))
    before, after = (twinmerge.load(f / "merged") for f in (world.folder / "twin", folder))
    inputs = AutoTokenizer.from_pretrained(world.base)(["the cook ate warm bread"], return_tensors="pt")
    with torch.no_grad():
        first, tuned, saved = (m.classify(**inputs, head="topic") for m in (before, module.model.eval(), after))
    torch.testing.assert_close(saved.logits, tuned.logits, atol=1e-5, rtol=0)
    assert (first.logits - tuned.logits)[:, :3].abs().max() > 1e-3


def test_a_checkpoint_is_read_by_validate_and_by_the_module(world):
    checkpoint = exported(world, "read", kind="to_checkpoint", question="mood") / "twin.ckpt"
    twin = twinmerge.load(world.folder / "twin/merged")
    module = twinmerge.FinetuneModule.load_from_checkpoint(checkpoint, model=twin, weights_only=True)
    task = load_task(TaskSource(**tiny.task_source(world.folder, "mood")), 0)
    data = TextDataModule(task, world.base, batch_size=8, max_length=24)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    scores = trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)[0]
    rows = json.loads((world.folder / "twin/result.json").read_text())["rows"]
    assert scores["test/score"] == pytest.approx(rows["routed"]["tasks"]["mood"])


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"source": "nowhere"}, ["source: 'nowhere' has no twin.json; give a twin folder"]),
        (
            {"weights": {"mod": 1.0, "x": 1}},
            ["weights.mod: no task has this name; did you mean 'mood'?", "weights.x: "],
        ),
        ({"kind": "to_checkpoint", "question": "spam"}, ["question: no head is called 'spam'; Accepted: mood, topic"]),
        ({"kind": "to_checkpoint"}, ["question: expected the name of a head"]),
        ({"kind": "to_checkpoint", "question": "mood", "weights": {"mood": 1}}, ["weights: expected none"]),
        ({"kind": "from_checkpoint", "question": "mood"}, ["checkpoint: expected a path exactly for"]),
        ({"checkpoint": "x.ckpt"}, ["checkpoint: expected a path exactly for kind from_checkpoint, got 'x.ckpt'"]),
        (
            {"kind": "from_checkpoint", "question": "mood", "checkpoint": "x.ckpt"},
            ["checkpoint: no file 'x.ckpt'; give a .ckpt"],
        ),
    ],
)
def test_a_wrong_recipe_is_refused(world, changes, sentences):
    before = world.files()
    done = world.run(export(**changes), "refused")
    assert done.code == 2
    for sentence, line in zip(sentences, done.err.splitlines(), strict=True):
        assert sentence in line
    assert world.files() == before


def test_a_tampered_twin_ends_the_run(world):
    shutil.copytree(world.folder / "twin/merged", world.folder / "tampered")
    weights = world.folder / "tampered/experts/mood/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = world.run(export(source="tampered"), "ended")
    assert done.code == 1
    assert "was changed since it was saved" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (world.folder / "ended/dense").exists()


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_a_foreign_checkpoint_ends_the_run(world, content):
    file = world.folder / "foreign.ckpt"
    torch.save({"state_dict": {"x": torch.ones(1)}}, file) if content is None else file.write_bytes(content)
    out = f"foreign{content is None}"
    done = world.run(export(kind="from_checkpoint", question="mood", checkpoint=str(file)), out)
    assert done.code == 1
    assert "does not fit the twin" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (world.folder / out / "merged").exists()


def test_an_expert_becomes_a_classifier_with_its_head_and_labels(world, tmp_path):
    folder = exported(world, "own", weights={"mood": 1.0}) / "dense"  # a head on the mean, which no stock class has
    card = json.loads((folder / "expert.json").read_text())
    assert card["labels"] == ["glad", "sad"]
    twin = twinmerge.load(world.folder / "twin/merged")
    batch = AutoTokenizer.from_pretrained(folder)(["my brother wept at the dark news"], return_tensors="pt")
    from twinmerge.folders import read_folder

    body = AutoModel.from_pretrained(folder).eval()
    expert = read_folder(folder, folder, body)
    row = torch.eye(2)[[twin.tasks.index("mood")]]
    with torch.no_grad():
        wanted = twin.classify(**batch, head="mood", router_weights=row).logits[:, :2]
        torch.testing.assert_close(expert.head(body(**batch)[0], batch["attention_mask"]), wanted, atol=1e-5, rtol=1e-5)
        head = twinmerge.Head(32, 2, "first", dense=True)
        head.label_names = ["glad", "sad"]
        twin.heads["mood"] = head.eval()
        twinmerge.save(twin, world.folder / "stock", tokenizer=folder)
        mixed = {"weights": {"mood": 0.5, "topic": 0.5}, "question": "mood"}
        for out, changes in (("plain", {"weights": {"mood": 1.0}}), ("mixed", mixed)):
            made = exported(world, out, source="stock", **changes) / "dense"
            model = AutoModelForSequenceClassification.from_pretrained(made).eval()
            assert model.config.id2label == {0: "glad", 1: "sad"}
            given = torch.tensor([[changes["weights"].get(task, 0.0) for task in twin.tasks]])
            wanted = twin.classify(**batch, head="mood", router_weights=given).logits[:, :2]
            torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
    assert not (exported(world, "bare", weights=mixed["weights"]) / "dense/expert.json").exists()


def test_a_dense_classifier_of_images_brings_its_processor(world):
    base = world.folder / "seen"
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        ViTForImageClassification(config).save_pretrained(base / name)
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3)
    processor.save_pretrained(base / "base")
    twin = twinmerge.merge_folders(base / "base", {name: base / name for name in ("one", "two")}, rank={"density": 1.0})
    twinmerge.save(twin, world.folder / "routed", tokenizer=base / "base")
    dense = exported(world, "seen-dense", source="routed", weights={"one": 1.0}) / "dense"
    image = Image.effect_noise((40, 50), 60).convert("RGB")
    seen = processor(image, return_tensors="pt")
    with torch.no_grad():
        wanted = ViTForImageClassification.from_pretrained(base / "one").eval()(**seen).logits.softmax(-1)[0]
    found = {said["label"]: said["score"] for said in pipeline("image-classification", str(dense))(image)}
    assert [found[f"LABEL_{number}"] for number in range(2)] == pytest.approx(wanted.tolist(), abs=1e-4)
