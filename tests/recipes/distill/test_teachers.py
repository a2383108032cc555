"""Several teachers, a routed twin, hints by module, the report's measures, and students in transformers' pipeline."""

import csv
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import twinmerge
from distill.networks import ImageNetwork, image_model
from tests.recipes import tiny
from tests.recipes.distill.test_language import language, save_llama
from tests.recipes.distill.test_recipe import rows, saved_teacher, shipped, texts
from twinmerge import Head, attach

pytestmark = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    return tiny.World(tmp_path_factory.mktemp("teachers"))


def twin(world):
    """A twin of two tasks whose head for the mood is trained: what it says is far from chance."""
    place = world.folder / "twin"
    if place.exists():
        return place
    model = transformers.AutoModel.from_pretrained(world.base).eval()
    draw = torch.Generator().manual_seed(0)
    name = "encoder.layer.0.attention.self.query.weight"
    factors = [{name: (0.1 * torch.randn(32, 2, generator=draw), torch.randn(2, 32, generator=draw))} for _ in "ab"]
    torch.manual_seed(0)
    made = attach(model, ["mood", "topic"], factors, twinmerge.Router(32, 2, "linear"))
    made.heads.update({"mood": Head(32, 2), "topic": Head(32, 3)})
    words = transformers.AutoTokenizer.from_pretrained(world.base)
    told = tiny.sentences("mood", 120)
    batch = dict(words([text for text, _ in told], padding=True, return_tensors="pt", return_token_type_ids=False))
    truth = torch.tensor([["sad", "glad"].index(label) for _, label in told])
    optimizer = torch.optim.Adam(made.heads["mood"].parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        logits = made.classify(**batch, head="mood").logits[:, :2]
        torch.nn.functional.cross_entropy(logits, truth).backward()
        optimizer.step()
    twinmerge.save(made.eval(), place, tokenizer=world.base, labels={"mood": ["sad", "glad"]})
    return place


def test_a_routed_twin_and_another_teach_together(world):
    other = saved_teacher(world, "reversed", ["sad", "glad"])
    routed = {"model": str(twin(world)), "options": {"head": "mood"}, "weight": 3.0}
    recipe = texts(world, teacher=routed | {"others": [other]}, methods={"kd": {"kd": {}}})
    recipe["changes"] |= {"epochs": 1}
    done = world.run(recipe, "together")
    assert done.code == 0, done.err
    found = rows(world, "together")
    assert set(found) == {"teacher", "kd"}
    assert found["teacher"]["accuracy"] > 0.9  # both are read by the names of their classes
    wrong = world.run(texts(world, teacher={"model": str(twin(world))}), "x", "--check")
    assert "teacher.options.head: expected one of mood, topic of the twin" in wrong.err
    small = world.run(texts(world, student={"model": str(twin(world))}), "x", "--check")
    assert "is a twin folder; give its base, or a smaller model" in small.err
    three = world.run(texts(world, teacher=routed | {"options": {"head": "topic"}}), "three")
    assert three.code == 1
    assert "tells 3 classes apart by its head, but the data has 2; choose the head of this task" in three.err


def test_hints_by_module_and_several_teachers_of_images(world):
    recipe = shipped("distill_tiny.yaml", teacher={"others": [{"model": "small_cnn_4", "options": {"in_chans": 1}}]})
    recipe["methods"] = {"kd": {}}
    recipe["changes"] |= {"epochs": 1}
    done = world.run(recipe, "both")
    assert done.code == 0, done.err
    assert set(rows(world, "both")) == {"teacher", "kd"}
    recipe["methods"] = {"h": {"hard": {}, "fitnet": {}}}
    refused = world.run(recipe, "x", "--check")
    assert "methods.h: " in refused.err
    hinted = shipped("distill_tiny.yaml")
    names = [name for name, _ in image_model("small_cnn_4", 10, in_chans=1).named_modules() if name]
    hinted["methods"] = {"h": {"hard": {}, "hint": {"student": names[1], "teacher": names[1], "weight": 0.1}}}
    hinted["changes"] |= {"epochs": 1}
    done = world.run(hinted, "hinted")
    assert done.code == 0, done.err
    hinted["methods"]["h"]["hint"]["teacher"] = "nowhere"
    refused = world.run(hinted, "x", "--check")
    assert refused.code == 2
    assert "methods.h: SmallCNN has no module 'nowhere'" in refused.err


def test_the_report_tells_what_networks_cost_and_confuse(world):
    if not (world.folder / "both").exists():
        pytest.skip("the test before did not run")
    recipe = shipped("distill_tiny.yaml")
    recipe["methods"], recipe["changes"] = {"kd": {}}, recipe["changes"] | {"epochs": 1}
    assert world.run(recipe, "told").code == 0
    result = json.loads((world.folder / "told/result.json").read_text())
    assert set(result["networks"]) == {"teacher", "kd"}
    model = image_model("small_cnn_4", 10, in_chans=1)
    student = result["networks"]["kd"]
    assert student["parameters_millions"] == sum(p.numel() for p in model.parameters()) / 1e6
    counted = 0  # two times the multiplications of every convolution and linear layer of one 8 x 8 image

    def count(layer, inputs, output):
        nonlocal counted
        each = layer.weight[0].numel() * (1 if isinstance(layer, torch.nn.Linear) else output[0, 0].numel())
        counted += 2 * each * layer.weight.shape[0]

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    model.eval()(torch.zeros(1, 1, 8, 8))
    assert student["gflops_per_input"] == pytest.approx(counted / 1e9)
    assert 0 < student["ms_per_input"] < 1000
    with (world.folder / "told/figures/confusion_kd.csv").open() as file:
        told = list(csv.reader(file))
    counts = np.array([[int(n) for n in row[1:]] for row in told[1:]])
    assert counts.sum() == 128
    assert np.trace(counts) / 128 == pytest.approx(result["rows"]["kd"]["accuracy"])
    page = (world.folder / "told/report.html").read_text().replace("<wbr>", "")  # where a name may be broken
    assert "gflops_per_input" in page
    assert "confusion_teacher" in page


def test_a_student_of_timm_answers_in_a_pipeline(world):
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog", "emu"):
            folder = world.folder / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    recipe = shipped("distill_tiny.yaml", data={"source": "folder", "path": str(world.folder / "pets"), "classes": 3})
    recipe["data"] |= {"grey": False, "rows": 0, "test_rows": 0}
    recipe["teacher"] = {"model": ""}
    recipe["student"] = {"model": "resnet10t", "options": {"stem_width": 8}}
    recipe["methods"] = {"ce": {"hard": {}}}
    recipe["changes"] |= {"image_size": 32, "batch_size": 4, "epochs": 1, "test_crop": 1.0}
    done = world.run(recipe, "pets_run")
    assert done.code == 0, done.err
    place = world.folder / "pets_run/students/ce"
    told = transformers.pipeline("image-classification", str(place / "model"), device="cpu")
    picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    said = {answer["label"]: answer["score"] for answer in told(picture)}
    model = image_model("resnet10t", 3, 32, stem_width=8)
    model.load_state_dict(load_file(place / "network.safetensors"))
    cfg = json.loads((place / "model/config.json").read_text())["pretrained_cfg"]
    network = ImageNetwork(model.eval(), tuple(cfg["mean"]), tuple(cfg["std"]))
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        wanted = network({"images": pixels}).logits.softmax(-1)[0].tolist()
    assert said == pytest.approx(dict(zip(["cat", "dog", "emu"], wanted, strict=True)), abs=1e-4)


def test_a_language_student_speaks_in_a_pipeline(world):
    for name, width in (("base", 32), ("small", 16)):
        if name == "small":
            tiny.save_base(world.folder / "small")
        save_llama(world.folder / name, width, 0)
    for i in range(4):
        text = "\n".join(sentence for sentence, _ in tiny.sentences("mood", 30, seed=i))
        (world.folder / f"text{i}.txt").write_text(text, encoding="utf-8")
    done = world.run(language(world), "speaks")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "speaks/result.json").read_text())
    assert result["networks"]["kd"]["gflops_per_input"] < result["networks"]["teacher"]["gflops_per_input"]
    place = str(world.folder / "speaks/students/kd/model")
    speak = transformers.pipeline("text-generation", place, device="cpu", dtype=torch.float32)
    assert speak("the cook was", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("the cook was")
