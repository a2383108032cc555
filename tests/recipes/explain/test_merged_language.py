"""The table of a merge of language models: every loss against plain forwards of one row at a time."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import twinmerge
from recipes.data.language_rows import load_language
from recipes.distill.merge_run import merge_run
from recipes.errors import RunError
from recipes.explain import merged_language
from recipes.explain.merged import read_merged
from recipes.merge.causal.encode import Encoder
from tests.recipes.merge.causal import tiny_lm

pytestmark = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")
MODELS = ("expert", "twin", "small")
LOSSES = ("zero_one", "brier", "log")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny_lm.World:
    """A merge of four LoRA experts, one of each kind of task, and a student that is the base with other weights."""
    made = tiny_lm.World(tmp_path_factory.mktemp("spoken"))
    few = {"max_train": 60, "max_validation": 10, "max_test": 14}
    plain = tiny_lm.tiny.task_source(made.folder, "mood") | {"name": "plain", "language": {"form": "text"}}
    tasks = [
        tiny_lm.source(made.folder, "mood", "perplexity"),
        tiny_lm.source(made.folder, "topic", "choice"),
        tiny_lm.chats(made.folder),
        plain,
    ]
    options = {"exclusive": {"rank": 4}, "router": {"items": 40}, "trainer": {"max_epochs": 2}}
    recipe = made.causal("merge", [task | few for task in tasks], training={"lora_rank": 4}, **options)
    done = made.run(recipe | {"baselines": {"scales": [0.5]}}, "merge")
    assert done.code == 0, done.err
    tiny_lm.save_llama(made.folder / "students/small/model", seed=5)
    return made


def asked(world, **given):
    with world.inside():
        return read_merged(world.folder / "merge", given.pop("say", lambda _: None), students(world), **given)


def students(world):
    return {"small": world.folder / "students/small"}


@pytest.fixture(scope="module")
def table(world):
    said = []
    found = asked(world, examples=True, say=said.append)
    assert "4 experts, the twin and 1 students" in said[0]
    return found


@pytest.fixture(scope="module")
def rows(world):
    """By task, its test rows in tokens and its items."""
    run = merge_run(str(world.folder / "merge"))
    encoder = Encoder(AutoTokenizer.from_pretrained(world.base), run.recipe.training.max_length)
    with world.inside():
        tasks = [load_language(source, run.recipe.seed) for source in run.recipe.tasks]
    return {task.name: (encoder.rows(task, "test"), task.test) for task in tasks}


def alone(model, tokens, prompt, **mixture):
    """Probabilities for each token after the prompt, by one forward of one row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(tokens)]), **mixture).logits[0]
    return logits[prompt - 1 : -1].double().softmax(-1).numpy(), np.array(tokens[prompt:])


def expert_of(world, task):
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    place = next((world.folder / "cache/experts").glob(f"{task}-*"))
    return PeftModel.from_pretrained(base, str(place)).eval()


def test_every_number_is_that_of_a_plain_forward_of_its_row_alone(world, table, rows):
    twin = twinmerge.load(world.folder / "merge/merged", dtype=torch.float32).eval()
    small = AutoModelForCausalLM.from_pretrained(world.folder / "students/small/model", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(world.base)
    assert len(table) == sum(len(tokens) for tokens, _ in rows.values())
    for task, (tokens, items) in rows.items():
        models = {"expert": expert_of(world, task), "twin": twin, "small": small}
        part = table[table["task"] == task].reset_index(drop=True)
        assert (part["label"] == task).all()
        for number, row in enumerate(tokens):
            found = part.loc[number]
            with torch.no_grad():
                weights = twin.route(torch.tensor([row.tokens[: row.prompt]]))
            assert found["router_confidence"] == pytest.approx(float(weights.max()), abs=1e-5)
            for name, model in models.items():
                mixture = {"router_weights": weights} if name == "twin" else {}
                chance, said = alone(model, row.tokens, row.prompt, **mixture)
                own = chance[np.arange(len(said)), said]
                one = np.eye(chance.shape[1])[said]
                assert found[f"{name}_log"] == pytest.approx(float(-np.log(own).mean()), abs=1e-5)
                assert found[f"{name}_brier"] == pytest.approx(((chance - one) ** 2).sum(1).mean() / 2, abs=1e-5)
                answer = words.decode(chance.argmax(1)).strip()
                wrong = bool((chance.argmax(1) != said).any())
                if row.choices:
                    told = [
                        np.log(c[np.arange(len(s)), s]).sum()
                        for c, s in (
                            alone(model, [*row.tokens[: row.prompt], *choice], row.prompt, **mixture)
                            for choice in row.choices
                        )
                    ]
                    answer, wrong = items[number].choices[int(np.argmax(told))].strip(), np.argmax(told) != row.answer
                assert found[f"{name}_answer"] == answer
                assert found[f"{name}_zero_one"] == float(wrong)
                if name == "expert":
                    assert found["confidence"] == pytest.approx(own.mean(), abs=1e-5)
                    share = -(chance * np.log(chance)).sum(1).mean() / np.log(chance.shape[1])
                    assert found["entropy"] == pytest.approx(share, abs=1e-5)


def test_what_is_read_as_the_prompt_is_shown(table, rows):
    for task in ("mood", "topic"):
        part = table[table["task"] == task]
        assert part["text"].tolist() == [item.prompt for item in rows[task][1]]
    chats = table[table["task"] == "chats"]
    for text, item in zip(chats["text"], rows["chats"][1], strict=True):
        assert text.split("\n") == [content for _, content in item.messages[:-1]]
    words = [len(text.split()) for text in table["text"]]
    assert table["words"].tolist() == words
    plain = table[table["task"] == "plain"]
    assert plain["words"].tolist() == [row.prompt for row in rows["plain"][0]]  # one token a word
    # Wrong is what is not said: a greedy answer is the reference where zero_one is 0.
    right = table[(table["twin_zero_one"] == 0) & (table["expert_zero_one"] == 0)]
    assert len(right)
    assert (right["twin_answer"] == right["expert_answer"]).all()


def test_the_shares_and_perplexities_are_those_of_the_merge(world, table):
    scored = json.loads((world.folder / "merge/result.json").read_text())["rows"]
    for model, row in (("expert", "experts"), ("twin", "routed")):
        topic = table[table["task"] == "topic"]
        assert 1 - topic[f"{model}_zero_one"].mean() == pytest.approx(scored[row]["tasks"]["topic"], abs=1e-6)
        mood = table[table["task"] == "mood"]  # all completions have as many tokens
        assert np.exp(mood[f"{model}_log"].mean()) == pytest.approx(scored[row]["tasks"]["mood"], rel=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_change_no_number(world, table, monkeypatch, size):
    def other(folder, recipe, *given, **named):
        return merged_language.language_rows(folder, replace(recipe, eval_batch_size=size), *given, **named)

    monkeypatch.setattr("recipes.explain.merged.language_rows", other)
    found = asked(world, examples=True)
    assert list(found.columns) == list(table.columns)
    for name in table.columns:
        if table[name].dtype.kind == "f":
            assert np.allclose(found[name], table[name], atol=1e-5)
        else:
            assert found[name].tolist() == table[name].tolist()


def test_the_recipe_explains_the_twin_and_refuses_what_it_cannot_read(world, table):
    made = {
        "recipe": "explain",
        "mode": "models",
        "data": {"kind": "merge", "path": "merge", "students": {"small": "students/small"}},
        "loss": "log",
        "model": {"kind": "losses", "columns": ["twin_log"]},
        "second": {"kind": "losses", "columns": ["small_log"]},
        "groups": {"task": ["task"], "length": ["words"]},
        "estimation": {"learners": "linear", "folds": 2},
    }
    done = world.run(made, "explained")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "explained/result.json").read_text())
    assert result["totals"]["first"] == pytest.approx(table["twin_log"].mean(), abs=1e-6)
    assert result["totals"]["second"] == pytest.approx(table["small_log"].mean(), abs=1e-6)
    for data, said in (
        ({"columns": ["year"]}, "data.columns: expected none with a merge of language models"),
        ({"students": {"small": "students"}}, "data.students.small: students holds no student"),
    ):
        refused = world.run(made | {"data": made["data"] | data}, "z", "--check")
        assert refused.code == 2
        assert said in refused.err
    with pytest.raises(RunError, match=r"data\.columns: expected none"):
        asked(world, columns=["year"])


def test_a_student_of_other_tokens_is_refused(world, tmp_path):
    shutil.copytree(world.folder / "students/small", tmp_path / "small")
    file = tmp_path / "small/model/tokenizer.json"
    told = json.loads(file.read_text())
    told["model"]["vocab"]["another"] = len(told["model"]["vocab"])
    file.write_text(json.dumps(told))
    with world.inside(), pytest.raises(RunError, match=r"data\.students\.small: .* reads other tokens than the twin"):
        read_merged(world.folder / "merge", lambda _: None, {"small": tmp_path / "small"})
    (tmp_path / "small/model/config.json").write_text("{}")
    with world.inside(), pytest.raises(RunError, match=r"data\.students\.small: .* is no causal language model"):
        read_merged(world.folder / "merge", lambda _: None, {"small": tmp_path / "small"})
