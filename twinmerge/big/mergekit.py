"""Configurations of mergekit as merges of this package: read, and said of each what it cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from twinmerge.errors import CheckpointError
from twinmerge.headers import inspect_checkpoint
from twinmerge.local import local_folder

Table = Mapping[str, Any]
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
_DRAWN = "draws masks of its own, so that single values differ from those of a run of mergekit"


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
    options: dict[str, Any]
    dtype: str
    remarks: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `merge_files`, but for the folder."""
        return {
            "base": self.base,
            "experts": self.experts,
            "method": self.method,
            "options": self.options,
            "dtype": self.dtype,
        }


class _Reader:
    """The parameters of a configuration by their precedence: those of a model, of its slice, and of the whole."""

    def __init__(self, config: Table) -> None:
        self.problems: list[str] = []
        self.used: set[str] = set()
        self.scopes: list[Table] = []
        self.models = self._models(config)
        self.scopes.append(config.get("parameters") or {})
        self.base = _reference(config["base_model"]) if config.get("base_model") else None
        self.inputs = [name for name, _ in self.models]
        self.experts = [name for name in self.inputs if name != self.base]

    def _models(self, config: Table) -> list[tuple[str, Table]]:
        rows = config.get("models")
        if rows is None and len(config.get("slices") or ()) == 1:
            (part,) = config["slices"]
            if odd := sorted(set(part) - {"sources", "parameters"}):
                self.problems.append(f"slices: '{odd[0]}' is not supported")
            self.scopes.append(part.get("parameters") or {})
            rows = part.get("sources")
            self.problems += [problem for row in rows or () for problem in _part_of_model(row)]
        if not rows:
            raise CheckpointError(
                "the configuration has neither 'models' nor one slice of whole models; a model put together from "
                "layers of others is no merge of fine-tunes."
            )
        return [(_reference(row["model"]), row.get("parameters") or {}) for row in rows]

    def of(self, name: str, model: str | None = None, default: float | None = None) -> Any:
        """A parameter as a setting of `twinmerge.functional.weights`; None where it is nowhere."""
        self.used.add(name)
        own = [parameters for key, parameters in self.models if key == model]
        found: dict[str, Any] = {}
        for scope in (*own, *self.scopes):
            for part, value in _conditions(scope.get(name)):
                found.setdefault(part, value)
        if default is not None:
            found.setdefault("*", default)
        if not found:
            return None
        return found["*"] if set(found) == {"*"} else dict(sorted(found.items(), key=lambda item: item[0] == "*"))

    def each(self, name: str, models: Sequence[str], default: float | None = None) -> list[Any]:
        """A parameter of every model; one without default must be somewhere."""
        values = [self.of(name, model, default) for model in models]
        if None in values:
            self.problems.append(f"parameter '{name}' of {models[values.index(None)]} is missing")
        return values

    def plain(self, name: str, default: Any, models: Sequence[str] = ()) -> Any:
        """A parameter that is one number or word for all tensors and models."""
        values = [self.of(name, model, default) for model in models or (None,)]
        if any(isinstance(value, Mapping | list) or value != values[0] for value in values):
            self.problems.append(f"parameter '{name}' differs between models or tensors, which is not supported")
            return default
        return values[0]


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
    if method not in _METHODS:
        raise CheckpointError(f"{file}: merge_method {method} is not supported; supported are {', '.join(_METHODS)}.")
    reader = _Reader(config)
    reader.problems += _problems_beside(config, reader)
    ours, options, remarks = _METHODS[method](reader)
    dtype, told = _dtype(config, reader.problems)
    known = reader.used | {"int8_mask"}
    given = {key for scope in (*reader.scopes, *(own for _, own in reader.models)) for key in scope}
    reader.problems += [f"parameter '{name}' is none of {method}" for name in sorted(given - known)]
    if reader.problems:
        raise CheckpointError(f"{file} cannot be imported: {'; '.join(dict.fromkeys(reader.problems))}.")
    models = options.pop("models")
    base = reader.base or models[0]
    names = _names(models)
    return Imported(
        _place(base), {name: _place(model, base) for name, model in names.items()}, ours, options, dtype, remarks + told
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


def _place(model: str, base: str = "") -> str:
    """The folder or Hub name of a model; of one with an adapter that of the adapter."""
    whole, _, adapter = model.partition("+")
    if adapter and base not in ("", whole):
        raise CheckpointError(f"{model} is an adapter of {whole}, but the base is {base}; give an adapter of the base.")
    return adapter or whole


def _reference(model: object) -> str:
    """A model as text, `path` or `path+adapter`."""
    if isinstance(model, Mapping):
        inner, adapter = model.get("model"), model.get("lora")
        path = inner.get("path") if isinstance(inner, Mapping) else inner
        extra = adapter.get("path") if isinstance(adapter, Mapping) else adapter
        text = f"{path}+{extra}" if extra else str(path)
    else:
        text = str(model)
    if "@" in text:
        raise CheckpointError(f"{text} names a revision, which is not supported; give a folder with that revision.")
    return text


def _part_of_model(row: Table) -> Iterator[str]:
    """Why the layers of a source are not those of a whole model."""
    place = local_folder(_place(_reference(row["model"])))
    layers = inspect_checkpoint(place).config.get("num_hidden_layers")
    if list(row.get("layer_range") or (0, layers)) != [0, layers]:
        yield f"slices: layers {row['layer_range']} of {row['model']} are not all of its {layers}"


def _problems_beside(config: Table, reader: _Reader) -> Iterator[str]:
    for key in sorted(set(config) - _KEYS):
        yield f"'{key}' is not supported"
    tokenizer = config.get("tokenizer") or {}
    source = config.get("tokenizer_source") or tokenizer.get("source") or "base"
    if str(source) != "base" and str(source) != reader.base:
        yield f"tokenizer {source} is not supported, only the base's, which all models must share"
    if tokenizer.get("tokens") or tokenizer.get("pad_to_multiple_of"):
        yield "rules for single tokens, and padding, are not supported"


def _dtype(config: Table, problems: list[str]) -> tuple[str, list[str]]:
    worked, out = config.get("dtype"), config.get("out_dtype") or config.get("dtype") or "stored"
    if out not in ("stored", "float32", "float16", "bfloat16"):
        problems.append(f"dtype {out} is not supported, only float32, float16 and bfloat16")
    told = [] if worked == "float32" else ["is computed in float32, where mergekit computes in the models' format"]
    return str(out), told


def _conditions(setting: Any) -> Iterator[tuple[str, Any]]:
    """A parameter's values by the part of a tensor's name that they are for; '*' is any."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, list) and any(isinstance(row, Mapping) for row in setting):
        for row in setting:
            yield row.get("filter") or "*", _number(row.get("value"))
    elif setting is not None:
        yield "*", _number(setting)


def _number(value: Any) -> Any:
    """Numbers as such: YAML takes 1e-3 for text."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value


# How each method of mergekit is one of ours: its name, its options with the models, and remarks.
Said = tuple[str, dict[str, Any], list[str]]


def _all_models(reader: _Reader) -> list[str]:
    inside = reader.base is None or reader.base in reader.inputs
    return reader.inputs if inside else [*reader.inputs, cast(str, reader.base)]


def _linear(reader: _Reader) -> Said:
    models = _all_models(reader)
    options = {"weights": reader.each("weight", models), "normalize": bool(reader.plain("normalize", True))}
    return "linear", {"models": models, **options}, []


def _shared(reader: _Reader) -> dict[str, Any]:
    """What the methods on task vectors have in common."""
    if reader.base is None:
        reader.problems.append("base_model is missing")
    if not reader.experts:
        reader.problems.append("there is no model beside the base")
    return {
        "models": reader.experts,
        "weights": reader.each("weight", reader.experts),
        "scale": reader.of("lambda", default=1.0),
    }


def _only(reader: _Reader, name: str, default: bool, models: Sequence[str] = ()) -> None:
    """Note a switch that only has the method's own setting here."""
    if bool(reader.plain(name, default, models)) != default:
        reader.problems.append(f"'{name}: {not default}' is not supported with this method")


def _task_arithmetic(reader: _Reader) -> Said:
    options = _shared(reader)
    for name in ("normalize", "rescale"):
        _only(reader, name, default=False)
    reader.used.add("density")  # mergekit takes it and has no use for it
    return "task_arithmetic", options, []


def _ties(reader: _Reader) -> Said:
    options = _shared(reader)
    _only(reader, "rescale", default=False)
    density = reader.each("density", reader.experts, 1.0)
    normalize = bool(reader.plain("normalize", True))
    return "ties", {**options, "density": density, "trim": "tensor", "normalize": normalize}, []


def _breadcrumbs(elect: bool) -> Callable[[_Reader], Said]:
    def said(reader: _Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=False)
        normalize = bool(reader.plain("normalize", False))
        if normalize and not elect:
            reader.problems.append("'normalize: true' is not supported with breadcrumbs")
        options |= {
            "density": reader.each("density", reader.experts, 1.0),
            "gamma": reader.plain("gamma", 0.01, reader.experts),
            "elect": elect,
        }
        return "breadcrumbs", options | ({"normalize": normalize} if elect else {}), []

    return said


def _dare(elect: bool) -> Callable[[_Reader], Said]:
    def said(reader: _Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=True)
        _only(reader, "normalize", default=False)
        density = reader.plain("density", 1.0, reader.experts)
        remarks = [_DRAWN, "divides what stays by its share, where mergekit matches the sum of magnitudes"]
        if elect:
            remarks.append("averages the entries that agree, where mergekit adds them")
            return "dare_ties", {**options, "drop": 1 - density, "density": 1.0}, remarks
        return "dare", {**options, "drop": 1 - density}, remarks

    return said


def _della(elect: bool) -> Callable[[_Reader], Said]:
    def said(reader: _Reader) -> Said:
        options = _shared(reader)
        _only(reader, "rescale", default=True)
        _only(reader, "normalize", default=elect)
        density = reader.plain("density", 1.0, reader.experts)
        spread = 0.0 if density >= 1 else 2 * reader.plain("epsilon", 0.15, reader.experts)
        remarks = [_DRAWN, "divides each entry by its own probability to stay, as in the paper"]
        return "della", {**options, "drop": 1 - density, "spread": spread, "elect": elect}, remarks

    return said


def _slerp(reader: _Reader) -> Said:
    if reader.base is None or len(reader.experts) != 1:
        reader.problems.append("slerp takes base_model and one other model")
    models = [reader.base or "", *reader.experts]
    place = reader.of("t")
    if place is None:
        reader.problems.append("parameter 't' is missing")
    return "slerp", {"models": models, "t": place}, []


def _multislerp(reader: _Reader) -> Said:
    options = {
        "models": reader.experts,
        "weights": reader.each("weight", reader.experts),
        "normalize": bool(reader.plain("normalize_weights", True)),
        "around": "base" if reader.base else "origin",
    }
    reader.used.add("eps")
    return "multi_slerp", options, []


def _karcher(reader: _Reader) -> Said:
    options = {"iterations": int(reader.plain("max_iter", 10)), "tolerance": reader.plain("tol", 1e-5)}
    return "karcher", {"models": _all_models(reader), **options}, []


def _model_stock(reader: _Reader) -> Said:
    if reader.base is None:
        reader.problems.append("base_model is missing")
    return "model_stock", {"models": reader.experts, "rows": bool(reader.plain("filter_wise", False))}, []


def _sce(reader: _Reader) -> Said:
    if reader.base is None:
        reader.problems.append("base_model is missing")
    return "sce", {"models": reader.experts, "select": reader.plain("select_topk", 1.0), "floor": 1e-6}, []


_METHODS: Mapping[str, Callable[[_Reader], Said]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare(elect=False),
    "dare_ties": _dare(elect=True),
    "della": _della(elect=True),
    "della_linear": _della(elect=False),
    "breadcrumbs": _breadcrumbs(elect=False),
    "breadcrumbs_ties": _breadcrumbs(elect=True),
    "slerp": _slerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "model_stock": _model_stock,
    "sce": _sce,
}
