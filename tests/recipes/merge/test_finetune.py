"""Experts through the real command: folders that stock loaders read, exact resume, refusals that leave nothing."""

import json
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.merge.finetune import head_seed
from tests.recipes import tiny
from twinmerge.modeling_twin import Head


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    return tiny.World(tmp_path_factory.mktemp("finetune"))


def trained(world, out, task="mood", epochs=2, **training):
    """Train one expert and return its folder and card."""
    done = world.run(world.recipe("finetune", (task,), training=training, trainer={"max_epochs": epochs}), out)
    assert done.code == 0, done.err
    folder = world.folder / out / "experts" / task
    return folder, json.loads((folder / "expert.json").read_text())


def inputs_of(world, folder, task):
    """The task's test rows as the saved tokenizer encodes them."""
    rows = load_task(TaskSource(**tiny.task_source(world.folder, task)), 0).test
    return AutoTokenizer.from_pretrained(folder)(rows.texts, padding=True, return_tensors="pt"), rows.labels


def accuracy(logits, labels):
    return (logits.argmax(-1) == torch.tensor(labels)).float().mean().item()


def head_of(folder, card):
    tensors = load_file(folder / "head.safetensors")
    outputs, width = tensors["out_proj.weight"].shape
    head = Head(width, outputs, card["pooling"], card["layer_norm"])
    head.load_state_dict(tensors)
    return head


@pytest.mark.parametrize("training", [{}, {"heads": "fixed"}, {"pooling": "first", "frozen": ["embeddings."]}])
def test_full_expert_scores_the_same_from_its_folder(world, training):
    folder, card = trained(world, f"full{len(training)}", **training)
    model = AutoModel.from_pretrained(folder).eval()
    inputs, labels = inputs_of(world, folder, "mood")
    head = head_of(folder, card)
    with torch.no_grad():
        logits = head(model(**inputs)[0], inputs["attention_mask"])
    assert accuracy(logits, labels) == pytest.approx(card["test"])
    assert card["test"] > (0.4 if "pooling" in training else 0.9)  # the first token learns more slowly
    assert card["labels"] == ["glad", "sad"]
    base = AutoModel.from_pretrained(world.base).state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, base[name])}
    assert moved
    assert any("embeddings." in name for name in moved) is ("frozen" not in training)
    if "heads" in training:
        gram = head.out_proj.weight @ head.out_proj.weight.T
        torch.testing.assert_close(gram, torch.eye(2), atol=1e-5, rtol=0)


def test_lora_expert_is_a_peft_folder(world):
    folder, card = trained(world, "lora", epochs=6, lora_rank=4, learning_rate=3e-2)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(world.base), str(folder)).eval()
    inputs, labels = inputs_of(world, folder, "mood")
    with torch.no_grad():
        logits = head_of(folder, card)(model(**inputs)[0], inputs["attention_mask"])
    assert accuracy(logits, labels) == pytest.approx(card["test"])
    assert card["test"] > 0.8


def test_classifier_is_a_stock_folder_with_label_names(world):
    folder, card = trained(world, "classifier", task="topic", model="classifier")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs, labels = inputs_of(world, folder, "topic")
    with torch.no_grad():
        assert accuracy(model(**inputs).logits, labels) == pytest.approx(card["test"])
    assert model.config.id2label == {0: "food", 1: "sport", 2: "trade"}
    assert not (folder / "head.safetensors").exists()


def test_lora_classifier_keeps_its_head(world):
    folder, card = trained(world, "loraclassifier", task="topic", model="classifier", lora_rank=4, learning_rate=1e-2)
    inputs, labels = inputs_of(world, folder, "topic")
    answers = []
    for seed in (1, 2):  # of the stock class's own new head, which the adapter must replace
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(world.base, num_labels=3)
        with torch.no_grad():
            answers.append(PeftModel.from_pretrained(base, str(folder)).eval()(**inputs).logits)
    assert torch.equal(*answers)
    assert accuracy(answers[0], labels) == pytest.approx(card["test"])


def test_regression_learns_the_number(world):
    done = world.run(
        world.recipe(
            "finetune",
            ("count",),
            training={"batch_size": 4, "learning_rate": 5e-3},
            trainer={"max_epochs": 6, "enable_model_summary": True},
        ),
        "count",
    )
    assert done.code == 0, done.err
    card = json.loads((world.folder / "count/experts/count/expert.json").read_text())
    assert card["labels"] == []
    assert card["test"] > 0.5
    assert "Trainable params" in done.out  # asked for


def test_a_run_says_one_line_a_phase(world):
    done = world.run(world.recipe("finetune", ("mood", "topic")), "quiet")
    assert done.code == 0, done.err
    assert "Trainable params" not in done.out + done.err
    assert "Warning" not in done.err
    lines = (done.out + done.err).splitlines()
    assert sum(line.startswith(("train ", "validate ", "test ")) for line in lines) == 6
    assert len(lines) < 20
    result = json.loads((world.folder / "quiet/result.json").read_text())
    assert [row["task"] for row in result["experts"]] == ["mood", "topic"]
    assert not any((world.folder / "quiet/checkpoints").rglob("*.ckpt"))


def test_ctrl_c_in_the_second_expert_then_resume_ends_with_the_same_numbers(world):
    fuse = world.folder / "fuse"
    callback = {"class_path": "tests.recipes.tiny.KillOnce", "init_args": {"fuse": str(fuse), "step": 17}}
    recipe = world.recipe("finetune", trainer={"callbacks": [callback]})
    assert world.run(recipe, "whole").code == 0
    fuse.write_text(f"{int(signal.SIGINT)} topic")
    broken = world.run(recipe, "broken")
    assert broken.code == 130
    assert not (world.folder / "broken/result.json").exists()
    again = world.run(recipe, "broken", "--resume")
    assert again.code == 0, again.err
    assert "expert mood: found" in again.out
    assert tiny.numbers(world.folder / "broken/result.json") == tiny.numbers(world.folder / "whole/result.json")
    for name in ("model.safetensors", "head.safetensors"):
        paths = [world.folder / out / "experts/topic" / name for out in ("whole", "broken")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_expert_killed_between_training_and_saving_is_saved_by_resume(world, monkeypatch):
    from recipes.merge import finetune

    recipe = world.recipe("finetune", ("mood",))
    assert world.run(recipe, "straight").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "save_expert", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert world.run(recipe, "unsaved").code == 130
    assert not (world.folder / "unsaved/experts/mood").exists()
    again = world.run(recipe, "unsaved", "--resume")
    assert again.code == 0, again.err
    paths = [world.folder / out / "experts/mood/model.safetensors" for out in ("straight", "unsaved")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"batchsize": 4}}, "training.batchsize: unknown key; did you mean 'batch_size'?"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate: expected a number, got 'fast'"),
        ({"training": {"lora_rank": -1}}, "training.lora_rank: expected 0 or more, got -1"),
        (
            {"training": {"lora_rank": 33}},
            "training.lora_rank: expected 1 to 32, the smaller side of the base's",
        ),
        ({"training": {"warmup": 1.0}}, "training.warmup: expected a share from 0 to below 1, got 1.0"),
        ({"training": {"heads": "fixed", "model": "causal"}}, "training.heads: expected trained for model 'causal'"),
        ({"training": {"heads": "fixed", "pooling": "first"}}, "training.pooling: expected mean for fixed heads"),
        ({"tasks": []}, "tasks: expected at least one task, got none"),
        ({"base": "no/such/folder/at/all"}, "model 'no/such/folder/at/all' is neither an existing folder nor a Hub id"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(world, changes, sentence):
    before = world.files()
    done = world.run(world.recipe("finetune", **changes), "refused")
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert world.files() == before


def test_check_names_every_missing_file_and_writes_nothing(world):
    recipe = world.recipe("finetune")
    for task in recipe["tasks"]:
        task["path"] = f"nowhere/{task['name']}.csv"
    before = world.files()
    done = world.run(recipe, "checked", "--check")
    assert done.code == 2
    assert [f"task '{name}'" in line for name, line in zip(("mood", "topic"), done.err.splitlines(), strict=True)]
    assert world.run(world.recipe("finetune"), "checked", "--check").code == 0
    assert world.files() == before


def test_fixed_heads_differ_between_tasks_and_seeds_and_trained_heads_start_alike():
    assert len({head_seed(task, "fixed", seed) for task in ("movie", "amazon", "nyt") for seed in (0, 1)}) == 6
    assert head_seed("movie", "fixed", 0) == head_seed("movie", "fixed", 0)
    assert head_seed("movie", "trained", 3) == head_seed("nyt", "trained", 3) == 3


@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        ({"limit_train_batches": 0.01}, "trainer.limit_train_batches: 0.01 of the 14 train batches is less than one"),
        ({"limit_val_batches": 0.5}, "trainer.limit_val_batches: 0.5 of the 1 validation batches is less than one"),
        ({"limit_test_batches": 0.25}, "trainer.limit_test_batches: 0.25 of the 2 test batches is less than one"),
        ({"overfit_batches": 0.05}, "trainer.overfit_batches: 0.05 of the 14 train batches is less than one"),
        (
            {"val_check_interval": 15},
            "trainer.val_check_interval: expected at most 14, the batches of an epoch, got 15",
        ),
        ({"max_steps": 0}, "trainer.max_steps: 0 would train nothing"),
    ],
)
def test_a_length_that_the_trainer_would_refuse_is_refused_by_the_check(world, trainer, sentence):
    checked = world.run(world.recipe("finetune", ("mood",), trainer=trainer), "lengths", "--check")
    assert (checked.code, checked.err.count("\n")) == (2, 1)
    assert checked.err.startswith(sentence)


def test_the_check_says_how_long_the_trainings_are(world):
    recipe = world.recipe("finetune", ("mood",), trainer={"max_steps": 5})
    assert "plan: 1 experts, 2 epochs or 5 updates each" in world.run(recipe, "lengths", "--check").out


@pytest.mark.slow  # two processes that import everything anew
def test_two_processes_do_not_wait_for_the_pooler_that_no_head_reads(world):
    cards = []
    for devices, size, strategy in ((1, 8, "auto"), (2, 4, "ddp"), (2, 4, "auto")):
        recipe = world.recipe(
            "finetune",
            ("mood",),
            training={"batch_size": size},
            trainer={"max_epochs": 1, "devices": devices, "strategy": strategy},
        )
        done = world.spawn(recipe, f"on{devices}{strategy}")
        assert done.code == 0, done.err
        cards.append(json.loads((world.folder / f"on{devices}{strategy}/experts/mood/expert.json").read_text()))
    assert cards[1] == cards[2]
    assert {card["kind"] for card in cards} == {"encoder"}
