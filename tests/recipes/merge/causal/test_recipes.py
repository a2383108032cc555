"""Causal experts and their merge through the real command, on a tiny Llama: folders, scores, refusals."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import twinmerge
from recipes.data.language_rows import load_language
from recipes.data.language_task import Generation, Language
from recipes.data.task_source import TaskSource
from recipes.merge.causal.encode import Encoder
from recipes.merge.causal.scores import Speaker, score
from tests.recipes.merge.causal import tiny_lm

ROWS = ["experts", "pretrained", "average", "task_arithmetic", "ties", "dare", "dare_ties", "tsv_m", "routed", "oracle"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny_lm.World:
    """A world in which three LoRA experts were trained, one of them on chats."""
    world = tiny_lm.World(tmp_path_factory.mktemp("causal"))
    tasks = [tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic", "choice")]
    recipe = world.causal(
        "finetune",
        [*tasks, tiny_lm.chats(world.folder)],
        training={"lora_rank": 8},
        trainer={"max_epochs": 7},
    )
    done = world.run(recipe, "experts")
    assert done.code == 0, done.err
    (world.folder / "experts/said").write_text(done.out)
    return world


def loaded(world, source, split="test"):
    """A task, its rows in tokens and the tokenizer."""
    language = dict(source["language"])
    language["generation"] = Generation(**language.get("generation", {}))
    task = load_language(TaskSource(**{**source, "language": Language(**language)}), 0)
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    return task, Encoder(tokenizer, 32).rows(task, split), tokenizer


def test_adapters_are_plain_peft_folders_that_score_what_their_card_says(world):
    said = (world.folder / "experts/said").read_text()
    assert "test score" not in said  # no loss and no perplexity under the name of a score
    for source in (tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic", "choice")):
        folder = world.folder / "experts/experts" / source["name"]
        card = json.loads((folder / "expert.json").read_text())
        assert card["metric"] == source["language"]["metric"]
        base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32).eval()
        task, rows, tokenizer = loaded(world, source)
        before = score(Speaker(base, 0), task, rows, tokenizer, batch_size=8)
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        assert score(Speaker(model, 0), task, rows, tokenizer, batch_size=8) == pytest.approx(card["test"])
        assert card["test"] > before + 0.3  # the base takes every label for another
        found = score(Speaker(model, 0), loaded(world, source | {"language": {}})[0], rows, tokenizer, batch_size=8)
        assert card["per_token"]["test"]["perplexity"] == pytest.approx(found, rel=1e-3)


def test_the_expert_of_chats_answers_a_chat(world):
    card = json.loads((world.folder / "experts/experts/chats/expert.json").read_text())
    assert (card["metric"], card["kind"]) == ("token_f1", "causal")
    assert card["test"] > 0.6


def test_full_training_packed_under_checkpoints_learns_plain_text(world):
    source = tiny_lm.tiny.task_source(world.folder, "mood") | {"language": {"form": "text"}}
    recipe = world.causal(
        "finetune",
        [source],
        training={"packing": True, "gradient_checkpointing": True, "learning_rate": 1.0e-2},
        trainer={"max_epochs": 4, "precision": "bf16-mixed"},
    )
    done = world.run(recipe, "text")
    assert done.code == 0, done.err
    card = json.loads((world.folder / "text/experts/mood/expert.json").read_text())
    task, rows, tokenizer = loaded(world, source)
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32).eval()
    made = AutoModelForCausalLM.from_pretrained(world.folder / "text/experts/mood", dtype=torch.float32).eval()
    before, after = (score(Speaker(model, 0), task, rows, tokenizer, batch_size=8) for model in (base, made))
    assert after < before / 2
    assert card["test"] == pytest.approx(after, rel=0.02)


@pytest.mark.slow  # two processes that import everything anew
@pytest.mark.timeout(2700)
def test_two_processes_train_the_expert_that_one_does(world):
    training = {"learning_rate": 1.0e-2}
    cards = []
    for devices, size in ((1, 8), (2, 4)):
        recipe = world.causal(
            "finetune",
            [tiny_lm.source(world.folder, "mood", "perplexity") | {"max_train": 104}],  # none is repeated
            training=training | {"batch_size": size},
            trainer={"max_epochs": 1, "devices": devices, **({"strategy": "ddp"} if devices > 1 else {})},
        )
        done = world.spawn(recipe, f"on{devices}", patience=1200)
        assert done.code == 0, done.err
        cards.append(json.loads((world.folder / f"on{devices}/experts/mood/expert.json").read_text()))
    # Every row has as many learned tokens, so that the mean of two halves is that of the batch.
    for split in ("validation", "test"):  # of 15 and 30 rows: two processes cannot share the first equally
        one, two = (card["per_token"][split]["loss"] for card in cards)
        assert two == pytest.approx(one, rel=1e-4), split


@pytest.fixture(scope="module")
def merged(world):
    """Two of the experts merged, a third left out of it."""
    tasks = [
        tiny_lm.source(world.folder, "mood"),
        tiny_lm.source(world.folder, "topic", "choice"),
        tiny_lm.chats(world.folder),
    ]
    recipe = world.causal("merge", tasks, experts="experts", unseen=["chats"], exclusive={"rank": 8})
    assert world.run(recipe, "checked", "--check").code == 0
    done = world.run(recipe, "merged")
    assert done.code == 0, done.err
    return json.loads((world.folder / "merged/result.json").read_text())


def test_the_table_has_every_row_and_the_unseen_task_beside_it(merged):
    assert list(merged["rows"]) == ROWS
    assert all(set(row["tasks"]) == {"mood", "topic"} for row in merged["rows"].values())
    assert merged["rows"]["experts"]["normalised"] == 1.0
    assert merged["routed_normalised"] > merged["rows"]["pretrained"]["normalised"]
    assert merged["metrics"] == {"mood": "exact_match", "topic": "choice", "chats": "token_f1"}
    assert merged["unseen"]["tasks"] == ["chats"]
    assert merged["unseen"]["rows"]["experts"]["normalised"] == 1.0
    assert "oracle" not in merged["unseen"]["rows"]


def test_the_twin_folder_gives_the_scores_of_the_table(world, merged):
    twin = twinmerge.load(world.folder / "merged/merged")
    assert twin.tasks == ["mood", "topic"]
    for source in (tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic", "choice")):
        task, rows, tokenizer = loaded(world, source)
        found = score(Speaker(twin, 0, twin.route), task, rows, tokenizer, batch_size=8)
        assert found == pytest.approx(merged["rows"]["routed"]["tasks"][source["name"]])
    # At full rank the expert of the true task alone is that expert.
    assert merged["rows"]["oracle"]["tasks"] == pytest.approx(merged["rows"]["experts"]["tasks"], abs=0.05)


RIVALS = {
    "data": ["fisher", "regmean", "adamerging", "adamerging_layers"],
    "dynamic": ["tsv_c", "smile", "arrow", "wemoe"],
}


def test_a_merge_has_the_rows_with_data_and_the_dynamic_rivals_that_it_is_asked_for(world, merged):
    tasks = [tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic", "choice")]
    given = {"scales": [0.5], **RIVALS, "emr": True, "knn": True, "data_items": 24, "data_steps": 10}
    given_experts = {task: str(world.folder / "experts/experts" / task) for task in ("mood", "topic")}
    recipe = world.causal("merge", tasks, experts=given_experts, exclusive={"rank": 8}, baselines=given)
    checked = world.run(recipe, "checked", "--check")
    assert (
        "looks at data or layers: fisher, regmean, adamerging, adamerging_layers, tsv_c, smile, arrow, wemoe"
        in checked.out
    )
    done = world.run(recipe, "rivals")
    assert done.code == 0, done.err
    result = json.loads((world.folder / "rivals/result.json").read_text())
    own = [*ROWS[:-2], *RIVALS["data"], *ROWS[-2:], "smile", "arrow", "wemoe", "emr", "tsv_c", "routed by knn"]
    assert list(result["rows"]) == own
    rows = result["rows"]
    assert rows["experts"]["tasks"] == merged["rows"]["experts"]["tasks"]
    base = rows["pretrained"]["bytes"]
    for name in RIVALS["data"]:
        assert rows[name]["bytes"] == base
        assert name in result["tuned"]
    for name in own[-6:]:
        assert rows[name]["bytes"] > base
    # What is told the router's first choice is as good as the experts where the router knows the task.
    assert rows["tsv_c"]["normalised"] > rows["average"]["normalised"]
    assert result["tuned"]["regmean"]["shrink"] in (0.1, 0.5, 0.9)
    report = (world.folder / "rivals/report.html").read_text()
    assert "EMR-Merging, told the router&#x27;s first choice" in report or "told the router's first choice" in report


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unseen": ["mod"]}, "unseen: no task is called 'mod'; did you mean 'mood'?"),
        ({"unseen": ["mood"]}, "unseen: expected at least two tasks beside them to merge"),
        ({"vocabulary": "pad"}, "vocabulary: expected 'strict' for model 'causal', got 'pad'"),
        ({"training": {"model": "encoder"}}, "tasks.0.language: expected none for model 'encoder', got some"),
        ({"training": {"lora_alpha": 4.0}}, "training.lora_alpha: expected none without lora_rank, got 4.0"),
        ({"training": {"lora_dropout": 1.0, "lora_rank": 2}}, "training.lora_dropout: expected a share from 0"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(world, changes, sentence):
    tasks = [tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic")]
    done = world.run(world.causal("merge", tasks, **changes), "refused")
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ({"template": "no column"}, "language.template: expected {text} in it, got 'no column'"),
        ({"form": "text", "metric": "bleu"}, "metric: expected 'perplexity' for form 'text', got 'bleu'"),
        ({"metric": "choice", "choices": ["glad"]}, "choices: expected at least two different choices"),
        ({"choices": ["glad", "sad"]}, "choices: expected none for metric 'perplexity', got some"),
        ({"generation": {"max_new_tokens": 4}}, "generation: expected none for metric 'perplexity'"),
        ({"metric": "bleu", "generation": {"top_p": 0.5}}, "top_p: expected 1.0 without do_sample"),
    ],
)
def test_a_wrong_language_block_is_refused_in_one_sentence(world, language, sentence):
    source = tiny_lm.tiny.task_source(world.folder, "mood") | {"language": language}
    done = world.run(world.causal("finetune", [source]), "refused")
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_an_answer_that_is_no_choice_is_refused_before_the_run(world):
    source = tiny_lm.source(world.folder, "mood", "choice", choices=["glad", "angry"])
    done = world.run(world.causal("finetune", [source]), "odd")
    assert done.code == 2
    assert "the answer 'sad' is none of the choices glad, angry" in done.err
