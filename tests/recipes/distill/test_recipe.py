"""Distillation through the real command: pictures, texts, language, the stronger recipes, every refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from distill.small import small_model
from tests.recipes import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*right on .* of the (validation|test) rows.*"
)  # tiny teachers are weak
SHIPPED = Path(tiny.ROOT) / "recipes" / "distill"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    return tiny.World(tmp_path_factory.mktemp("distill"))


def shipped(name, **changes):
    recipe = yaml.safe_load((SHIPPED / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and key in recipe else value
    return recipe


def rows(world, out):
    return json.loads((world.folder / out / "result.json").read_text())["rows"]


def pictures(path, classes, side=40):
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in range(classes):
            folder = path / split / f"class{name}"
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return str(path)


def test_digits_side_by_side(world):
    done = world.run(shipped("distill_tiny.yaml"), "digits")
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    found = rows(world, "digits")
    assert set(found) == {"teacher", "ce", "kd", "dist"}
    assert set(found["kd"]) >= {"accuracy", "loss", "agreement", "kl"}
    for name in ("kd", "dist"):
        model = small_model("small_cnn_4", 10, in_chans=1)
        model.load_state_dict(load_file(world.folder / "digits/students" / name / "network.safetensors"))
    header = (world.folder / "digits/metrics.csv").read_text().splitlines()[0]
    assert "test/kd/agreement" in header
    assert "gradient/kd/hard" in header


def test_a_trained_teacher_is_not_trained_again(world):
    recipe = shipped("distill_tiny.yaml", methods={"kd": {}})
    recipe["methods"] = {"kd": {}}
    assert world.run(recipe, "again").code == 0
    before = rows(world, "again")
    (world.folder / "again/result.json").unlink()
    done = world.run(recipe, "again", "--resume")
    assert done.code == 0, done.err
    assert "train teacher" not in done.out + done.err
    assert rows(world, "again") == before


def texts(world, **changes):
    recipe = {
        "recipe": "distill",
        "name": "texts",
        "teacher": {"model": str(world.base), "train": True},
        "student": {"model": str(world.base), "options": {"num_hidden_layers": 1}},
        "data": {"source": "task", "task": tiny.task_source(world.folder, "mood"), "length": 24},
        "changes": {
            "epochs": 3,
            "batch_size": 8,
            "optimizer": "adamw",
            "learning_rate": 3.0e-3,
            "schedule_on": "update",
            "warmup_epochs": 0,
            "hard": "ce",
        },
        "methods": {"ce": {}, "kd": {"hard": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 2.0}}},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    return {**recipe, **changes}


def test_texts_learn_from_a_fine_tuned_teacher(world):
    from transformers import AutoModelForSequenceClassification

    recipe = texts(world, student={"model": str(world.base)})
    recipe["changes"]["epochs"] = 5
    done = world.run(recipe, "texts")
    assert done.code == 0, done.err
    found = rows(world, "texts")
    assert found["teacher"]["accuracy"] > 0.9
    assert found["kd"]["accuracy"] > 0.8
    assert found["kd"]["agreement"] > 0.8
    assert found["teacher"].keys() >= {"accuracy", "loss"}
    student = AutoModelForSequenceClassification.from_pretrained(world.folder / "texts/students/kd/model")
    assert student.config.num_hidden_layers == 2


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> tiny.World:
    made = tiny.World(tmp_path_factory.mktemp("language"))
    words = json.loads((made.base / "tokenizer.json").read_text())["model"]["vocab"]
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(made.base)
    for i in range(12):
        text = "\n".join(sentence for sentence, _ in tiny.sentences("mood", 30, seed=i))
        (made.folder / f"text{i}.txt").write_text(text, encoding="utf-8")
    return made


@pytest.mark.parametrize("chunk", [0, 64])
def test_language_in_chunks_and_whole(language, chunk):
    recipe = texts(
        language,
        data={"source": "files", "path": str(language.folder), "pattern": "text*.txt", "length": 16, "rows": 64},
        methods={"ce": {"hard": {}}, "kd": {"hard": {"weight": 0.5}, "kd": {"weight": 0.5}}},
        chunk=chunk,
    )
    done = language.run(recipe, f"lm{chunk}")
    assert done.code == 0, done.err
    found = rows(language, f"lm{chunk}")
    assert found["kd"]["kl"] < found["ce"]["kl"] + 0.05
    assert found["teacher"]["loss"] < 4.0
    if chunk:  # the same training, in chunks and whole
        assert found["kd"]["loss"] == pytest.approx(rows(language, "lm0")["kd"]["loss"], rel=1e-3)


def test_a_model_whose_logits_are_more_than_a_head_is_not_chunked(language):
    bert = tiny.save_base(language.folder / "bert", causal=True)
    recipe = texts(
        language,
        teacher={"model": str(bert)},
        student={"model": str(bert)},
        data={"source": "files", "path": str(language.folder), "pattern": "text*.txt", "length": 16, "rows": 16},
        methods={"kd": {"kd": {}}},
    )
    done = language.run(recipe, "bert_chunks")
    assert done.code == 1
    assert "the logits of BertLMHeadModel are not its last hidden state times its head; set chunk to 0" in done.err


@pytest.mark.parametrize("name", ["a1", pytest.param("a2", marks=pytest.mark.slow)])
def test_stronger_recipes_build_the_real_models(world, name):
    path = world.folder / f"imagenet_{name}"
    (path / "train").mkdir(parents=True)
    recipe = shipped(f"distill_imagenet_{name}.yaml", data={"path": str(path)})
    if not torch.cuda.is_available():  # the recipe names eight of them
        refused = world.run(recipe, f"check_{name}", "--check")
        assert refused.code == 2
        assert "trainer: this machine has no gpu that torch can use; check and run where there is one" in refused.err
    recipe["trainer"] = {"accelerator": "cpu", "devices": 8, "strategy": "ddp", "precision": "bf16-mixed"}
    empty = world.run(recipe, f"check_{name}", "--check")
    assert empty.code == 2
    assert "train holds no images; put them into one folder a class, as in train/cat/1.jpg" in empty.err
    for number in range(1000):
        (path / "train" / f"n{number:08d}").mkdir()
        for image in range(3):
            (path / "train" / f"n{number:08d}" / f"{image}.png").touch()  # listed, not opened
    done = world.run(recipe, f"check_{name}", "--check")
    assert done.code == 0, done.err
    assert "student resnet50: 25.56 M parameters, 224 px, 1000 classes" in done.out
    assert "teacher beitv2_base_patch16_224.in1k_ft_in22k_in1k: 86.5" in done.out
    epochs = {"a1": 600, "a2": 300}[name]
    assert f"{epochs} epochs, 2048 rows an update, lamb at 0.005, cosine" in done.out


@pytest.mark.parametrize("name", ["a1", "a2"])
def test_stronger_recipes_take_two_steps_on_tiny_images(world, name):
    recipe = shipped(
        f"distill_imagenet_{name}.yaml",
        data={"path": pictures(world.folder / f"pictures_{name}", 4), "classes": 4, "workers": 0},
        teacher={"options": {"pretrained": False}},
        changes={"image_size": 32, "batch_size": 4},
        compiled=False,
    )
    recipe["trainer"] = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "limit_test_batches": 1}
    recipe["trainer"] |= {"limit_val_batches": 1, "enable_checkpointing": False}
    done = world.run(recipe, f"steps_{name}")
    assert done.code == 0, done.err
    assert 0 <= rows(world, f"steps_{name}")["kd"]["agreement"] <= 1
    assert (world.folder / f"steps_{name}/students/kd/network.safetensors").stat().st_size > 90e6


def test_the_previous_protocol_takes_two_steps(world):
    recipe = shipped(
        "distill_cifar100_previous.yaml",
        data={"source": "folder", "path": pictures(world.folder / "cifar_pictures", 3, 32), "classes": 3, "workers": 0},
        changes={"batch_size": 4},
    )
    recipe["trainer"] = {"accelerator": "cpu", "devices": 1, "max_steps": 2}
    done = world.run(recipe, "cifar")
    assert done.code == 0, done.err
    assert set(rows(world, "cifar")) == {"teacher", "ce", "kd", "dkd", "dist"}
    (world.folder / "cifar/result.json").unlink()
    (world.folder / "cifar_pictures/train/class0/3.png").rename(world.folder / "cifar_pictures/train/class1/4.png")
    done = world.run(recipe, "cifar", "--resume")
    assert done.code == 2
    assert f"{world.folder}/cifar_pictures/train has changed since the run was started; put it back" in done.err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"regime": "A3"}, "regime: no regime is called 'A3'; accepted are A2, A1"),
        ({"changes": {"epoch": 2}}, "changes: a regime has no 'epoch'; did you mean 'epochs'?"),
        ({"methods": {"kdd": {}}}, "no method is called 'kdd' for previous_cifar; did you mean 'kd'?"),
        ({"methods": {"kd": {"kd": {"weight": -1.0}}}}, "methods.kd: weight of kd is -1.0, but it must be"),
        ({"student": {"model": "small_cn"}}, "student.model: timm has no model 'small_cn'"),
        ({"teacher": {"model": "resnet18", "options": {}}}, "teacher.model: the image size is 8, but resnet18 shrinks"),
        ({"teacher": {"model": "", "train": False}}, "teacher.model: methods.kd needs a teacher, got none"),
        ({"data": {"source": "folder", "path": "nowhere"}}, "data.path: 'nowhere' does not exist"),
        ({"data": {"source": "task"}}, "data.task: expected a text task with source task"),
        ({"lora_rank": -1}, "lora_rank: expected a whole number >= 0, got -1"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(world, changes, sentence):
    recipe = shipped("distill_tiny.yaml", **changes)
    if "methods" in changes:
        recipe["methods"] = changes["methods"]
    elif "model" in changes.get("teacher", {}) and not changes["teacher"]["model"]:
        recipe["methods"] = {"kd": {}}
    done = world.run(recipe, "refused")
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not (world.folder / "refused").exists()


def test_data_that_do_not_fit_are_refused_before_the_run(world):
    recipe = shipped("distill_tiny.yaml", data={"classes": 9})
    done = world.run(recipe, "outside")
    assert done.code == 2
    assert "labels go from 0 to 9, but there are 9 classes" in done.err
    (world.folder / "empty/train/cat").mkdir(parents=True)
    recipe = shipped("distill_tiny.yaml", data={"source": "folder", "path": str(world.folder / "empty"), "classes": 9})
    done = world.run(recipe, "emptied")
    assert done.code == 2
    assert "holds no images; put them into one folder a class" in done.err


def test_different_tokenizers_are_refused(world):
    from transformers import PreTrainedTokenizerFast

    other = tiny.save_base(world.folder / "other", words=3)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["happy"], vocabulary["joy"] = vocabulary["joy"], vocabulary["happy"]
    file.write_text(json.dumps(content))
    assert PreTrainedTokenizerFast.from_pretrained(other)
    done = world.run(texts(world, student={"model": str(other)}), "tokens")
    assert done.code == 2
    assert "the teacher's and the student's tokenizers differ" in done.err


def test_a_student_with_other_classes_than_its_teacher_is_refused(world):
    from transformers import AutoModelForSequenceClassification

    three = AutoModelForSequenceClassification.from_pretrained(world.base, num_labels=3)
    three.save_pretrained(world.folder / "three")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (world.folder / "three" / name).write_bytes((world.base / name).read_bytes())
    teacher = {"model": str(world.folder / "three"), "options": {"num_labels": 3}}
    done = world.run(texts(world, teacher=teacher), "classes")
    assert done.code == 2
    assert "three tells 3 classes apart, but the data has 2: glad, sad; give a teacher of these" in done.err
    assert torch.isfinite(three.classifier.weight).all()


def saved_teacher(world, name, labels, seed=0, **more):
    """A teacher as anyone saves one: plain transformers, trained on the task with labels in an order of its own."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = world.folder / name
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(world.base, num_labels=2, **named)
        tokenizer = AutoTokenizer.from_pretrained(world.base)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        order = more.get("order", labels)
        rows = tiny.sentences("mood", 150)
        for _ in range(4):
            for i in range(0, len(rows), 30):
                batch = tokenizer([text for text, _ in rows[i : i + 30]], padding=True, return_tensors="pt")
                wanted = torch.tensor([order.index(label) for _, label in rows[i : i + 30]])
                optimizer.zero_grad()
                model(**batch, labels=wanted).loss.backward()
                optimizer.step()
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return {"model": str(place)}


def test_a_teacher_with_its_classes_in_another_order_is_read_by_name(world):
    from transformers import pipeline

    teacher = saved_teacher(world, "reversed", ["sad", "glad"])
    checked = world.run(texts(world, teacher=teacher), "by_name", "--check")
    assert checked.code == 0
    assert "teacher's classes: glad, sad, brought into this order by name" in checked.out
    recipe = texts(world, teacher=teacher, student={"model": str(world.base)})
    recipe["changes"]["epochs"] = 5
    done = world.run(recipe, "by_name")
    assert done.code == 0, done.err
    found = rows(world, "by_name")
    assert found["teacher"]["accuracy"] > 0.9
    assert found["kd"]["accuracy"] > 0.8
    student = pipeline("text-classification", str(world.folder / "by_name/students/kd/model"))
    texts_, labels = zip(*tiny.sentences("mood", 40, seed=9), strict=True)
    said = [answer["label"] for answer in student(list(texts_))]
    assert sum(a == b for a, b in zip(said, labels, strict=True)) > 32


def test_a_teacher_of_other_classes_is_refused_before_anything_runs(world):
    teacher = saved_teacher(world, "others", ["happy", "unhappy"], order=["glad", "sad"])
    done = world.run(texts(world, teacher=teacher), "others_out", "--check")
    assert done.code == 2
    assert "teacher.model: the teacher knows the classes happy, unhappy, but the data has glad, sad" in done.err
    renamed = {**teacher, "options": {"id2label": {"0": "glad", "1": "sad"}, "label2id": {"glad": 0, "sad": 1}}}
    assert world.run(texts(world, teacher=renamed), "others_out", "--check").code == 0


def test_a_teacher_without_names_in_another_order_is_doubted(world):
    teacher = saved_teacher(world, "unnamed", None, order=["sad", "glad"])
    done = world.run(texts(world, teacher=teacher), "doubted", "--check")
    assert "without common names, taken in the order glad, sad" in done.out
    with pytest.warns(UserWarning, match="no more than always giving their commonest label"):
        world.run(texts(world, teacher=teacher), "doubted")
    found = json.loads((world.folder / "doubted/result.json").read_text())
    assert found["rows"]["teacher"]["accuracy"] < 0.1
    assert "the teacher is right on 0.0" in " ".join(found["warnings"])
    assert "no more than always giving" in (world.folder / "doubted/report.html").read_text()
