"""Language models by the real command: on and off policy, sequences, cached and served teachers, two tokenizers."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.distill.test_answered import Fake, server  # noqa: F401 - the fixture
from tests.recipes import tiny
from tests.recipes.distill.test_recipe import rows, texts

pytestmark = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")


def save_llama(folder, width, seed, spread=0.02):
    words = len(AutoTokenizer.from_pretrained(folder))
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        initializer_range=spread,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny.World:
    made = tiny.World(tmp_path_factory.mktemp("language"))
    save_llama(made.base, 32, 0)
    tiny.save_base(made.folder / "small")
    save_llama(made.folder / "small", 16, 1)
    tiny.save_base(made.folder / "other", words=40)
    file = made.folder / "other/tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["happy"], words["joy"] = words["joy"], words["happy"]
    file.write_text(json.dumps(content))
    save_llama(made.folder / "other", 32, 2, 0.5)
    for i in range(12):
        text = "\n".join(sentence for sentence, _ in tiny.sentences("mood", 30, seed=i))
        (made.folder / f"text{i}.txt").write_text(text, encoding="utf-8")
    return made


def language(world, **changes):
    data = {"source": "files", "path": str(world.folder), "pattern": "text*.txt", "length": 16, "rows": 32}
    recipe = texts(
        world,
        teacher={"model": str(world.base)},
        student={"model": str(world.folder / "small")},
        data=data | {"test_rows": 8},
        methods={"kd": {"kd": {}}},
        prompt_tokens=5,
        changes={"epochs": 1, "batch_size": 8, "optimizer": "adamw", "learning_rate": 3.0e-3}
        | {"warmup_epochs": 0, "schedule_on": "update"},
    )
    return recipe | changes


METHODS = {
    "ce": {"hard": {}},
    "plain": {"kd": {}},
    "reverse": {"jsd": {"beta": 1.0}},
    "gkd": {"jsd": {"beta": 0.5}},
    "sequence": {"hard": {}},
}
SAMPLES = {"reverse": {"own": 1.0}, "gkd": {"own": 0.5}, "sequence": {"teacher": 1.0}}


def test_all_of_them_side_by_side(world):
    recipe = language(world, methods=METHODS, samples=SAMPLES)
    done = world.run(recipe, "all")
    assert done.code == 0, done.err
    found = rows(world, "all")
    assert set(found) == {"teacher", *METHODS}
    assert len({row["loss"] for row in found.values()}) == 6
    manifest = json.loads((world.folder / "all/cache/samples/MANIFEST.json").read_text())
    assert manifest["form"]["kind"] == "tokens"
    assert manifest["identity"]["augmentation"].startswith("goes on from 5 tokens at temperature 1")


def test_a_teacher_of_language_answers_once(world):
    recipe = language(world, teacher={"model": str(world.base), "keep": {"kind": "top", "kept": 20}})
    done = world.run(recipe, "kept")
    assert done.code == 0, done.err
    manifest = json.loads((world.folder / "kept/cache/top/MANIFEST.json").read_text())
    assert manifest["form"] == {"kind": "top", "dtype": "float32", "kept": 20, "temperatures": [1.0], "exponent": 1.0}
    found = rows(world, "kept")
    assert set(found) == {"teacher", "kd"}
    assert found["kd"]["kl"] > 0  # the teacher itself is there for the test rows


def test_a_server_teaches(world, server, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Fake, "model", LlamaForCausalLM.from_pretrained(world.base).eval())
    served = {"model": "", "server": server, "served": "big", "keep": {"kind": "top", "kept": 20}}
    done = world.run(language(world, teacher=served), "served")
    assert done.code == 0, done.err
    found = rows(world, "served")
    assert set(found) == {"kd"}
    kept = rows(world, "kept")["kd"]["loss"]  # of the test before: the same model's answers
    assert found["kd"]["loss"] == pytest.approx(kept, rel=1e-4)


def test_another_tokenizer_teaches_by_uld_alone(world):
    recipe = language(
        world,
        teacher={"model": str(world.folder / "other")},
        methods={"ce": {"hard": {}}, "uld": {"hard": {}, "uld": {"weight": 1.5}}},
    )
    done = world.run(recipe, "uld")
    assert done.code == 0, done.err
    found = rows(world, "uld")
    assert set(found) == {"ce", "uld"}
    assert found["uld"]["loss"] != found["ce"]["loss"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": {"model": "OTHER"}}, "the teacher's and the student's tokenizers differ"),
        ({"samples": {"kd": {"own": 2.0}}}, "samples"),
        ({"samples": {"kdd": {"own": 0.5}}}, "samples: samples are given for 'kdd', but the students are kd"),
        ({"methods": {"kd": {"hard": {}, "kd": {}}}, "samples": {"kd": {"own": 0.5}}}, "leave hard out, or own"),
        ({"samples": {"kd": {"own": 0.5}}, "prompt_tokens": 15}, "prompt_tokens: 15 of a block of 16 tokens"),
        (
            {"samples": {"kd": {"own": 0.5}}, "teacher": {"model": "BASE", "keep": {"kind": "top", "kept": 4}}},
            "samples: the teacher answers once, about the data (teacher.keep), but kd asks it about samples",
        ),
        ({"teacher": {"model": "BASE", "keep": {"kind": "sampled", "kept": 4}}}, "teacher.keep.kind: expected top for"),
        (
            {"teacher": {"model": "BASE", "keep": {"kind": "top", "kept": 4}}, "methods": {"j": {"jsd": {}}}},
            "methods.j: jsd compares all of the teacher's outputs, but the cache keeps some classes",
        ),
        (
            {"teacher": {"model": "BASE", "keep": {"kind": "top", "kept": 4}}, "methods": {"u": {"uld": {}}}},
            "methods.u: uld compares all of the teacher's outputs",
        ),
        ({"methods": {"kd-2": {"kd": {}}}}, "a student is called 'kd-2'; give a name that could be a variable's"),
        ({"methods": {"u": {"uld": {}}, "k": {"kd": {}}}}, "methods: u learns by uld from a teacher that reads tokens"),
        (
            {"methods": {"u": {"uld": {}}}, "teacher": {"model": "BASE", "train": True}},
            "it can be neither trained on the student's (teacher.train) nor kept",
        ),
        ({"teacher": {"model": "", "server": "http://x/v1"}}, "teacher.served: expected a name with a server"),
        (
            {"teacher": {"model": "BASE", "server": "http://x/v1", "served": "b"}},
            "teacher.server: expected data of language, no teacher.model and keep.kind top with it",
        ),
        (
            {
                "teacher": {
                    "model": "",
                    "server": "http://x/v1",
                    "served": "b",
                    "keep": {"kind": "top", "kept": 4, "temperatures": [2.0]},
                }
            },
            "teacher.keep.temperatures: expected 1.0 alone",
        ),
        (
            {
                "methods": {"s": {"hard": {}}},
                "samples": {"s": {"teacher": 1.0}},
                "teacher": {"model": ""},
            },
            "samples: they need a teacher that reads or says them, got none",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(world, changes, sentence):
    recipe = language(world, **changes)
    if recipe["teacher"].get("model") in ("OTHER", "BASE"):
        place = world.base if recipe["teacher"]["model"] == "BASE" else world.folder / "other"
        recipe["teacher"] = recipe["teacher"] | {"model": str(place)}
    done = world.run(recipe, "refused", "--check")
    assert done.code == 2, done.out
    assert sentence in " ".join(done.err.split())
    assert not (world.folder / "refused").exists()
