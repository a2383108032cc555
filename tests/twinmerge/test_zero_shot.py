"""Heads of class names give the logits of CLIP and SigLIP, and towers with them are merged by the recipe."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import twinmerge
from benchmarks import families
from recipes.data.task_source import TaskSource
from recipes.fields import FieldError
from recipes.merge.schema import Recipe, Training
from recipes.merge.zero_shot import with_zero_shot
from tests.recipes.merge.test_images import paint
from tests.recipes.tiny import World
from tests.twinmerge import foreign, tiny
from twinmerge import Head, attach, merge, zero_shot_head
from twinmerge.folders import Expert
from twinmerge.states import states_of

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def pair(kind: str) -> Any:
    text = SIZES | {
        "vocab_size": 64,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    image = SIZES | {"image_size": 16, "patch_size": 8}
    names = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
    own = {"projection_dim": 24} if kind == "clip" else {}
    if kind == "siglip":
        text["projection_size"] = 32
    config = names[kind].config_class(text_config=text | own, vision_config=image | own, **own)
    return tiny.make(names[kind], config)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_zero_shot_head_gives_the_models_own_logits(kind: str) -> None:
    model, tokenizer, labels = pair(kind), foreign.tokenizer(), ["word3", "word5", "word9"]
    tokenizer.model_max_length = 16
    head = zero_shot_head(model, tokenizer, labels, ["word7 {}"])
    padding = "max_length" if kind == "siglip" else True
    texts = tokenizer([f"word7 {n}" for n in labels], return_tensors="pt", padding=padding, truncation=True)
    texts = {k: v for k, v in texts.items() if k != "token_type_ids"}
    x = tiny.images()["pixel_values"]
    tower = model.vision_model
    with torch.no_grad():
        wanted = model(pixel_values=x, **texts).logits_per_image
        got = head(states_of(tower, tower(pixel_values=x)))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    again = Head.from_tensors(head.state_dict(), head.spec())
    with torch.no_grad():
        torch.testing.assert_close(again(states_of(tower, tower(pixel_values=x))), got)
    assert head.label_names == labels


def test_texts_are_as_long_as_the_model_was_made_for() -> None:
    model, tokenizer = pair("siglip"), foreign.tokenizer()  # which does not say how long
    head = zero_shot_head(model, tokenizer, ["word3", "word5"], ["word7 {}"])
    long = zero_shot_head(pair("clip"), tokenizer, ["word3"], [" ".join(["word7"] * 40) + " {}"])
    assert long.out_proj.weight.isfinite().all()
    tokenizer.model_max_length = 16
    wanted = zero_shot_head(model, tokenizer, ["word3", "word5"], ["word7 {}"])
    torch.testing.assert_close(head.out_proj.weight, wanted.out_proj.weight)


def test_a_zero_shot_head_of_align_divides_by_its_temperature() -> None:
    image = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
    text = SIZES | {"vocab_size": 64, "max_position_embeddings": 16}
    kind = transformers.AlignModel
    model = tiny.make(kind, kind.config_class(text_config=text, vision_config=image, projection_dim=80))
    tokenizer, labels, x = foreign.tokenizer(), ["word3", "word5"], torch.randn(2, 3, 32, 32)
    head = zero_shot_head(model, tokenizer, labels, ["word7 {}"])
    texts = tokenizer([f"word7 {n}" for n in labels], return_tensors="pt", padding=True)
    texts = {k: v for k, v in texts.items() if k != "token_type_ids"}
    with torch.no_grad():
        wanted = model(pixel_values=x, **texts).logits_per_image
        got = head(states_of(model.vision_model, model.vision_model(pixel_values=x)))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="compares every image of a batch with every text"):
        attach(model, ["a"], [{}])


def test_what_names_no_classes_is_refused() -> None:
    model, tokenizer = pair("clip"), foreign.tokenizer()
    with pytest.raises(ValueError, match="reads no texts; give the whole CLIP"):
        zero_shot_head(tiny.vit(), tokenizer, ["a"])
    with pytest.raises(ValueError, match="no label is given"):
        zero_shot_head(model, tokenizer, [])
    with pytest.raises(ValueError, match="has no place for a name"):
        zero_shot_head(model, tokenizer, ["a"], ["a photo"])
    with pytest.raises(ValueError, match=r"compares every image of a batch with every text.*attach its vision_model"):
        attach(model, ["a"], [{}])


def test_a_twin_of_towers_answers_with_names(tmp_path: Path) -> None:
    model, tokenizer = pair("clip"), foreign.tokenizer()
    tower = copy.deepcopy(model.vision_model)
    inputs = tiny.images()
    experts = families.fine_tuned(tower, inputs)
    twin, _ = merge(tower, experts, "average", rank={"density": 1.0})
    twin.heads["t0"] = zero_shot_head(model, tokenizer, ["word3", "word5"], ["word7 {}"])
    folder = twinmerge.save(twin.eval(), tmp_path / "twin")
    weights = tiny.mixtures(4)
    with torch.no_grad():
        wanted = twin.classify(**inputs, head="t0", router_weights=weights).logits
        got = twinmerge.load(folder).classify(**inputs, head="t0", router_weights=weights).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_towers_without_heads_are_merged_by_the_recipe(tmp_path: Path) -> None:
    world = World(tmp_path)
    model, tokenizer = pair("clip"), foreign.tokenizer()
    tokenizer.model_max_length = 16
    base = tmp_path / "clip"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    size = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(base)
    states = families.fine_tuned(model.vision_model, tiny.images())
    tasks = []
    for name, state in zip(("colours", "shades"), states.values(), strict=False):
        expert = transformers.CLIPVisionModel(model.config.vision_config)
        expert.load_state_dict(state, strict=False)
        expert.save_pretrained(tmp_path / f"{name}-expert")
        tasks.append({"name": name, "kind": "images", "source": "folder", "path": str(paint(tmp_path / name))})
    recipe = world.recipe("merge", base=str(base)) | {
        "tasks": tasks,
        "experts": {name: str(tmp_path / f"{name}-expert") for name in ("colours", "shades")},
        "training": {"heads": "zeroshot", "templates": ["word7 {}"]},
        "baselines": {"scales": [0.5], "probe": False},
    }
    done = world.run(recipe, "run")
    assert done.code == 0, done.err
    twin = twinmerge.load(tmp_path / "run" / "merged")
    assert type(twin).__name__ == "TwinCLIPVisionModel"
    assert twin.heads["colours"].label_names == ["blue", "green", "red"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["rows"]["routed"]["normalised"] > 0
    lacking = recipe | {"experts": {"colours": recipe["experts"]["colours"]}}
    assert "expected one for every task with zero-shot heads" in world.run(lacking, "lacking", "--check").err


def test_sentences_are_the_tasks_own_and_the_text_model_that_of_a_whole_expert(tmp_path: Path) -> None:
    model, tokenizer = pair("clip"), foreign.tokenizer()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    model.vision_model.save_pretrained(tmp_path / "tower")
    tuned = foreign.moved(copy.deepcopy(model), 3)  # the text model too
    tuned.save_pretrained(tmp_path / "whole")
    files = {"kind": "images", "source": "folder", "path": str(tmp_path)}
    sources = [TaskSource(name="tower", **files), TaskSource(name="whole", templates=["word9 {}", "{} word8"], **files)]  # type: ignore[arg-type]
    recipe = Recipe(
        base=str(tmp_path / "base"),
        tasks=sources,
        experts={name: str(tmp_path / name) for name in ("tower", "whole")},
        training=Training(heads="zeroshot", templates=["word7 {}"]),
    )
    labels = ["word3", "word5"]
    tasks: Any = [SimpleNamespace(name=source.name, labels=labels) for source in sources]
    plain = Expert({}, {}, None, None, "", 0)
    found = with_zero_shot(recipe, tasks, {"tower": plain, "whole": plain})
    wanted = {
        "tower": zero_shot_head(model, tokenizer, labels, ["word7 {}"]),
        "whole": zero_shot_head(tuned, tokenizer, labels, ["word9 {}", "{} word8"]),
    }
    for name, head in wanted.items():
        got = found[name].head
        assert got is not None
        torch.testing.assert_close(got.out_proj.weight, head.out_proj.weight)


def test_sentences_that_no_head_reads_are_refused() -> None:
    with pytest.raises(FieldError, match=r"expected {} for the name of a class in it, got 'a photo'"):
        TaskSource(name="mnist", kind="images", templates=["a photo"])
    with pytest.raises(FieldError, match="templates: expected none for kind 'classification'"):
        TaskSource(name="mood", source="csv", path="x.csv", templates=["a {}"])
    tasks = [TaskSource(name=name, kind="images", templates=["a {}"]) for name in ("mnist", "digits")]
    with pytest.raises(
        FieldError, match=r"tasks.0.templates: expected none with trained heads, which read no sentences"
    ):
        Recipe(tasks=tasks)
