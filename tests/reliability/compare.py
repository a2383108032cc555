"""What a run folder holds that must not depend on how often the run was broken."""

import csv
import hashlib
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

CLOCK = {"seconds", "ms_per_input", "mean_s_per_step", "duration", "time", "simulator_seconds", "train_seconds"}
UNLIKE = {"command.txt", "environment.json", "report.html", "traceback.txt"}  # they tell when, where and how it ran
SEAL = "MetricsSeal"  # a digest of metrics.csv, which is compared itself, with times in it
SEALED = ".json.sha256"  # digest of a JSON with times in it, which is compared itself
DAMAGE = (SafetensorError, ValueError, RuntimeError, LookupError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
UNREAD = ("tensorboard", "figures", "replays")  # drawn from what is compared


def contents(folder: Path) -> dict[str, Any]:
    """All files of a run folder as values that can be compared.

    Args:
        folder: Of a run, or of the checkpoints that were kept of it.

    Returns:
        By the file's name: the rows of a CSV, the content of a JSON without its times, the tensors and numbers of a
        checkpoint, and the digest of anything else.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        sealed = file.name.endswith(SEALED)
        if file.is_file() and not hidden and not sealed and name.parts[0] not in UNREAD and file.name not in UNLIKE:
            try:
                found[name.as_posix()] = _content(file)
            except DAMAGE as error:
                found[name.as_posix()] = f"damaged: {type(error).__name__}"
    return found


def _content(file: Path) -> Any:
    if file.suffix == ".csv":
        phases: dict[str, list[dict[str, str]]] = {}  # a phase that is tested again may write its row later
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            # columns may come in another order; an empty cell is no cell
            whole = {key: cell for key, cell in row.items() if cell and not _is_clock(key)}
            phases.setdefault(whole.get("phase", ""), []).append(whole)
        return phases
    if file.suffix == ".safetensors":  # whose few words about it come in any order
        with safe_open(file, "pt") as held:
            whole = {name: held.get_tensor(name).contiguous() for name in held.offset_keys()}
            words = held.metadata()
        digests = {
            n: hashlib.sha256(t.flatten().view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in whole.items()
        }
        return {"words": words, "tensors": {n: [str(t.dtype), list(t.shape), digests[n]] for n, t in whole.items()}}
    if file.suffix == ".json":
        content = _timeless(json.loads(file.read_text(encoding="utf-8")))
        if file.name == "MANIFEST.json":
            content.pop("result.json", None)  # it holds times, and is compared itself
        if file.parent.name == "scores":
            content.pop("seal", None)  # a digest of the content, which is compared itself, with times in it
        if file.name == "gapbridge-stamp.json":
            content.pop("seen", None)  # times
            content["files"].pop("adapter_config.json", None)  # the next lines say why, and it is compared itself
        if "target_modules" in content:
            content["target_modules"].sort()  # PEFT writes a set
        return content
    if file.suffix in (".ckpt", ".pt"):
        return _timeless(torch.load(file, map_location="cpu", weights_only=True))
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _is_clock(key: Any) -> bool:
    return str(key).rpartition("/")[2] in CLOCK or key == SEAL


def _timeless(value: Any) -> Any:
    """The value without times and without paths, which say where a run was."""
    if isinstance(value, dict):
        return {_placeless(str(key)): _timeless(item) for key, item in value.items() if not _is_clock(key)}
    if isinstance(value, list | tuple):
        return [_timeless(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value
    return _placeless(value) if isinstance(value, str) else value


def _placeless(text: str) -> str:
    return "a path" if text.startswith("/") else text


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places at which two contents differ, bit for bit; empty when they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{where}/{key} is missing" for key in sorted(one.keys() - other.keys())]
        found += [f"{where}/{key} is new" for key in sorted(other.keys() - one.keys())]
        return found + [d for key in one if key in other for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{where} has {len(other)} entries instead of {len(one)}"]
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if same and torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan()):
            return []
        gap = float((one.double() - other.double()).abs().max()) if one.shape == other.shape and one.numel() else -1.0
        return [f"{where} differs by {gap:.3g}"]
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return []
    return [] if type(one) is type(other) and one == other else [f"{where} is {_short(other)} instead of {_short(one)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
