"""`merge_folders` takes whole folders of CLIP and SigLIP, and trains a router from images."""

import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image

import twinmerge
from tests.twinmerge import foreign
from twinmerge.classifiers import stock_classifier
from twinmerge.errors import CheckpointError
from twinmerge.unlabelled import image_processor, read_picture

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {
    **SIZES,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 16,
}
SEEN = {**SIZES, "image_size": 16, "patch_size": 8}
MODELS = {"CLIP": {"projection_dim": 24}, "Siglip": {}}


def pair(kind, folder):
    """A whole model of texts and images, with its processor."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")
    config = model.config_class(text_config=TEXT, vision_config=SEEN | MODELS[kind], **MODELS[kind])
    model(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    foreign.tokenizer().save_pretrained(folder)
    return folder


def moved(model, folder, seed):
    foreign.moved(model, seed).eval().save_pretrained(folder)
    return folder


def images(count=4, side=16):
    return {"pixel_values": torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("kind", MODELS)
def test_whole_models_of_texts_and_images_are_bases_and_experts(tmp_path, kind):
    base = pair(kind, tmp_path / "base")
    whole = getattr(transformers, f"{kind}Model")
    classifier = getattr(transformers, f"{kind}ForImageClassification")
    tower = getattr(transformers, f"{kind}VisionModel")
    moved(whole.from_pretrained(base), tmp_path / "whole", 1)
    moved(tower.from_pretrained(base), tmp_path / "tower", 2)
    moved(classifier.from_pretrained(base, num_labels=3), tmp_path / "classifier", 3)
    adapter = get_peft_model(
        classifier.from_pretrained(base, num_labels=2),
        LoraConfig(r=2, target_modules=r"vision_model.*\.q_proj", modules_to_save=["classifier"]),
    )
    moved(adapter, tmp_path / "adapter", 4)
    names = ["whole", "tower", "classifier", "adapter"]
    twin = twinmerge.merge_folders(base, {name: tmp_path / name for name in names}, rank={"density": 1.0})
    assert type(twin).__name__ == f"Twin{kind}VisionModel"
    given = images()
    with torch.no_grad():
        states = {
            "whole": whole.from_pretrained(tmp_path / "whole").vision_model(**given).pooler_output,
            "tower": tower.from_pretrained(tmp_path / "tower")(**given).pooler_output,
        }
        for name, wanted in states.items():
            found = twin(**given, router_weights=torch.eye(4)[[names.index(name)] * 4]).pooler_output
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        logits = {
            "classifier": classifier.from_pretrained(tmp_path / "classifier")(**given).logits,
            "adapter": adapter.merge_and_unload().eval()(**given).logits,
        }
        for name, wanted in logits.items():
            row = torch.eye(4)[[names.index(name)] * 4]
            found = twin.classify(**given, head=name, router_weights=row).logits[:, : wanted.shape[1]]
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            stock_classifier(twinmerge.densify(twin, {name: 1.0}), twin.heads[name]).save_pretrained(tmp_path / "dense")
            dense = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "dense")
            assert type(dense) is classifier
            torch.testing.assert_close(dense(**given).logits, wanted, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_both_models_is_refused_with_the_way_out(tmp_path):
    base = pair("CLIP", tmp_path / "base")
    for name in ("a", "b"):
        both = get_peft_model(transformers.CLIPModel.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
        moved(both, tmp_path / name, 1)
    with pytest.raises(CheckpointError, match=r"adapts a text model too.*merge_and_unload, and give the full folder"):
        twinmerge.merge_folders(base, {name: tmp_path / name for name in ("a", "b")})


def test_an_adapter_of_a_model_around_the_tower_is_refused_and_not_left_out(tmp_path):
    base = pair("CLIP", tmp_path / "base")
    for name in ("a", "b"):
        around = transformers.CLIPVisionModelWithProjection.from_pretrained(base)
        moved(get_peft_model(around, LoraConfig(r=2, target_modules=["q_proj"])), tmp_path / name, 1)
    with pytest.raises(CheckpointError, match=r"has no place in a CLIPVisionModel of the base"):
        twinmerge.merge_folders(base, {name: tmp_path / name for name in ("a", "b")})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A ViT with its processor, two classifiers on it, and images of each task."""
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SEEN, num_labels=4, initializer_range=0.2)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "base")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "base")
    for number, name in enumerate(("red", "blue")):
        kind = transformers.ViTForImageClassification
        model = kind.from_pretrained(folder / "base", num_labels=2 + number, ignore_mismatched_sizes=True)
        moved(model, folder / name, number)
        foreign.paint(folder / f"{name}-images", 2 * number)
    return folder


def experts(world):
    return {"red": world / "red", "blue": world / "blue"}


@pytest.mark.parametrize("kind", ["knn", "linear", "mlp"])
def test_a_router_is_trained_from_images(world, tmp_path, kind):
    files = sorted((world / "blue-images").iterdir())
    opened = [Image.open(file) for file in files[:2]] + files[2:]  # files and images of PIL, or a folder
    given = {"red": str(world / "red-images"), "blue": opened}
    twin = twinmerge.merge_folders(world / "base", experts(world), router=kind, images=given, rank=4)
    reader = transformers.AutoImageProcessor.from_pretrained(world / "base")
    for number, name in enumerate(("red", "blue")):
        new = [Image.open(file) for file in sorted(foreign.paint(tmp_path / name, 2 * number, 3).iterdir())]
        inputs = reader(images=new, return_tensors="pt")
        assert twin.route(**inputs).argmax(-1).tolist() == [number] * 3


def test_images_of_files_are_read_as_the_base_does(world):
    file = sorted((world / "red-images").iterdir())[0]
    wanted = transformers.AutoImageProcessor.from_pretrained(world / "base")(Image.open(file), return_tensors="pt")
    processor = image_processor(world / "base")
    for one in (str(file), Image.open(file)):
        torch.testing.assert_close(read_picture(processor, one), wanted["pixel_values"])


def test_what_no_router_of_images_can_be_made_from_is_said_at_once(world, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = {"red": str(world / "red-images"), "blue": str(world / "blue-images")}
    some = sorted((world / "blue-images").iterdir())
    for given, said in (
        ({"images": good}, "images are what a router is made from, and router is None"),
        ({"router": "knn", "images": {"red": good["red"]}}, "needs images of every task, at least two each"),
        ({"router": "knn", "images": {**good, "green": good["red"]}}, "images are given for 'green', which is no task"),
        ({"router": "knn", "images": {**good, "red": "nowhere"}}, "images of 'red': nowhere is no folder"),
        ({"router": "knn", "images": {**good, "red": tmp_path / "none"}}, "at least two of every task, got 0"),
        ({"router": "knn", "images": {**good, "red": [some[0], tmp_path / "bad.png"]}}, r"bad.png cannot be read"),
        ({"router": "knn", "images": {**good, "red": [some[0], "gone.png"]}}, "gone.png cannot be read"),
        (
            {"router": "knn", "images": {**good, "red": [3, 4]}},
            "images: expected a mapping from text to text or a Path",
        ),
        ({"router": "knn", "images": good, "texts": {"red": ["a", "b"]}}, "texts and images are given"),
        ({"router": "knn"}, "needs texts of every task, .* or images="),
    ):
        with pytest.raises(ValueError, match=said):
            twinmerge.merge_folders("nowhere", {"red": "one", "blue": "two"}, **given)
    texts = {"red": ["a", "b"], "blue": ["c", "d"]}
    with pytest.raises(ValueError, match="texts are given and the base, a ViTModel, reads images; give images"):
        twinmerge.merge_folders(world / "base", experts(world), router="knn", texts=texts)


def test_a_processor_that_does_not_fit_its_model_is_said(world, tmp_path):
    good = {"red": str(world / "red-images"), "blue": str(world / "blue-images")}
    base = tmp_path / "base"
    transformers.ViTForImageClassification.from_pretrained(world / "base").save_pretrained(base)
    with pytest.raises(CheckpointError, match="has no image processor"):
        twinmerge.merge_folders(base, experts(world), router="knn", images=good)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(base)
    with pytest.raises(CheckpointError, match="takes no images of 3 x 24 x 24 numbers, as its image processor makes"):
        twinmerge.merge_folders(base, experts(world), router="knn", images=good)


def test_an_expert_that_sees_other_images_than_the_base_is_refused(world, tmp_path):
    reader, place = transformers.ViTImageProcessor, tmp_path / "red"
    side = {"size": {"height": 16, "width": 16}}
    shutil.copytree(world / "red", place)
    for own, said in (
        (
            {"size": {"height": 24, "width": 24}},
            "of one image its processor makes 3 x 24 x 24 numbers, and here 3 x 16",
        ),
        ({**side, "image_mean": [0.1] * 3, "image_std": [0.3] * 3}, "numbers that differ by up to"),
        (side, ""),
    ):
        reader(**own).save_pretrained(place)
        given = {"red": place, "blue": world / "blue"}
        if said:
            with pytest.raises(CheckpointError, match=said):
                twinmerge.merge_folders(world / "base", given, rank=4)
        else:
            assert twinmerge.merge_folders(world / "base", given, rank=4).tasks == ["red", "blue"]


@pytest.mark.parametrize("given", ["hub/name", "folder"])
def test_a_twin_of_images_takes_the_processor_of_a_name(world, tmp_path, given, monkeypatch):
    twin = twinmerge.merge_folders(world / "base", experts(world), rank=4)
    asked = transformers.AutoImageProcessor.from_pretrained(world / "base")
    fetched = lambda name, **_: asked if name == "hub/name" else None  # noqa: E731
    if given == "hub/name":
        monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fetched)
    folder = twinmerge.save(twin, tmp_path / "twin", tokenizer="hub/name" if given == "hub/name" else world / "base")
    monkeypatch.undo()
    again = transformers.AutoImageProcessor.from_pretrained(folder)
    file = Image.open(sorted((world / "red-images").iterdir())[0])
    found, wanted = (reader(file, return_tensors="pt")["pixel_values"] for reader in (again, asked))
    torch.testing.assert_close(found, wanted)


def test_a_processor_that_cannot_be_fetched_is_called_one(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    twin = twinmerge.merge_folders(world / "base", experts(world), rank=4)
    with pytest.raises(ValueError, match="image processor 'no/where' is no folder, and cannot be fetched"):
        twinmerge.save(twin, tmp_path / "twin", tokenizer="no/where")


def test_the_trainer_of_transformers_gives_a_twin_its_images(world, tmp_path):
    twin = twinmerge.merge_folders(world / "base", experts(world), rank=4)
    folder = twinmerge.save(twin, tmp_path / "twin")
    kind = transformers.AutoModelForImageClassification
    model = kind.from_pretrained(folder, trust_remote_code=True, head="red")
    rows = [{"pixel_values": pixels, "labels": number % 2} for number, pixels in enumerate(images()["pixel_values"])]
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    model.router = twinmerge.Router(32, 2, kind="linear")
    before = model.heads["red"].out_proj.weight.clone()
    for parameter in model.heads["red"].parameters():
        parameter.requires_grad = True
    arguments = transformers.TrainingArguments(tmp_path / "run", **options)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert not torch.equal(model.heads["red"].out_proj.weight, before)


BODIES = {
    "Dinov2": {name: value for name, value in SEEN.items() if name != "intermediate_size"},
    "Beit": SEEN,  # relative positions: nothing of its layers has factors of PEFT's form
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


@pytest.mark.parametrize("kind", [*BODIES, "test_vit.r160_in1k", "test_convnext.r160_in1k"])
def test_plain_peft_reads_every_expert_of_a_twin_of_images(kind, tmp_path):
    torch.manual_seed(0)
    if kind in BODIES:
        config = getattr(transformers, f"{kind}Config")(**BODIES[kind])
        model = getattr(transformers, f"{kind}Model")(config)
    else:
        model = transformers.TimmWrapperModel(transformers.TimmWrapperConfig(architecture=kind))
    model.save_pretrained(tmp_path / "base")
    for seed, task in enumerate("ab"):
        moved(transformers.AutoModel.from_pretrained(tmp_path / "base"), tmp_path / task, seed)
    twin = twinmerge.merge_folders(tmp_path / "base", {task: tmp_path / task for task in "ab"}, rank={"density": 1.0})
    folder, given = twinmerge.save(twin, tmp_path / "twin"), images(2, 16 if kind in BODIES else 160)
    for task in "ab":
        shared = transformers.AutoModel.from_pretrained(folder)
        peft = PeftModel.from_pretrained(shared, folder / "experts" / task).eval()
        wanted = transformers.AutoModel.from_pretrained(tmp_path / task).eval()
        with torch.no_grad():
            found, wanted = (model(**given).last_hidden_state for model in (peft, wanted))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_processor_that_cannot_be_read_is_no_missing_one(world, tmp_path):
    """It was taken for none, and the expert's images went uncompared."""
    expert = shutil.copytree(world / "red", tmp_path / "red")
    (expert / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="has no image processor"):
        twinmerge.merge_folders(world / "base", experts(world) | {"red": expert})
