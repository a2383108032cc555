"""A merge of causal language models distilled into one dense model."""

import json

import pytest
import torch
import transformers

import twinmerge
from distill.language import next_tokens
from recipes.data.language_rows import load_language
from recipes.distill.many_prompts import PromptRouted
from recipes.distill.merge_run import merge_run
from recipes.distill.prompt_data import PromptData
from tests.recipes.merge.causal import tiny_lm

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tiny_lm.World:
    made = tiny_lm.World(tmp_path_factory.mktemp("prompts"))
    tasks = [tiny_lm.source(made.folder, "mood"), tiny_lm.source(made.folder, "topic", "choice")]
    recipe = made.causal("merge", tasks, training={"lora_rank": 8}, trainer={"max_epochs": 4}, exclusive={"rank": 8})
    done = made.run(recipe | {"baselines": {"scales": [0.5]}}, "merge")
    assert done.code == 0, done.err
    return made


def given(**changes):
    recipe = {
        "recipe": "distill",
        "data": {"source": "merge", "path": "merge"},
        "student": {"options": {"num_hidden_layers": 1}},
        "chunk": 0,
        "methods": {"kd": {"kd": {}}},
        "changes": {
            "epochs": 2,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 3e-3,
            "schedule_on": "update",
            "warmup_epochs": 0,
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    return {**recipe, **changes}


def test_a_merge_of_language_models_teaches_one_plain_model(world):
    done = world.run(given(), "many")
    assert done.code == 0, done.err
    rows = json.loads((world.folder / "many/result.json").read_text())["rows"]
    merged = json.loads((world.folder / "merge/result.json").read_text())["rows"]
    assert rows["teacher"]["tasks"] == merged["routed"]["tasks"]  # scored in the very same way
    assert set(rows["kd"]["tasks"]) == set(rows["kd"]["agreement_tasks"]) == {"mood", "topic"}
    assert rows["kd"]["agreement"] > 0.3  # of a vocabulary of words
    folder = world.folder / "many/students/kd/model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.config.num_hidden_layers == 1
    assert not hasattr(model.config, "auto_map")
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_the_mixture_of_a_text_comes_from_its_prompt_alone(world):
    run = merge_run(str(world.folder / "merge"))
    twin = twinmerge.load(run.twin)
    words = transformers.AutoTokenizer.from_pretrained(run.twin)
    with world.inside():
        tasks = [load_language(source, 0) for source in run.recipe.tasks]
    data = PromptData(tasks, words, batch_size=6, max_length=32, seed=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "attention_mask", "prompt", "task"}
    with torch.no_grad():
        found = PromptRouted(twin)(batch).logits
        wanted = []
        for ids, mask, labels, prompt in zip(
            *(batch[k] for k in ("input_ids", "attention_mask", "labels", "prompt")), strict=True
        ):
            real = ids[: int(mask.sum())][None]
            weights = twin.route(real[:, : int(prompt)])
            logits = twin(input_ids=real, router_weights=weights).logits[0]
            wanted.append(logits[:-1][labels[1 : real.shape[1]] != -100])
    assert torch.allclose(found, torch.cat(wanted), atol=1e-4)
    assert len(found) == len(next_tokens(batch)[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chunk": 64}, "chunk: expected 0 with a merge as data, since a routed twin's logits are made whole, got 64"),
        ({"methods": {"u": {"uld": {}}}}, "methods.u: uld is for other tokens"),
        ({"teacher": {"keep": {"kind": "top", "kept": 4}}}, "teacher.keep: expected none with a merge as data"),
        ({"samples": {"kd": {"own": 0.5}}}, "samples: expected none with a merge as data"),
    ],
)
def test_what_the_twin_cannot_teach_is_refused(world, changes, said):
    refused = world.run(given(**changes), "x", "--check")
    assert refused.code == 2
    assert said in refused.err
