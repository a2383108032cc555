"""The headers of checkpoints: what a Hugging Face or PEFT folder holds, found without reading a weight.

Safetensors files are read by their own headers. Pickled files (`pytorch_model.bin`) are opened with weights only, so
that no code in them runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from twinmerge.errors import CheckpointError
from twinmerge.patterns import check_patterns

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_PICKLED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
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
        return sum(map(size_of, self.tensors.values()))

    @property
    def stored(self) -> str:
        """The number format of its weights: that of all, or float32 where they differ."""
        kinds = {dtype for dtype, _ in self.tensors.values() if dtype in ("F64", "F32", "F16", "BF16")}
        return {"BF16": "bfloat16", "F16": "float16"}.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def size_of(entry: tuple[str, tuple[int, ...]]) -> int:
    """Bytes of a tensor by its entry in a header."""
    return _BYTES.get(entry[0], 1) * prod(entry[1])


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
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} has a corrupted safetensors header; copy or train it again.") from error
    try:
        header.pop("__metadata__", None)
        if not all(isinstance(e["shape"], list) and isinstance(e["data_offsets"], list) for e in header.values()):
            raise TypeError("shapes and offsets are lists")
        entries = {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
        offsets = [(name, *entry["data_offsets"]) for name, entry in header.items()]
        places = sorted((int(start), int(stop), str(name)) for name, start, stop in offsets)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
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


def read_pickled(file: Path) -> dict[str, Any]:
    """Tensors of a pickled file, mapped and not read, with weights only.

    Raises:
        CheckpointError: for a missing or broken file, or one that holds anything but tensors.
    """
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # whatever a damaged or foreign file provokes
        raise CheckpointError(
            f"{file} is no file of weights only (a pickle that could run code, or damaged); save the model again with "
            "save_pretrained, which writes safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{file} holds more than tensors by name; save the model again with save_pretrained.")
    return state


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's configuration and headers, no weights.

    Raises:
        CheckpointError: when the folder holds neither a model nor a PEFT adapter, or a broken one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a Hugging Face or PEFT folder.")
    kind = "lora" if (folder / "adapter_config.json").exists() else "full"
    config = read_json(folder / ("adapter_config.json" if kind == "lora" else "config.json"))
    if not isinstance(config, dict):
        raise CheckpointError(f"the configuration of {folder} is no table; copy the folder again.")
    if kind == "lora":
        check_patterns(folder, config)
    files, index = _files(folder, "adapter_model" if kind == "lora" else "model")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    owner: dict[str, Path] = {}
    for file in files:
        for name, entry in (_header_of_pickle(file) if file.suffix == ".bin" else read_header(file)).items():
            tensors[name], owner[name] = entry, file
    if odd := sorted(name for name in index if owner.get(name) != folder / str(index[name])):
        raise CheckpointError(
            f"{folder}: the index places tensor '{odd[0]}' in {index[odd[0]]}, which does not hold it; copy it again."
        )
    return Checkpoint(folder, kind, config, tensors, owner)


def _files(folder: Path, stem: str) -> tuple[list[Path], dict[str, Any]]:
    """The files with the weights, and the table of an index; safetensors before pickles, as transformers has it."""
    old = "pytorch_model" if stem == "model" else stem
    for whole in (f"{stem}.safetensors", f"{old}.bin"):
        if (table := folder / f"{whole}.index.json").exists():
            index = read_json(table)
            index = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(index, dict):
                raise CheckpointError(f"{folder} has an index without weight_map; copy the folder again.")
            names = sorted(set(map(str, index.values())))
            if odd := [n for n in names if not re.fullmatch(rf"[\w.-]+\{Path(whole).suffix}", n)]:
                raise CheckpointError(
                    f"{folder}: the index names the file '{odd[0]}'; only plain names in the folder are read."
                )
            return [folder / n for n in names], index
        if (folder / whole).exists():
            return [folder / whole], {}
    packed = next(folder.glob("*.gguf"), None)
    raise CheckpointError(
        f"{folder} has no {stem}.safetensors and no {old}.bin; "
        + (
            f"{packed.name} is packed for llama.cpp; give the model that it was made from."
            if packed
            else "save the model there with save_pretrained."
        )
    )


def _header_of_pickle(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    kinds = {name: (str(value.dtype).removeprefix("torch."), value) for name, value in read_pickled(file).items()}
    return {name: (_PICKLED.get(kind, kind.upper()), tuple(value.shape)) for name, (kind, value) in kinds.items()}


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
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{file} is not valid JSON ({reason}); copy the folder again.") from error
