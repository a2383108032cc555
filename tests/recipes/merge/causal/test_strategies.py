"""Causal experts that no single device could train: dealt out to processes, or over a base in 4 bits; else refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from recipes.merge.causal.train import language_model
from tests.recipes.merge.causal import tiny_lm

SHARDING = "lightning.pytorch.strategies.ModelParallelStrategy"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_lm.World(tmp_path_factory.mktemp("strategies"))


def dealt(**sizes):
    return {"class_path": SHARDING, "init_args": sizes}


@pytest.mark.slow  # two processes that import everything anew
@pytest.mark.timeout(2700)
@pytest.mark.parametrize(
    "training", [{}, {"lora_rank": 4, "gradient_checkpointing": True}], ids=["whole", "adapters, checkpoints"]
)
def test_two_processes_that_each_hold_half_train_the_expert_that_one_does(world, training):
    cards, states, name = [], [], f"rank{training.get('lora_rank', 0)}"
    for devices, size in ((1, 8), (2, 4)):
        strategy = {"strategy": dealt(data_parallel_size=2, tensor_parallel_size=1)} if devices > 1 else {}
        recipe = world.causal(
            "finetune",
            [tiny_lm.source(world.folder, "mood", "perplexity")],
            training=training | {"batch_size": size},
            trainer={"max_epochs": 1, "devices": devices, "gradient_clip_val": 1.0, **strategy},
        )
        done = world.spawn(recipe, f"{name}-{devices}", patience=1200)
        assert done.code == 0, done.err
        folder = world.folder / f"{name}-{devices}/experts/mood"
        cards.append(json.loads((folder / "expert.json").read_text()))
        if training:
            base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
            states.append(PeftModel.from_pretrained(base, folder).state_dict())
            continue
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert made.config.architectures == ["LlamaForCausalLM"]
        states.append(made.state_dict())
    # Every row has as many learned tokens, so that the mean of two halves is that of the batch.
    assert cards[1]["per_token"]["test"]["loss"] == pytest.approx(cards[0]["per_token"]["test"]["loss"], rel=1e-2)
    assert cards[1]["test"] == pytest.approx(cards[0]["test"], rel=1e-2)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize(
    ("training", "strategy", "sentence"),
    [
        ({}, "fsdp", "trainer.strategy: expected one that leaves experts whole, got 'fsdp'"),
        ({}, "deepspeed_stage_3", "trainer.strategy: expected one that leaves experts whole, got 'deepspeed_stage_3'"),
        ({}, {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}, "experts whole, got 'FSDPStrategy'"),
        ({}, dealt(), "trainer.strategy.init_args: expected tensor_parallel_size 1 and data_parallel_size the number"),
        ({}, dealt(data_parallel_size=1, tensor_parallel_size=2), "matrices are not split; got {'data_parallel_size'"),
        ({"lora_rank": 4, "qlora": True}, "auto", "training.qlora: expected false on a machine without bitsandbytes"),
        ({"qlora": True}, "auto", "training.qlora: expected false without model 'causal' and a lora_rank, got true"),
    ],
)
def test_what_would_not_give_a_whole_expert_is_refused_before_the_run(world, training, strategy, sentence):
    recipe = world.causal(
        "finetune",
        [tiny_lm.source(world.folder, "mood")],
        training=training,
        trainer={"max_epochs": 1, "strategy": strategy},
    )
    for more in ([], ["--check"]):
        done = world.run(recipe, "refused", *more)
        assert done.code == 2
        assert sentence in done.err
        assert len(done.err.splitlines()) == 1


def test_a_sharding_strategy_is_refused_for_encoders(world):
    recipe = world.recipe("finetune", ("mood",), trainer={"strategy": dealt(data_parallel_size=2)})
    done = world.run(recipe, "refused", "--check")
    assert done.code == 2
    assert "trainer.strategy: expected ddp for model 'encoder', got ModelParallelStrategy" in done.err


def test_a_base_in_four_bits_is_asked_for_as_qlora_has_it(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda where, **options: asked.update(options) or SimpleNamespace()
    )
    language_model("base", "bf16-mixed", torch.device("cuda", 1))
    quantised = asked["quantization_config"]
    assert (quantised.load_in_4bit, quantised.bnb_4bit_quant_type) == (True, "nf4")
    assert quantised.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked["device_map"] == {"": torch.device("cuda", 1)}
