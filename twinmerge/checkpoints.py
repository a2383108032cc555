"""Read checkpoints that are to be merged: Hugging Face folders and PEFT folders, checked from their headers first.

Names, shapes, vocabularies and tokenizers are compared without reading a weight, so a pre-flight is instant and needs no
torch. Supports safetensors only: pickled files can run code and cannot be inspected without loading them.
"""

from __future__ import annotations

import hashlib
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
    header.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        wanted = _BYTES.get(entry["dtype"], 1) * prod(entry["shape"])
        if start != end or (entry["dtype"] in _BYTES and stop - start != wanted):
            raise CheckpointError(
                f"{file} places tensor '{name}' wrongly; the file is corrupted, copy or train it again."
            )
        end = stop
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file} is truncated or padded: it has {size} bytes and its header announces {8 + length + end}; "
            "copy or train it again."
        )
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's configuration and headers, no weights.

    Raises:
        CheckpointError: when the folder holds neither a model nor a PEFT LoRA adapter in safetensors, or holds it broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a Hugging Face or PEFT folder.")
    kind = "lora" if (folder / "adapter_config.json").exists() else "full"
    config = _read_json(folder / ("adapter_config.json" if kind == "lora" else "config.json"))
    if kind == "lora":
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            raise CheckpointError(
                f"{folder} holds a {config.get('peft_type')} adapter; only plain LoRA can be merged exactly."
            )
        files = [folder / "adapter_model.safetensors"]
    elif (folder / "model.safetensors.index.json").exists():
        index = _read_json(folder / "model.safetensors.index.json")["weight_map"]
        names = sorted(set(index.values()))
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
        return f"{expert.folder}: LoRA adapter, {len(expert.tensors)} tensors"
    ours, theirs = base.config.get("model_type"), expert.config.get("model_type")
    if ours != theirs:
        raise CheckpointError(
            f"{expert.folder} is a {theirs} model and the base {base.folder} is {ours}; experts must be fine-tunes of the base."
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
    digests = [_tokenizer_digest(c.folder) for c in (base, expert)]
    if None not in digests and digests[0] != digests[1]:
        raise CheckpointError(
            f"{expert.folder} has another tokenizer than the base {base.folder}; they must be the same."
        )
    return f"{expert.folder}: {len(names)} tensors of the base's shapes, {expert.bytes / 1e6:.1f} MB"


def read_state(checkpoint: Checkpoint, base: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a full checkpoint under the base's names, and those the base does not have (a task head).

    Raises:
        CheckpointError: for NaN or infinite weights and for missing tensors.
    """
    from safetensors import safe_open

    wanted = list(base)
    names = align(wanted, checkpoint.tensors)
    if missing := [n for n in wanted if n not in names]:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor '{missing[0]}' of the base; is it a fine-tune of it?"
        )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(checkpoint.files.values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                tensors[name] = opened.get_tensor(name)
                if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
                    raise CheckpointError(
                        f"{file}: tensor '{name}' holds NaN or infinite values; train the expert again."
                    )
    merged = {ours: tensors.pop(theirs) for ours, theirs in names.items()}
    return merged, tensors


def read_lora(checkpoint: Checkpoint, base: Iterable[str]) -> dict[str, tuple[float, Tensor, Tensor]]:
    """The terms scale * B @ A of a PEFT LoRA folder by base parameter name (as the layer multiplies it, out x in).

    Raises:
        CheckpointError: for a parameter the base does not have, a tensor that is not LoRA, or NaN.
    """
    from safetensors.torch import load_file

    tensors = load_file(checkpoint.folder / "adapter_model.safetensors")
    config, known = checkpoint.config, set(base)
    terms: dict[str, tuple[float, Tensor, Tensor]] = {}
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{checkpoint.folder}: tensor '{key}' holds NaN or infinite values; train it again.")
        module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind not in ("A.weight", "B.weight", "embedding_A", "embedding_B"):
            raise CheckpointError(
                f"{checkpoint.folder}: '{key}' is not a LoRA factor of a weight; merge the adapter into its base with PEFT's "
                "merge_and_unload and give the full folder instead."
            )
        if kind not in ("A.weight", "embedding_A"):
            continue
        name = next((n for n in (f"{module}.weight", f"{module.partition('.')[2]}.weight") if n in known), None)
        if name is None:
            raise CheckpointError(f"{checkpoint.folder} changes '{module}', which the base does not have.")
        rank = value.shape[0]
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if kind == "embedding_A":
            terms[name] = (scale, value.t(), tensors[key.replace("_A", "_B")].t())
        else:
            terms[name] = (scale, tensors[key.replace("lora_A", "lora_B")].flatten(1), value.flatten(1))
    return terms


def _pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    return next((v for k, v in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({k})", module)), default)


def _is_head(name: str) -> bool:
    return name.split(".", 1)[0] in {"classifier", "score", "cls", "lm_head", "qa_outputs", "pre_classifier"}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); give a Hugging Face or PEFT folder."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy the folder again.") from error


def _tokenizer_digest(folder: Path) -> str | None:
    # Only what maps text to ids counts: padding and truncation settings are written back by every save.
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    content = _read_json(file)
    kept = {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
