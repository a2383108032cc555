"""From a YAML file and overrides to a checked recipe: every mistake at once, each with its line."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from recipes.errors import RecipeError
from recipes.fields import FieldError
from recipes.front import table
from recipes.front.schema import REQUIRED, describe, did_you_mean, fields_of, members, show, to_plain
from recipes.front.yaml_lines import REFUSED, Document, Key, dotted, load_yaml

_ABSENT: object = object()
LARGEST = 2**24  # bytes of a recipe file


@dataclass(frozen=True)
class Parsed:
    """A recipe that passed every check of its schema.

    Attributes:
        name: Its name in the table.
        recipe: The dataclass instance.
        plain: The same as plain values, every default filled in.
        source: Where it came from, for messages.
    """

    name: str
    recipe: Any
    plain: dict[str, Any]
    source: str


def find_recipe(file: str) -> tuple[Path, bool]:
    """Return the path of a recipe file, and whether it is the shipped one because no such file exists here."""
    path = Path(file)
    if path.is_file():
        return path, False
    shipped = table.shipped()
    name = file if file.endswith((".yaml", ".yml")) else f"{file}.yaml"
    if path.name == file and name in shipped:
        return shipped[name], True
    if path.is_dir():
        raise RecipeError(f"{file} is a folder; name the recipe file, such as {file.rstrip('/')}/recipe.yaml")
    raise RecipeError(f"{file}: no such file, and no shipped recipe has this name; {did_you_mean(name, list(shipped))}")


def parse(path: Path, overrides: Sequence[str] = ()) -> Parsed:
    """Read a recipe: defaults, then the file, then the overrides from left to right, then every check.

    Args:
        path: The YAML file.
        overrides: `key.sub=value` each; `tasks.0.name=x` changes an item of a list, one past the end adds one.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: With all problems found, ordered by line.
    """
    source = path.name
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise RecipeError(f"{path}: {size} bytes are no recipe; at most {LARGEST} are read")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    document = load_yaml(text, source)
    if document.data is None:
        raise RecipeError(f"{source}: the file is empty; its first key is recipe: {' | '.join(table.entries())}")
    if not isinstance(document.data, dict):
        raise RecipeError(f"{source}:1: expected keys and values, got {show(document.data)}")
    problems = _Problems(document, source)
    for line, message in document.problems:
        problems.rows.append((line, f"{source}:{line}: {message}"))
    pairs = [_split(override) for override in overrides]
    for text, keys, value in pairs:
        if keys == ("recipe",):
            problems.overrides[keys] = text
            document.data["recipe"] = value
    name = document.data.get("recipe", _ABSENT)
    if name is _ABSENT:
        problems.add((), f"recipe: the key is missing; write one of {', '.join(table.entries())}")
        problems.raise_if_any()
    if not isinstance(name, str) or name not in table.entries():
        problems.add(("recipe",), f"unknown recipe {show(name)}; {did_you_mean(str(name), list(table.entries()))}")
        problems.raise_if_any()
    schema = table.load(name).Recipe
    for text, keys, value in pairs:
        problems.overrides.pop(keys, None)  # the last one counts, also in this order
        problems.overrides[keys] = text
        if (refusal := _override(document.data, schema, keys, value)) is not None:
            problems.rows.append((math.inf, f"override {text}: {refusal}"))
    recipe = _Builder(problems).build(schema, document.data, ())
    problems.raise_if_any()
    return Parsed(name, recipe, to_plain(recipe), source)


class _Problems:
    """Collects sentences, each with the line or the override that it is about."""

    def __init__(self, document: Document, source: str) -> None:
        self.document = document
        self.source = source
        self.overrides: dict[Key, str] = {}
        self.rows: list[tuple[float, str]] = []

    def override_of(self, path: Key) -> str | None:
        """Return the last override that set this path or something around it."""
        names = [str(part) for part in path]
        lists = [([str(key) for key in keys], text) for keys, text in self.overrides.items()]
        found = [text for keys, text in lists if names[: len(keys)] == keys]
        if not found and path[:-1] not in self.document.lines:  # a key is missing in what an override made
            found = [text for keys, text in lists if keys[: len(names) - 1] == names[:-1]]
        return found[-1] if found else None

    def add(self, path: Key, message: str) -> None:
        key = f"{dotted(path)}: " if path else ""
        if (text := self.override_of(path)) is not None:
            self.rows.append((math.inf, f"override {text}: {key}{message}"))
            return
        known = path
        while known and known not in self.document.lines:
            known = known[:-1]
        line = self.document.lines.get(known, 1)
        self.rows.append((line, f"{self.source}:{line}: {key}{message}"))

    def raise_if_any(self) -> None:
        if self.rows:
            raise RecipeError(*dict.fromkeys(text for _, text in sorted(self.rows, key=lambda row: row[0])))


def _split(override: str) -> tuple[str, Key, object]:
    name, equals, text = override.partition("=")
    if not equals or not name or "" in name.split("."):
        raise RecipeError(f"override {override}: expected key.sub=value, such as trainer.max_epochs=3")
    document = load_yaml(text, f"override {override}")
    if document.problems:
        raise RecipeError(*(f"override {override}: {message}" for _, message in document.problems))
    keys = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in name.split("."))
    return override, keys, document.data


def _override(data: Any, schema: object, keys: Key, value: object) -> str | None:
    """Set one value inside plain data, or say why not; a list or mapping that the file leaves out has its default."""
    default: object = _ABSENT
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(data, list):
            if not isinstance(key, int) or key > len(data):
                there = f"from 0 to {len(data) - 1}, or {len(data)} to add one" if data else "0, to add one"
                return f"{dotted(keys[:depth])}: expected an index {there}, got {key}"
            if key == len(data):
                data.append({})
            slot: Any = key
        elif isinstance(data, dict):
            slot = str(key)
        else:
            return f"{dotted(keys[:depth])}: {show(data)} has no keys inside"
        schema, default = _child(schema, slot, default)
        if last:
            data[slot] = value
            return None
        present = data[slot] if isinstance(slot, int) else data.get(slot)
        if present is None:
            inherited = to_plain(default) if isinstance(default, list | dict) else {}
            data[slot] = present = copy.deepcopy(inherited)
        data = present
    return None


def _child(schema: object, slot: str | int, default: object) -> tuple[object, object]:
    """Return type and default of what a key leads to, as far as they are known."""
    for member in members(schema):
        if dataclasses.is_dataclass(member):
            for field in fields_of(member):  # type: ignore[arg-type]
                if field.name == slot:
                    inherited = getattr(default, slot) if isinstance(default, member) else field.default  # type: ignore[arg-type]
                    return field.kind, inherited
        elif get_origin(member) in {list, dict}:
            return get_args(member)[-1], _ABSENT
    return Any, _ABSENT


class _Builder:
    """Builds dataclasses from plain data; notes every problem instead of stopping at the first."""

    def __init__(self, problems: _Problems) -> None:
        self.problems = problems

    def build(self, kind: object, value: object, path: Key, base: object = None) -> object:
        """Return the typed value, or `REFUSED` once its problems are noted."""
        kinds = members(kind)
        if value is REFUSED:
            return REFUSED
        if value is None and (type(None) in kinds or kind is Any):
            return None
        blocks = [member for member in kinds if dataclasses.is_dataclass(member)]
        if len(blocks) == 1 and (isinstance(value, dict) or (value is None and len(kinds) == 1)):
            return self.block(blocks[0], value or {}, path, base)
        for origin in (list, dict):
            inner = [get_args(member)[-1] for member in kinds if get_origin(member) is origin]
            if len(inner) == 1 and isinstance(value, origin):
                return self.items(inner[0], value, path)
        if kind is Any:
            return value
        if isinstance(value, str) and str in kinds:
            return value  # taken as written: the engine would read 'null' or '{a: b}' as YAML once more
        if any(type(value) is type(choice) and value == choice for choice in _choices(kind)):
            return value  # as written too: the engine makes 16 of '16' where both are choices
        return self.leaf(kind, value, path)

    def items(self, kind: object, value: list[object] | dict[str, object], path: Key) -> object:
        if isinstance(value, list):
            listed = [self.build(kind, item, (*path, index)) for index, item in enumerate(value)]
            return REFUSED if any(item is REFUSED for item in listed) else listed
        built = {key: self.build(kind, item, (*path, key)) for key, item in value.items()}
        return REFUSED if any(item is REFUSED for item in built.values()) else built

    def block(self, schema: Any, value: dict[str, object], path: Key, base: object) -> object:
        fields = fields_of(schema)
        names = [field.name for field in fields]
        for key in value:
            if key not in names:
                self.problems.add((*path, key), f"unknown key; {did_you_mean(key, names)}")
        arguments: dict[str, Any] = {}
        bad = any(key not in names for key in value)
        for field in fields:
            default = getattr(base, field.name) if isinstance(base, schema) else field.default
            if field.name in value:
                built = self.build(field.kind, value[field.name], (*path, field.name), default)
            elif default is not REQUIRED:
                built = copy.deepcopy(default)
            else:
                wanted = f"{describe(field.kind)}{f' ({field.help})' if field.help else ''}"
                self.problems.add((*path, field.name), f"the key is missing; expected {wanted}")
                built = REFUSED
            bad = bad or built is REFUSED
            arguments[field.name] = built
        if bad:
            return REFUSED
        try:
            return schema(**arguments)
        except FieldError as error:
            where = tuple(int(part) if part.isdecimal() else part for part in error.where.split("."))
            self.problems.add((*path, *where), error.message)
        except (ValueError, TypeError, RecipeError) as error:
            self.problems.add(path, str(error))
        return REFUSED

    def leaf(self, kind: object, value: object, path: Key) -> object:
        """Check one value with the engine; an override such as `name=007` may also be the text it was typed as."""
        candidates = tuple(member for member in members(kind) if _could_be(member, value))
        if candidates:
            with contextlib.suppress(ValueError):
                return check_leaf(Union[candidates], value)  # noqa: UP007 (computed)
        text = self.problems.override_of(path)
        if text is not None and str in members(kind) and not isinstance(value, dict | list):
            return text.partition("=")[2]
        if isinstance(value, str) and (accepted := [str(choice) for choice in _choices(kind)]):
            self.problems.add(path, f"expected {describe(kind)}, got {show(value)}; {did_you_mean(value, accepted)}")
        else:
            hint = "; write it in quotes" if str in members(kind) and isinstance(value, int | float) else ""
            self.problems.add(path, f"expected {describe(kind)}, got {show(value)}{hint}")
        return REFUSED


def _could_be(kind: object, value: object) -> bool:
    """Say whether the shape of a value fits a type; the engine would take a list for a dataclass, and null for text."""
    if value is None or kind is type(None):
        return False
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    origin = get_origin(kind)
    return origin not in {list, dict} or isinstance(value, origin)


def _choices(kind: object) -> list[object]:
    """Return what a type accepts by value."""
    return [choice for member in members(kind) if get_origin(member) is Literal for choice in get_args(member)]


def check_leaf(kind: object, value: object) -> object:
    """Return one value as its type, checked by jsonargparse.

    Raises:
        ValueError: When it does not fit, or is not finite.

    >>> check_leaf(float, 3)
    3.0
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        checked = parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        raise ValueError(str(error)) from error
    if isinstance(checked, float) and not math.isfinite(checked):
        raise ValueError("not finite")
    return checked
