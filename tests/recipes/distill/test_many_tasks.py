"""A merge of texts distilled into one dense student with a head for every task, and what transformers makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import twinmerge
from distill.networks import Frozen
from recipes.distill.answers import FIELD, answer_once
from recipes.distill.many_heads import student, teacher
from recipes.distill.merge_run import merge_run
from recipes.distill.schema import Network
from recipes.distill.shorter import shorter
from recipes.merge.recipe import mixed
from recipes.running.folder import RunFolder
from tests.recipes import tiny
from twinmerge.module import FinetuneModule

pytestmark = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")
LABELS = {"mood": ("glad", "sad"), "topic": ("food", "sport", "trade")}
ALONE = """
import sys
for name in ("twinmerge", "distill", "recipes", "gapbridge"):
    sys.modules[name] = None
import torch, transformers
folder, head = sys.argv[1:]
words = transformers.AutoTokenizer.from_pretrained(folder)
batch = words(["the cook laughed with joy", "our teacher ate warm bread today"], padding=True, return_tensors="pt")
body = transformers.AutoModel.from_pretrained(folder)
assert type(body) is transformers.BertModel
whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, head=head)
with torch.no_grad():
    states, logits = body(**batch).last_hidden_state, whole(**batch).logits
print(float(states.abs().sum()), *logits.flatten().tolist(), *whole.config.id2label.values())
"""


@pytest.fixture
def world(merged) -> tiny.World:
    return merged


def many(world, **changes):
    recipe = {
        "recipe": "distill",
        "name": "many",
        "data": {"source": "merge", "path": str(world.folder / "merge")},
        "changes": {
            "epochs": 6,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 2.0e-3,
            "schedule_on": "update",
            "warmup_epochs": 0,
            "hard": "ce",
        },
        "methods": {"kd": {"kd": {}}},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    return {**recipe, **changes}


@pytest.fixture(scope="module")
def done(merged) -> Path:
    made = merged.run(many(merged, methods={"kd": {"kd": {}}, "ce": {}}), "many")
    assert made.code == 0, made.err
    return merged.folder / "many"


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_students_row_stands_beside_those_of_the_merge(world, done):
    rows, merged = result(done)["rows"], result(world.folder / "merge")["rows"]
    assert set(rows) == {"teacher", "kd", "ce"}
    assert rows["teacher"]["tasks"] == merged["routed"]["tasks"]  # the very same forward
    for name in ("kd", "ce"):
        assert set(rows[name]["tasks"]) == set(LABELS)
        assert rows[name]["mean"] == pytest.approx(sum(rows[name]["tasks"].values()) / 2)
        ratios = [rows[name]["tasks"][task] / rows["teacher"]["tasks"][task] for task in LABELS]
        assert rows[name]["over_teacher"] == pytest.approx(sum(ratios) / 2)
        assert rows[name]["bytes"] < rows["teacher"]["bytes"]
    assert rows["kd"]["agreement"] > 0.8
    assert rows["kd"]["agreement"] == pytest.approx(sum(rows["kd"]["agreement_tasks"].values()) / 2)
    assert (
        result(done)["networks"]["kd"]["parameters_millions"]
        < result(done)["networks"]["teacher"]["parameters_millions"]
    )


TEXTS = ["the cook laughed with joy", "our teacher ate warm bread today"]


def answers(folder):
    """The student, two texts in tokens, and what it says of their topic."""
    model = twinmerge.load(folder)
    batch = dict(transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        return model, batch, model.classify(**batch, head="topic").logits


@pytest.mark.slow
def test_a_process_of_plain_transformers_loads_the_student(done, tmp_path):
    folder = done / "students/kd/model"
    _, batch, wanted = answers(folder)
    with torch.no_grad():
        states = twinmerge.load(folder, "shared")(**batch).last_hidden_state
    code = [sys.executable, "-c", ALONE, str(folder), "topic"]
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(code, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert alone.returncode == 0, alone.stderr
    total, *rest = alone.stdout.split()
    assert float(total) == pytest.approx(float(states.abs().sum()), rel=1e-5)
    assert list(map(float, rest[:6])) == pytest.approx(wanted.flatten().tolist(), abs=1e-5)
    assert rest[6:] == list(LABELS["topic"])


def test_the_saved_student_is_a_stock_body_and_a_twin_folder_without_experts(world, done):
    folder = done / "students/kd/model"
    model, batch, wanted = answers(folder)
    assert wanted.shape == (2, 3)
    body = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(body) is transformers.BertModel
    with torch.no_grad():
        states = body(**batch).last_hidden_state
        assert torch.allclose(model.heads["topic"](states, batch["attention_mask"]), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="has no router to choose the head; name one as head, of mood, topic"):
        model.classify(**batch)
    module = FinetuneModule(str(folder), question="mood")
    loss, _ = module.loss({**batch, "labels": torch.tensor([0, 1])})
    loss.backward()
    assert module.model.get_parameter("encoder.layer.0.output.dense.weight").grad.abs().sum() > 0
    made = world.run({"recipe": "export", "source": str(folder), "question": "mood"}, "exported")
    assert made.code == 0, made.err
    head = load_file(world.folder / "exported/dense/head.safetensors")  # BERT's own class pools otherwise
    assert torch.equal(head["out_proj.weight"], model.heads["mood"].out_proj.weight)
    assert json.loads((world.folder / "exported/dense/expert.json").read_text())["labels"] == list(LABELS["mood"])


def test_heads_start_as_the_twins_and_the_body_as_its_shared_expert(world):
    twin = world.folder / "merge/merged"
    taught = teacher(twin, LABELS)
    made = student(Network(), taught, twin)
    shared = twinmerge.load(twin, "shared").state_dict()
    for name, value in made.model.state_dict().items():
        if not name.startswith("heads."):
            assert torch.equal(value, shared[name]), name
    for task in LABELS:
        theirs, ours = (network.model.heads[task].state_dict() for network in (taught, made))
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    short = student(Network(options={"layers": [1]}), taught, twin).model.state_dict()
    assert torch.equal(short["encoder.layer.0.output.dense.weight"], shared["encoder.layer.1.output.dense.weight"])
    assert not any(".layer.1." in name for name in short)
    other = tiny.save_base(world.folder / "narrow", hidden=16)
    narrow = student(Network(str(other)), taught, twin)
    assert narrow.model.heads["topic"].out_proj.weight.shape == (3, 16)
    assert narrow.model.heads["topic"].label_names == list(LABELS["topic"])
    batch = {"input_ids": torch.randint(4, 20, (3, 5)), "task": torch.tensor([0, 1, 0])}
    logits = narrow(batch).logits
    assert logits.isfinite().tolist() == [[True, True, False], [True, True, True], [True, True, False]]


def test_layers_are_taken_out_exactly():
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertModel(config).eval()
    short = shorter(model, [0, 3])
    ids = torch.randint(0, 30, (2, 5))
    with torch.no_grad():
        found = short(ids).last_hidden_state
        model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[0], model.encoder.layer[3]])
        assert torch.equal(found, model(ids).last_hidden_state)
    assert short.config.num_hidden_layers == 2


def test_the_twin_is_asked_once_and_a_resumed_run_reads_its_answers(world, tmp_path):
    run = merge_run(str(world.folder / "merge"))
    taught = teacher(run.twin, LABELS)

    def data():
        made = mixed(run.recipe, run.tasks(), run.twin)
        made.setup()
        return made

    first, folder = data(), RunFolder(tmp_path, "once", quiet=True)
    answer_once(Frozen(taught), run.twin, first, ["train", "test"], folder, torch.device("cpu"))
    batch = next(iter(first.train_dataloader()))
    assert torch.allclose(batch[FIELD], Frozen(taught)(batch).logits, atol=1e-5)
    assert batch[FIELD].isinf().any()
    second = data()
    answer_once(Silent(), run.twin, second, ["train", "test"], folder, torch.device("cpu"))
    again = next(iter(second.train_dataloader()))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    fewer = data()
    fewer._rows["train"].pop()
    with pytest.raises(RuntimeError, match="was asked"):
        answer_once(Silent(), run.twin, fewer, ["train", "test"], folder, torch.device("cpu"))


class Silent:
    """A teacher that must not be asked."""

    def __call__(self, batch, needs=frozenset()):
        raise RuntimeError("the teacher was asked")


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(world, done):
    killed = many(world, methods={"kd": {"kd": {}}, "ce": {}})
    fuse = world.folder / "fuse"
    fuse.write_text("9 students")
    killed["trainer"] |= {
        "callbacks": [{"class_path": "tests.recipes.tiny.KillOnce", "init_args": {"fuse": str(fuse), "step": 30}}]
    }
    assert world.spawn(killed, "stopped").code == -9
    again = world.run(killed, "stopped", "--resume")
    assert again.code == 0, again.err
    whole, resumed = (
        load_file(world.folder / name / "students/kd/model/model.safetensors") for name in ("many", "stopped")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"source": "merge", "path": "nowhere"}}, "data.path: nowhere has no recipe.yaml"),
        ({"data": {"source": "merge", "path": "merge", "length": 32}}, "data.length: expected 64 with a merge as data"),
        ({"data": {"source": "merge"}}, "data.path: expected the folder of a merge run with source merge"),
        ({"student": {"options": {"num_hidden_layers": 3}}}, "student.options.num_hidden_layers is 3; give 1 to 2"),
        ({"student": {"options": {"layers": [1, 0]}}}, "student.options.layers is [1, 0]; give ascending numbers"),
        ({"student": {"model": "merge/merged"}}, "student.model: merge/merged is a twin folder; leave it out"),
        ({"teacher": {"model": "base"}}, "teacher.model: 'base' is no twin folder; leave it out"),
        ({"teacher": {"train": True}}, "teacher.train: expected false with a merge as data"),
        ({"lora_rank": 4}, "lora_rank: expected 0 with a merge as data"),
        ({"methods": {"c": {"crd": {}}}}, "crd needs the class of every training row"),
        ({"changes": {"smoothing": 0.1, "hard": "ce"}, "methods": {"ce": {}}}, "cannot compare tasks of 2, 3 classes"),
        ({"data": {"source": "digits"}}, "student.model: expected a model unless the data is a merge"),
    ],
)
def test_what_no_training_could_use_is_refused_before_it(world, changes, said):
    refused = world.run(many(world, **changes), "x", "--check")
    assert refused.code == 2
    assert said in refused.err


def test_a_pre_flight_says_what_is_learned_and_writes_nothing(world):
    before = world.files()
    told = world.run(many(world, student={"options": {"num_hidden_layers": 1}}), "y", "--check")
    assert told.code == 0, told.err
    assert "data: training inputs of mood, topic, as of the merge run" in told.out
    assert "student: the shared expert of the twin, its layers 0 of 2, a head for every task" in told.out
    assert world.files() == before


@pytest.mark.slow
def test_features_are_compared_with_a_live_teacher(world):
    recipe = many(world, methods={"rkd": {"kd": {}, "rkd": {"distance": 1.0, "angle": 1.0}}})
    recipe["changes"] |= {"epochs": 1, "batch_size": 15}  # of 210 rows: no batch is too small for relations
    done = world.run(recipe, "features")
    assert done.code == 0, done.err
    assert set(load_file(world.folder / "features/cache/answers.safetensors")) == {"validation", "test"}
