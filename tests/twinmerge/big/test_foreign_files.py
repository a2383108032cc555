"""Merges of files that others wrote: right, or refused in a sentence; nothing is lost or written wrongly in silence."""

import errno
import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.twinmerge.big.small import read, write, write_family
from twinmerge.big.factors import extract_lora
from twinmerge.big.merge import merge_files, plan_files
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def family(tmp_path):
    return write_family(tmp_path, 2, tied=True)


def edit(folder, change, **settings):
    """Change the tensors and the configuration of a folder."""
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize(("scale", "dtype"), [(1e7, "float16"), (3e38, "stored")])
def test_values_that_the_number_format_cannot_hold_are_refused(scale, dtype, family, tmp_path):
    base, experts = family
    with pytest.raises(ValueError, match=r"NaN or infinite values"):
        merge_files(base, experts, tmp_path / "out", options={"scale": scale, "weights": 1e3}, dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_a_copied_head_that_the_number_format_cannot_hold_is_refused(family, tmp_path):
    base, experts = family
    edit(base, lambda tensors: tensors.update({"score.weight": torch.full((2, 32), 1e5)}))
    with pytest.raises(CheckpointError, match=r"'score.weight' has NaN or infinite values in F16"):
        merge_files(base, experts, tmp_path / "out", dtype="float16")


def test_weights_of_one_expert_alone_are_not_lost(family):
    base, experts = family
    stored = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "value_head.weight": torch.ones(1, 32)}
    edit(experts["e0"], lambda tensors: tensors.update(stored))  # no weights of the layers
    plan_files(base, experts)
    edit(experts["e0"], lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"has 'model.layers.1.self_attn.q_proj.bias', which the base does not"):
        plan_files(base, experts)


def test_what_is_no_weight_is_the_base_s_or_refused(family, tmp_path):
    base, experts = family
    beside = {"mask": torch.ones(3, dtype=torch.bool), "ids": torch.arange(5, dtype=torch.int8)}
    edit(base, lambda tensors: tensors.update(beside))
    edit(experts["e0"], lambda tensors: tensors.update(beside))  # the other expert has none of them
    merge_files(base, experts, tmp_path / "out")
    found = read(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in beside.items())
    edit(experts["e1"], lambda tensors: tensors.update({"ids": torch.arange(5, dtype=torch.int8) + 1}))
    with pytest.raises(CheckpointError, match=r"expert 'e1' changed 'ids', which is no weight"):
        merge_files(base, experts, tmp_path / "again")


def test_running_statistics_are_averaged_whatever_the_method(tmp_path):
    draw = torch.Generator().manual_seed(0)
    states = [
        {
            "layers.0.weight": torch.randn(4, 4, generator=draw),
            "layers.0.running_var": torch.rand(4, generator=draw),
            "layers.0.num_batches_tracked": torch.tensor(number),
        }
        for number in range(3)
    ]
    for name, state in zip(("base", "a", "b"), states, strict=True):
        write(tmp_path / name, state, {"model_type": "resnet"})
    for method in ("task_arithmetic", "ties"):
        merge_files(tmp_path / "base", {n: tmp_path / n for n in "ab"}, tmp_path / method, method=method)
        found = read(tmp_path / method)["layers.0.running_var"]
        torch.testing.assert_close(found, (states[1]["layers.0.running_var"] + states[2]["layers.0.running_var"]) / 2)


def test_packed_models_are_refused(family, tmp_path):
    base, experts = family
    edit(experts["e1"], lambda tensors: None, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"is quantised \(gptq\), and packed weights cannot be merged"):
        plan_files(base, experts)
    shutil.copytree(base, tmp_path / "packed")
    (tmp_path / "packed/model.safetensors").rename(tmp_path / "packed/model.gguf")
    with pytest.raises(CheckpointError, match=r"model.gguf is packed for llama.cpp; give the model"):
        plan_files(base, {"a": tmp_path / "packed"})


def test_no_folder_that_is_read_is_replaced(family, tmp_path):
    base, experts = family
    for target in (base, experts["e1"], tmp_path):
        with pytest.raises(CheckpointError, match=r"which is read, and would replace it; give another folder"):
            merge_files(base, experts, target, overwrite=True)
    with pytest.raises(CheckpointError, match="which is read"):
        extract_lora(base, experts["e0"], experts["e0"], rank=2, overwrite=True)
    assert all((folder / "model.safetensors").is_file() for folder in (base, *experts.values()))


def test_a_full_disk_is_one_sentence_and_the_merge_goes_on(family, tmp_path, monkeypatch):
    base, experts = family
    merge_files(base, experts, tmp_path / "whole")
    written, put = [], os.pwrite

    def full(descriptor, data, offset):
        written.append(offset)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "")
        return put(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"out cannot be written: No space left on device; give a folder where"):
        merge_files(base, experts, tmp_path / "out")
    monkeypatch.setattr(os, "pwrite", put)
    kept = (tmp_path / ".out.merging/.journal").read_text().count("tensor ")
    assert kept > 3
    merge_files(base, experts, tmp_path / "out")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: File exists|cannot be written: Not a directory"):
        merge_files(base, experts, tmp_path / "file/out")


def test_links_that_lead_nowhere_are_passed_over(family, tmp_path):
    base, experts = family
    for folder in (base, experts["e1"]):
        (folder / "tokenizer.json").symlink_to("blobs/0f3a")
    merge_files(base, experts, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(ValueError, match="experts: expected a mapping from text to text or a Path, got"):
        plan_files(base, list(experts.values()))


def test_a_link_in_the_output_s_place_is_replaced_and_what_it_leads_to_is_kept(family, tmp_path):
    base, experts = family
    (tmp_path / "old").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "old")
    merge_files(base, experts, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/model.safetensors").is_file()
    assert not list((tmp_path / "old").iterdir())
    assert not list(tmp_path.glob(".*"))


def test_parts_of_names_in_another_order_are_another_merge(family, tmp_path, monkeypatch):
    from twinmerge.big.writing import Journal

    base, experts = family
    orders = [{"mlp": 0.1, "up_proj": 0.9, "*": 0.5}, {"up_proj": 0.9, "mlp": 0.1, "*": 0.5}]
    merge_files(base, experts, tmp_path / "whole", options={"scale": orders[1]})
    note = Journal.note

    def stop(self, what):
        note(self, what)
        if UP in what:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "note", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files(base, experts, tmp_path / "out", options={"scale": orders[0]})
    monkeypatch.setattr(Journal, "note", note)
    merge_files(base, experts, tmp_path / "out", options={"scale": orders[1]})
    assert torch.equal(read(tmp_path / "out")[UP], read(tmp_path / "whole")[UP])


def test_options_are_tried_before_anything_is_read(family):
    base, experts = family
    for method, options, said in (
        ("ties", {"density": 5.0}, "the density is 5.0"),
        ("slerp", {"t": "half"}, "t: expected a finite number"),
        ("task_arithmetic", {"scale": {"mlp": 0.5}}, "add one for '*'"),
        ("multi_slerp", {"weights": [1.0, -1.0]}, "add up to 0: give others"),
        ("karcher", {"weights": [1.0, -1.0]}, "add up to 0: give others"),
        ("task_arithmetic", {"weights": [1.0]}, "1 values are given for 2 experts"),
    ):
        with pytest.raises(ValueError, match=said):
            plan_files(base, experts, method=method, options=options)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=True, **sizes))


def gpt2():
    """With as many positions as channels, as GPT-2 medium has: a square embedding beside turned layers."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(24).view(2, 12)).logits


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT
@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_extracted_adapter_of_a_tied_model_is_merged_as_peft_reads_it(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    tuned = make()
    for value in tuned.parameters():
        value.data += 0.1 * torch.randn_like(value)
    tuned.save_pretrained(tmp_path / "tuned")
    extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=5)
    read_by_peft = PeftModel.from_pretrained(make(), tmp_path / "adapter")
    merge_files(tmp_path / "base", {"a": tmp_path / "adapter"}, tmp_path / "out", options={"scale": 1.0})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(read_by_peft), atol=1e-5, rtol=1e-4)
    assert (logits(merged) - logits(make())).abs().max() > 0.05


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=str)
def test_an_adapter_of_one_use_of_a_tied_embedding_is_refused(targets, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    adapter = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(llama(), adapter).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(CheckpointError, match="does not change the embedding and the output layer alike"):
        plan_files(tmp_path / "base", {"a": tmp_path / "adapter"})


def test_a_gpt2_is_a_causal_language_model(tmp_path):
    import twinmerge

    gpt2().save_pretrained(tmp_path / "base")
    for number, name in enumerate("ab", 1):
        tuned = gpt2()
        torch.manual_seed(number)
        for value in tuned.parameters():
            if value.dim() == 2:
                value.data += 0.1 * torch.randn_like(value)
        tuned.save_pretrained(tmp_path / name)
    twin_files(tmp_path / "base", {n: tmp_path / n for n in "ab"}, tmp_path / "twin", density=1.0)
    twin = twinmerge.load(tmp_path / "twin")
    with torch.no_grad():
        found = twin(torch.arange(24).view(2, 12), router_weights=torch.tensor([[0.0, 1.0]] * 2)).logits
    torch.testing.assert_close(found, logits(tuned), atol=1e-5, rtol=1e-4)
    with pytest.raises(CheckpointError, match="at least two experts"):
        twin_files(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "one", rank=2)


def test_an_adapter_of_a_causal_model_is_sent_on_by_merge_folders(tmp_path):
    from twinmerge import merge_folders

    llama().save_pretrained(tmp_path / "base")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(llama(), adapter).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"is an adapter of a causal language model.* twinmerge.merge_files"):
        merge_folders(tmp_path / "base", dict.fromkeys(("x", "y"), tmp_path / "a"), rank=2)
