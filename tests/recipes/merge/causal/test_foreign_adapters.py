"""Adapters of language models that plain PEFT wrote: read as PEFT answers, or refused before the run."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.recipes.merge.causal import tiny_lm
from twinmerge.checkpoints import inspect_checkpoint
from twinmerge.errors import CheckpointError
from twinmerge.language_folder import read_language_folder

# PEFT warns of what is tried here: that it saves embeddings, and of adapters of one end of a tied base.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def base(place: Path, tied: bool, seed: int = 0, **sizes: int) -> Path:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=48, tie_word_embeddings=tied, **{**SIZES, **sizes}))
    model.save_pretrained(place)
    return place


def adapter(on: Path, place: Path, **options: object) -> Path:
    """A LoRA adapter whose every trained number was moved."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(on), config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(place)
    return place


def read(place: Path, on: Path):
    model = AutoModelForCausalLM.from_pretrained(on, dtype=torch.float32).eval()
    return read_language_folder(place, on, model, headers=inspect_checkpoint(on))


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"target_modules": ["embed_tokens", "q_proj"]}, "factors of 3 matrices"),
        ({"target_modules": ["lm_head", "q_proj"]}, "factors of 3 matrices"),
        ({"target_modules": ["embed_tokens", "lm_head"]}, "factors of 2 matrices"),
        (
            {"modules_to_save": ["lm_head"]},
            "merged into whole weights since it holds 'base_model.model.lm_head.weight'",
        ),
        ({"modules_to_save": ["embed_tokens", "input_layernorm"]}, "beside its factors"),
    ],
)
def test_an_adapter_of_the_ends_is_read_as_peft_answers(tmp_path, options, note):
    on = base(tmp_path / "base", tied=False)
    place = adapter(on, tmp_path / "adapter", **options)
    expert = read(place, on)
    assert note in expert.note
    made = AutoModelForCausalLM.from_pretrained(on).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = made(ids).logits
        made.load_state_dict(expert.state)
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(on), str(place)).eval()(ids).logits
        torch.testing.assert_close(made(ids).logits, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "model.embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"modules_to_save": ["embed_tokens"]}, "model.embed_tokens"),
    ],
)
def test_an_adapter_of_one_end_of_a_tied_base_is_refused_with_a_way_out(tmp_path, options, named):
    on = base(tmp_path / "base", tied=True)
    place = adapter(on, tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match=f"changes '{named}', and the base ties .* tie_word_embeddings false"):
        read(place, on)
    model = AutoModelForCausalLM.from_pretrained(on)  # the way out: the same base, untied
    ids = torch.arange(40)[None]
    if "ensure_weight_tying" not in options:
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(on), str(place)).eval()(ids).logits
        untied = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})).eval()
        untied.load_state_dict(model.state_dict())
        untied.save_pretrained(tmp_path / "untied")
        untied.load_state_dict(read(place, tmp_path / "untied").state)
        torch.testing.assert_close(untied(ids).logits, theirs, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_base_of_the_same_shapes_is_refused_where_that_can_be_seen(tmp_path):
    on, other = base(tmp_path / "base", tied=True), base(tmp_path / "other", tied=True, seed=1)
    place = adapter(other, tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"was trained on .*other, whose 'model.layers.0.* is not that of the base"
    ):
        read(place, on)
    read(place, other)
    half = tmp_path / "half"  # the same weights, rounded
    AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16).save_pretrained(half)
    read(place, half)
    config = json.loads((place / "adapter_config.json").read_text())
    for moved in (str(tmp_path / "gone"), "someone/llama", None, str(tmp_path)):  # nothing to compare with
        (place / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": moved}))
        read(place, on)


def test_what_the_run_would_refuse_is_refused_by_the_check(tmp_path):
    world = tiny_lm.World(tmp_path)
    tasks = [tiny_lm.source(world.folder, "mood"), tiny_lm.source(world.folder, "topic")]
    right = adapter(world.base, tmp_path / "right")
    wrong = adapter(world.base, tmp_path / "wrong", modules_to_save=["lm_head"])
    recipe = world.causal("merge", tasks, experts={"mood": str(right), "topic": str(wrong)})
    done = world.run(recipe, "out", "--check")
    assert done.code == 2
    assert "experts.topic:" in done.err
    assert "the base ties its embedding to its output layer" in done.err


def test_rows_beyond_learned_positions_are_refused_by_the_check(tmp_path):
    world = tiny_lm.World(tmp_path)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 34}
    words = AutoModelForCausalLM.from_pretrained(world.base).config.vocab_size
    GPT2LMHeadModel(GPT2Config(vocab_size=words, pad_token_id=0, eos_token_id=2, **sizes)).save_pretrained(world.base)
    for metric, code in (("exact_match", 2), ("perplexity", 0)):  # rows of 32 tokens, and answers of 3 behind them
        done = world.run(world.causal("finetune", [tiny_lm.source(world.folder, "mood", metric)]), "out", "--check")
        assert done.code == code
    done = world.run(world.causal("finetune", [tiny_lm.source(world.folder, "mood")]), "out", "--check")
    assert "training.max_length: expected at most 31" in done.err
    assert "34 positions and answers of up to 3 tokens (max_new_tokens)" in done.err


def test_a_file_without_rows_is_said_to_have_none(tmp_path):
    world = tiny_lm.World(tmp_path)
    (tmp_path / "none.jsonl").write_text("")
    source = tiny_lm.source(world.folder, "mood") | {"source": "jsonl", "path": str(tmp_path / "none.jsonl")}
    assert "it has no rows" in world.run(world.causal("finetune", [source]), "out", "--check").err
