"""Experts that are no fine-tunes of the base, and broken files, are refused in one sentence, from headers alone."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from tests.twinmerge import tiny
from twinmerge import CheckpointError
from twinmerge.checkpoints import align, check_compatible, inspect_checkpoint, read_header, read_state


def save(model: Any, folder: Path, tokenizer: str = "one") -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokenizer}, "padding": str(folder)}))
    return folder


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def config_of(**changes: Any) -> Any:
    config = tiny.bert().config
    for key, value in changes.items():
        setattr(config, key, value)
    return config


OTHERS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "architecture": (tiny.llama, ("is a llama model", "is bert")),
    "vocabulary": (lambda: transformers.BertModel(config_of(vocab_size=65)), ("has vocab_size 65", "64")),
    "width": (lambda: transformers.BertModel(config_of(hidden_size=16)), ("has hidden_size 16",)),
    "depth": (lambda: transformers.BertModel(config_of(num_hidden_layers=1)), ("has num_hidden_layers 1",)),
    "shape": (lambda: transformers.BertModel(config_of(intermediate_size=40)), ("of shape [40", "[48")),
    "pooler": (lambda: transformers.BertModel(config_of(), add_pooling_layer=False), ("lacks the tensor 'pooler",)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_experts_of_another_base_are_refused(kind: str, tmp_path: Path) -> None:
    build, parts = OTHERS[kind]
    base = inspect_checkpoint(save(tiny.bert(), tmp_path / "base"))
    other = inspect_checkpoint(save(build(), tmp_path / "other"))
    refused(lambda: check_compatible(base, other), str(tmp_path / "other"), *parts)
    if kind in ("architecture", "depth", "pooler"):
        refused(lambda: read_state(other, tiny.names_of(tiny.bert())), "lacks the tensor")


def test_another_tokenizer_is_refused_and_its_settings_are_not(tmp_path: Path) -> None:
    base = inspect_checkpoint(save(tiny.bert(), tmp_path / "base"))
    assert "tensors of the base's shapes" in check_compatible(
        base, inspect_checkpoint(save(tiny.bert_classifier(), tmp_path / "same"))
    )
    other = inspect_checkpoint(save(tiny.bert(), tmp_path / "other", tokenizer="two"))
    refused(lambda: check_compatible(base, other), "another tokenizer", "tokenizer.json differs")
    for folder, words in (("base", "a b"), ("other", "a c")):
        (tmp_path / folder / "tokenizer.json").unlink()
        (tmp_path / folder / "vocab.txt").write_text(words)
    refused(lambda: check_compatible(base, other), "vocab.txt differs")


def test_nan_weights_and_lost_tensors_are_named(tmp_path: Path) -> None:
    folder = save(tiny.bert(), tmp_path / "expert")
    tensors = load_file(folder / "model.safetensors")
    names = tiny.names_of(tiny.bert())
    save_file(tensors | {"pooler.dense.bias": torch.full((32,), torch.nan)}, folder / "model.safetensors")
    refused(lambda: read_state(inspect_checkpoint(folder), names), "'pooler.dense.bias' holds NaN")
    save_file(
        {k: v for k, v in tensors.items() if k != "pooler.dense.bias"}, folder / "model.safetensors", {"format": "pt"}
    )
    refused(lambda: read_state(inspect_checkpoint(folder), names), "lacks the tensor 'pooler.dense.bias'")


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x10\x00",
    "huge": struct.pack("<Q", 2**60) + b"{}",
    "text": struct.pack("<Q", 4) + b"oops",
    "list": struct.pack("<Q", 2) + b"[]",
    "numbers": struct.pack("<Q", 7) + b'{"a":1}',
    "fields": struct.pack("<Q", 18) + b'{"a":{"dtype":"F"}}'[:18],
    "latin": struct.pack("<Q", 2) + b"\xff\xfe",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_broken_headers(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(HEADERS[kind])
    refused(lambda: read_header(file), str(file))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_to_layout_or_length_is_a_sentence(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes of the header change, the answer is a table of tensors or one sentence."""
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "none": torch.ones(0)}, file)
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
        file.write_bytes(bytes(content))
        refused(lambda: read_header(file), str(file))
        return
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    try:
        assert isinstance(read_header(file), dict)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    folder = save(tiny.bert(), tmp_path / "sharded")
    refused(lambda: inspect_checkpoint(tmp_path / "none"), "is not a folder")
    refused(lambda: inspect_checkpoint(tmp_path), "config.json cannot be read")
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    refused(lambda: inspect_checkpoint(folder), "has no model.safetensors")
    index = folder / "model.safetensors.index.json"
    for content, part in (
        ("{}", "without weight_map"),
        ("[]", "without weight_map"),
        ("{", "is not valid JSON"),
        (json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}), "only plain names"),
        (json.dumps({"weight_map": {"a": "none.safetensors"}}), "cannot be read"),
        (json.dumps({"weight_map": {"a": "elsewhere.safetensors"}}), "the index places tensor 'a'"),
    ):
        index.write_text(content)
        refused(lambda: inspect_checkpoint(folder), part)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused(lambda: inspect_checkpoint(adapter), "has no adapter_model.safetensors")


@given(st.lists(st.sampled_from(["a.w", "a.b", "b.w", "c.d.w"]), unique=True), st.sampled_from(["", "bert.", "model."]))
def test_align_finds_the_prefix(names: list[str], prefix: str) -> None:
    assert align(names, [prefix + n for n in names] + ["classifier.x"]) == {n: prefix + n for n in names}
    assert align([prefix + n for n in names], names) == {prefix + n: n for n in names}


def test_looking_at_headers_needs_no_torch(tmp_path: Path) -> None:
    folder = save(tiny.bert(), tmp_path / "base")
    code = (
        "import sys, pathlib; from twinmerge.checkpoints import *; c = inspect_checkpoint(pathlib.Path(sys.argv[1]));"
        "print(check_compatible(c, c)); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=root, capture_output=True)
