"""Configurations of mergekit as merges of this package: read, and said of each what it cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import yaml

from twinmerge.big.merge import Dtype
from twinmerge.big.mergekit_methods import METHODS
from twinmerge.big.mergekit_reader import Reader, Table, place_of, table
from twinmerge.errors import CheckpointError

_KEYS = frozenset(
    (
        "models",
        "slices",
        "merge_method",
        "base_model",
        "dtype",
        "out_dtype",
        "parameters",
        "tokenizer_source",
        "tokenizer",
    )
)


class Arguments(TypedDict):
    """Arguments of `merge_files` that a configuration says."""

    base: str
    experts: dict[str, str]
    method: str
    options: dict[str, object]
    dtype: Dtype


@dataclass
class Imported:
    """A mergekit configuration as the arguments of `merge_files`.

    Attributes:
        base: Folder or Hub name of the base.
        experts: Those of the experts by name, in order.
        method: The static merge.
        options: Its options.
        dtype: Number format of the merged weights.
        remarks: What a user should know: where the result is as good, but not the same to the last bit.
    """

    base: str
    experts: dict[str, str]
    method: str
    options: dict[str, object]
    dtype: Dtype
    remarks: list[str] = field(default_factory=list)

    def arguments(self) -> Arguments:
        """Arguments of `merge_files`, but for the folder."""
        return {
            "base": self.base,
            "experts": self.experts,
            "method": self.method,
            "options": self.options,
            "dtype": self.dtype,
        }


def read_mergekit(file: str | Path) -> Imported:
    """Read a mergekit configuration.

    Args:
        file: Its YAML: linear, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs,
            breadcrumbs_ties, slerp, multislerp, karcher, model_stock or sce, of whole models.

    Returns:
        The same merge as arguments of `merge_files`.

    Raises:
        CheckpointError: For a file that cannot be read, or with all that is in it and cannot be done.
    """
    try:
        config = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} cannot be read as YAML ({' '.join(str(error).split())[:160]}).") from error
    if not isinstance(config, dict) or "merge_method" not in config:
        raise CheckpointError(f"{file} is no mergekit configuration: it has no merge_method.")
    method = str(config["merge_method"])
    if method not in METHODS:
        raise CheckpointError(f"{file}: merge_method {method} is not supported; supported are {', '.join(METHODS)}.")
    reader = Reader(config)
    reader.problems += _problems_beside(config, reader)
    ours, options, remarks = METHODS[method](reader)
    dtype, told = _dtype(config, reader.problems)
    known = reader.used | {"int8_mask"}
    given = {key for scope in (*reader.scopes, *(own for _, own in reader.models)) for key in scope}
    reader.problems += [f"parameter '{name}' is none of {method}" for name in sorted(given - known)]
    if reader.problems:
        raise CheckpointError(f"{file} cannot be imported: {'; '.join(dict.fromkeys(reader.problems))}.")
    models = cast("list[str]", options.pop("models"))
    base = reader.base or models[0]
    names = _names(models)
    return Imported(
        place_of(base),
        {name: place_of(model, base) for name, model in names.items()},
        ours,
        options,
        dtype,
        remarks + told,
    )


def _names(models: Sequence[str]) -> dict[str, str]:
    """A name for each model: the last part of its path, numbered where it is not the only one."""
    found: dict[str, str] = {}
    for model in models:
        stem = re.sub(r"[^A-Za-z0-9_-]", "-", model.rpartition("+")[2].rstrip("/").rpartition("/")[2]) or "model"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found[name] = model
    return found


def _problems_beside(config: Table, reader: Reader) -> Iterator[str]:
    for key in sorted(set(config) - _KEYS):
        yield f"'{key}' is not supported"
    tokenizer = table(config.get("tokenizer"))
    source = config.get("tokenizer_source") or tokenizer.get("source") or "base"
    if str(source) != "base" and str(source) != reader.base:
        yield f"tokenizer {source} is not supported, only the base's, which all models must share"
    if tokenizer.get("tokens") or tokenizer.get("pad_to_multiple_of"):
        yield "rules for single tokens, and padding, are not supported"


def _dtype(config: Table, problems: list[str]) -> tuple[Dtype, list[str]]:
    worked, out = config.get("dtype"), config.get("out_dtype") or config.get("dtype") or "stored"
    if out not in ("stored", "float32", "float16", "bfloat16"):
        problems.append(f"dtype {out} is not supported, only float32, float16 and bfloat16")
    told = [] if worked == "float32" else ["is computed in float32, where mergekit computes in the models' format"]
    return cast("Dtype", out), told
