"""The parameters of a mergekit configuration by their precedence, as settings of our methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from twinmerge.errors import CheckpointError
from twinmerge.headers import inspect_checkpoint
from twinmerge.local import local_folder

Table = Mapping[str, object]


class Reader:
    """The parameters of a configuration by their precedence: those of a model, of its slice, and of the whole."""

    def __init__(self, config: Table) -> None:
        self.problems: list[str] = []
        self.used: set[str] = set()
        self.scopes: list[Table] = []
        self.models = self._models(config)
        self.scopes.append(table(config.get("parameters")))
        self.base = reference(config["base_model"]) if config.get("base_model") else None
        self.inputs = [name for name, _ in self.models]
        if twice := [name for index, name in enumerate(self.inputs) if name in self.inputs[:index]]:
            self.problems.append(f"model {twice[0]} is listed twice; list it once with the sum of its weights")
        self.experts = [name for name in self.inputs if name != self.base]

    def _models(self, config: Table) -> list[tuple[str, Table]]:
        rows, slices = rows_of(config.get("models")), rows_of(config.get("slices"))
        if not rows and len(slices) == 1:
            part = slices[0]
            if odd := sorted(set(part) - {"sources", "parameters"}):
                self.problems.append(f"slices: '{odd[0]}' is not supported")
            self.scopes.append(table(part.get("parameters")))
            rows = rows_of(part.get("sources"))
            self.problems += [problem for row in rows for problem in _part_of_model(row)]
        if not rows:
            raise CheckpointError(
                "the configuration has neither 'models' nor one slice of whole models; a model put together from "
                "layers of others is no merge of fine-tunes."
            )
        return [(reference(row["model"]), table(row.get("parameters"))) for row in rows]

    def of(self, name: str, model: str | None = None, default: float | None = None) -> object:
        """A parameter as a setting of `twinmerge.functional.weights`; None where it is nowhere."""
        self.used.add(name)
        own = [parameters for key, parameters in self.models if key == model]
        found: dict[str, object] = {}
        for part, value in chain.from_iterable(_conditions(scope.get(name)) for scope in (*own, *self.scopes)):
            found.setdefault(part, value)
            if part == "*":  # what follows is asked of no tensor
                break
        if default is not None:
            found.setdefault("*", default)
        if not found:
            return None
        return found["*"] if set(found) == {"*"} else found

    def each(self, name: str, models: Sequence[str], default: float | None = None) -> list[object]:
        """A parameter of every model; one without default must be somewhere."""
        values = [self.of(name, model, default) for model in models]
        if None in values:
            self.problems.append(f"parameter '{name}' of {models[values.index(None)]} is missing")
        return values

    def plain(self, name: str, default: float, models: Sequence[str] = ()) -> float:
        """A parameter that is one number for all tensors and models."""
        values = [self.of(name, model, default) for model in models or (None,)]
        first = values[0]
        if not isinstance(first, int | float) or any(value != first for value in values):
            self.problems.append(f"parameter '{name}' is not one number for all models and tensors, as it must be here")
            return default
        return first


def place_of(model: str, base: str = "") -> str:
    """The folder or Hub name of a model; of one with an adapter that of the adapter."""
    whole, _, adapter = model.partition("+")
    if adapter and base not in ("", whole):
        raise CheckpointError(f"{model} is an adapter of {whole}, but the base is {base}; give an adapter of the base.")
    return adapter or whole


def reference(model: object) -> str:
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
    place = local_folder(place_of(reference(row["model"])))
    layers = inspect_checkpoint(place).config.get("num_hidden_layers")
    if (row.get("layer_range") or [0, layers]) != [0, layers]:
        yield f"slices: layers {row['layer_range']} of {row['model']} are not all of its {layers}"


def _conditions(setting: object) -> Iterator[tuple[str, object]]:
    """A parameter's values by the part of a tensor's name that they are for; '*' is any."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, list) and any(isinstance(row, Mapping) for row in setting):
        for row in rows_of(setting):
            yield str(row.get("filter") or "*"), _number(row.get("value"))
    elif setting is not None:
        yield "*", _number(setting)


def table(value: object) -> Table:
    """A table as such; nothing where it is none."""
    return value if isinstance(value, dict) else {}


def rows_of(value: object) -> list[Table]:
    """A list of tables."""
    return [table(row) for row in value] if isinstance(value, list) else []


def _number(value: object) -> object:
    """Numbers as such: YAML takes 1e-3 for text."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
