"""Read checkpoints that are to be merged: Hugging Face folders and PEFT folders, checked from their headers first.

Names, shapes, vocabularies and tokenizers are compared without reading a weight, so a pre-flight is instant and needs
no torch. Supports safetensors only: pickled files can run code and cannot be inspected without loading them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_HEADER_LIMIT = 100 * 2**20
_FACTORS = {"A.weight": "B.weight", "B.weight": "A.weight", "embedding_A": "embedding_B", "embedding_B": "embedding_A"}
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class _UnknownModuleError(CheckpointError):
    """An adapter changes a module that the base does not seem to have."""


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of a folder say.

    Attributes:
        folder: where it is.
        kind: `full` (config.json and model weights) or `lora` (a PEFT folder).
        config: the parsed config.json or adapter_config.json.
        tensors: tensor name -> (dtype as safetensors writes it, shape).
        files: tensor name -> file that holds it.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    files: Mapping[str, Path] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Size of all tensors together."""
        return sum(_BYTES.get(dtype, 1) * prod(shape) for dtype, shape in self.tensors.values())


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor names, types and shapes of one safetensors file, its layout checked against the file's size.

    Raises:
        CheckpointError: for a missing, truncated or corrupted file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise CheckpointError(f"{file} is not a whole safetensors file ({size} bytes); copy or train it again.")
            header: dict[str, Any] = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} has a corrupted safetensors header; copy or train it again.") from error
    try:
        header.pop("__metadata__", None)
        entries = {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
        offsets = [(name, *entry["data_offsets"]) for name, entry in header.items()]
        places = sorted((int(start), int(stop), str(name)) for name, start, stop in offsets)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has a corrupted safetensors header; copy or train it again.") from error
    end = 0
    for start, stop, name in places:
        dtype, shape = entries[name]
        if start != end or (dtype in _BYTES and stop - start != _BYTES[dtype] * prod(shape)):
            raise CheckpointError(
                f"{file} places tensor '{name}' wrongly; the file is corrupted, copy or train it again."
            )
        end = stop
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file} is truncated or padded: it has {size} bytes and its header announces {8 + length + end}; "
            "copy or train it again."
        )
    return entries


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's configuration and headers, no weights.

    Raises:
        CheckpointError: when the folder holds neither a model nor a PEFT LoRA adapter in safetensors, or a broken one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a Hugging Face or PEFT folder.")
    index: Any = {}
    kind = "lora" if (folder / "adapter_config.json").exists() else "full"
    config = read_json(folder / ("adapter_config.json" if kind == "lora" else "config.json"))
    if kind == "lora":
        _refuse_other_adapters(folder, config)
        files = [folder / "adapter_model.safetensors"]
    elif (folder / "model.safetensors.index.json").exists():
        index = read_json(folder / "model.safetensors.index.json")
        index = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(index, dict):
            raise CheckpointError(f"{folder} has an index without weight_map; copy the folder again.")
        names = sorted(set(map(str, index.values())))
        if odd := [n for n in names if not re.fullmatch(r"[\w.-]+\.safetensors", n)]:
            raise CheckpointError(
                f"{folder}: the index names the file '{odd[0]}'; only plain names in the folder are read."
            )
        files = [folder / n for n in names]
    else:
        files = [folder / "model.safetensors"]
        if not files[0].exists():
            raise CheckpointError(f"{folder} has no model.safetensors; save the model there with save_pretrained.")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    owner: dict[str, Path] = {}
    for file in files:
        for name, entry in read_header(file).items():
            tensors[name], owner[name] = entry, file
    if odd := sorted(name for name in index if owner.get(name) != folder / str(index[name])):
        raise CheckpointError(
            f"{folder}: the index places tensor '{odd[0]}' in {index[odd[0]]}, which does not hold it; copy it again."
        )
    return Checkpoint(folder, kind, config, tensors, owner)


def align(base: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Map a checkpoint's names to the base's, where one of the two carries a model prefix such as `bert.`.

    >>> align(["layer.weight"], ["bert.layer.weight", "classifier.weight"])
    {'layer.weight': 'bert.layer.weight'}
    """
    wanted, given = list(base), list(names)
    prefixes = {""} | {n.split(".", 1)[0] + "." for n in (*given, *wanted) if "." in n}
    candidates = [
        {w: theirs for w in wanted if (theirs := (p + w)) in known or (theirs := w.removeprefix(p)) in known}
        for known in (set(given),)
        for p in sorted(prefixes, key=len)
    ]
    return max(candidates, key=len)


def check_compatible(base: Checkpoint, expert: Checkpoint) -> str:
    """Compare an expert with its base by headers; returns one line saying what was compared.

    Raises:
        CheckpointError: naming the first tensor, vocabulary or tokenizer that differs.
    """
    if expert.kind == "lora":
        return _check_adapter(base, expert)
    ours, theirs = base.config.get("model_type"), expert.config.get("model_type")
    if ours != theirs:
        raise CheckpointError(
            f"{expert.folder} is a {theirs} model and the base {base.folder} is {ours}; "
            "experts must be fine-tunes of the base."
        )
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if base.config.get(key) != expert.config.get(key):
            raise CheckpointError(
                f"{expert.folder} has {key} {expert.config.get(key)} and the base {base.config.get(key)}; "
                "experts must be fine-tunes of the base."
            )
    names = align(base.tensors, expert.tensors)
    for name, (dtype, shape) in base.tensors.items():
        if name not in names:
            if _is_head(name) or dtype.startswith("I"):  # integer buffers come and go between library versions
                continue
            raise CheckpointError(f"{expert.folder} lacks the tensor '{name}' of the base; is it a fine-tune of it?")
        other = expert.tensors[names[name]][1]
        if other != shape:
            raise CheckpointError(
                f"{expert.folder} has '{name}' of shape {list(other)} and the base {list(shape)}; "
                "experts must be fine-tunes of the base."
            )
    _check_tokenizer(base, expert)
    return f"{expert.folder}: {len(names)} tensors of the base's shapes, {expert.bytes / 1e6:.1f} MB"


def read_state(checkpoint: Checkpoint, base: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a full checkpoint under the base's names, and those the base does not have (a task head).

    Raises:
        CheckpointError: for NaN or infinite weights and for missing tensors.
    """
    from safetensors import safe_open

    wanted = list(base)
    names = align(wanted, checkpoint.tensors)
    tensors: dict[str, Tensor] = {}
    if len(names) == len(wanted):
        for file in sorted(set(checkpoint.files.values())):
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - no mapping
    else:  # transformers saves some models, such as fused experts, under other names than they have in memory
        model, report = _architecture(checkpoint).from_pretrained(checkpoint.folder, output_loading_info=True)
        if lacking := sorted(map(str, report["missing_keys"])):
            raise CheckpointError(
                f"{checkpoint.folder} lacks the tensor '{lacking[0]}' of the base; is it a fine-tune of it?"
            )
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        names = align(wanted, tensors)
    if missing := [n for n in wanted if n not in names]:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor '{missing[0]}' of the base; is it a fine-tune of it?"
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{checkpoint.folder}: tensor '{name}' holds NaN or infinite values; train the expert again."
            )
    return {ours: tensors.pop(theirs) for ours, theirs in names.items()}, tensors


def _architecture(checkpoint: Checkpoint) -> Any:
    import transformers

    name = next(iter(checkpoint.config.get("architectures") or ()), "")
    found = getattr(transformers, name, None)
    if not hasattr(found, "from_pretrained"):
        raise CheckpointError(f"{checkpoint.folder} is of architecture '{name}', which transformers does not have.")
    return found


def _in_memory(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, from its configuration alone."""
    import torch

    kind = _architecture(checkpoint)
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(checkpoint.folder))
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def read_lora(checkpoint: Checkpoint, base: Iterable[str]) -> dict[str, tuple[float, Tensor, Tensor]]:
    """The terms scale * B @ A of a PEFT LoRA folder by base parameter name (as the layer multiplies it, out x in).

    Raises:
        CheckpointError: for a parameter the base does not have, a tensor that is not LoRA, or NaN.
    """
    from safetensors.torch import load_file

    tensors = load_file(checkpoint.folder / "adapter_model.safetensors")
    config = checkpoint.config
    terms: dict[str, tuple[float, Tensor, Tensor]] = {}
    for name, (module, first, second) in _adapted(checkpoint, base).items():
        A, B = tensors[first], tensors[second]
        if not (A.isfinite().all() and B.isfinite().all()):
            raise CheckpointError(
                f"{checkpoint.folder}: LoRA of '{name}' holds NaN or infinite values; train it again."
            )
        rank = A.shape[0]
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        embedding = first.endswith("embedding_A")
        terms[name] = (scale, A.t(), B.t()) if embedding else (scale, B.flatten(1), A.flatten(1))
    return terms


def _adapted(checkpoint: Checkpoint, base: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """What an adapter changes: base parameter -> (module, key of A, key of B); refuses all that is no LoRA factor."""
    found = {}
    for key, (_, shape) in checkpoint.tensors.items():
        module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind not in _FACTORS:
            raise CheckpointError(
                f"{checkpoint.folder}: '{key}' is not a LoRA factor of a weight; merge the adapter into its base with "
                "PEFT's merge_and_unload and give the full folder instead."
            )
        other = key.removesuffix(kind) + _FACTORS[kind]
        if other not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.folder} has '{key}' without its other factor; copy the folder again.")
        if "A" in kind:
            ranks = shape[0], checkpoint.tensors[other][1][1]
            if ranks[0] != ranks[1]:
                raise CheckpointError(
                    f"{checkpoint.folder}: the factors of '{module}' have ranks {ranks[0]} and {ranks[1]} (a grouped "
                    "convolution?); merge the adapter into its base with PEFT's merge_and_unload and give that folder."
                )
            found[f"{module}.weight"] = (module, key, other)
    names = align(base, found)
    if unknown := sorted(found.keys() - names.values()):
        raise _UnknownModuleError(f"{checkpoint.folder} changes '{unknown[0]}', which the base does not have.")
    return {ours: found[theirs] for ours, theirs in names.items()}


def _check_adapter(base: Checkpoint, expert: Checkpoint) -> str:
    shapes = {name: shape for name, (_, shape) in base.tensors.items()}
    try:
        adapted = _adapted(expert, shapes)
    except _UnknownModuleError:  # transformers saves some models under other names than they have in memory
        shapes = _in_memory(base)
        adapted = _adapted(expert, shapes)
    for name, (_, first, second) in adapted.items():
        A, B = expert.tensors[first][1], expert.tensors[second][1]
        product, shape = (B[0], prod(A[1:])), shapes[name]
        if (shape[0], prod(shape[1:])) not in (product, product[::-1]):  # transposed: embeddings and Conv1D
            raise CheckpointError(
                f"{expert.folder} adapts '{name}' as {list(product)} and the base has {list(shape)}; "
                "experts must be fine-tunes of the base."
            )
    _check_tokenizer(base, expert)
    return f"{expert.folder}: LoRA adapter of {len(adapted)} of the base's tensors"


def _refuse_other_adapters(folder: Path, config: Mapping[str, Any]) -> None:
    kind, start = config.get("peft_type"), str(config.get("init_lora_weights", True)).lower()
    odd = [key for key in ("use_dora", "layer_replication", "target_parameters") if config.get(key)]
    if kind != "LORA" or odd:
        named = f"a {kind} adapter" + (f" with {odd[0]}" if odd else "")
        raise CheckpointError(f"{folder} holds {named}; only plain LoRA can be merged exactly.")
    if start.startswith(("pissa", "olora", "corda")):
        raise CheckpointError(
            f"{folder} was initialised by {start}, which changes the base; save it with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it and give the full folder."
        )


def _pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    return next((v for k, v in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({k})", module)), default)


def _is_head(name: str) -> bool:
    return name.split(".", 1)[0] in {"classifier", "score", "cls", "lm_head", "qa_outputs", "pre_classifier"}


def read_json(file: Path) -> Any:
    """Content of a JSON file.

    Raises:
        CheckpointError: for a missing or broken file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); give a Hugging Face, PEFT or twin folder."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy the folder again.") from error


def _check_tokenizer(base: Checkpoint, expert: Checkpoint) -> None:
    both = (name for name in _TOKENIZERS if (base.folder / name).exists() and (expert.folder / name).exists())
    name = next(both, None)
    if name is not None and _vocabulary(base.folder / name) != _vocabulary(expert.folder / name):
        raise CheckpointError(
            f"{expert.folder} has another tokenizer than the base {base.folder} ({name} differs); "
            "experts must be fine-tunes of the base."
        )


def _vocabulary(file: Path) -> Any:
    if file.name != "tokenizer.json":
        return file.read_bytes()
    # Only what maps text to ids counts: padding and truncation settings are written back by every save.
    content = read_json(file)
    return {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
