"""What the front prints about recipes: the list, a JSON schema, a starter file, the resolved YAML with its help."""

import dataclasses
import json
import re
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from recipes.errors import RecipeError
from recipes.front import table
from recipes.front.schema import REQUIRED, did_you_mean, fields_of, members, summary_of, to_plain
from recipes.front.yaml_lines import load_yaml

WIDTH = 100


def list_recipes() -> str:
    """Return the table of recipes and the YAML files that ship with each."""
    lines = []
    for name, entry in table.entries().items():
        lines.append(f"{name:12}{entry.about}")
        lines += [f"{'':12}  {file}" for file, path in table.shipped().items() if _recipe_of(path) == name]
    return "\n".join(lines)


def _recipe_of(path: Path) -> str | None:
    found = re.search(r"^recipe:\s*(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else None


def known(name: str, option: str) -> str:
    """Return a recipe name of the table, or refuse it."""
    if name not in table.entries():
        raise RecipeError(f"{option} {name}: unknown recipe; {did_you_mean(name, list(table.entries()))}")
    return name


def starter(name: str) -> str:
    """Return the shipped YAML of a recipe, to begin a new one from."""
    path = table.shipped().get(f"{known(name, '--new')}.yaml")
    if path is None:
        raise RecipeError(f"--new {name}: this recipe ships no {name}.yaml; see --schema {name} for its keys")
    return path.read_text(encoding="utf-8")


def json_schema(name: str) -> str:
    """Return the JSON schema (draft 2020-12) of a recipe, for editors."""
    schema = _schema_of(table.load(known(name, "--schema")).Recipe)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    return json.dumps(head | schema, indent=2, ensure_ascii=False)


def _schema_of(kind: object) -> dict[str, Any]:
    kinds = members(kind)
    if len(kinds) > 1:
        return {"anyOf": [_schema_of(member) for member in kinds]}
    plain = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string", type(None): "null"}
    if kind in plain:
        return {"type": plain[kind]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in {list, set, tuple}:
        rest = [argument for argument in arguments if argument is not Ellipsis]
        fixed = origin is tuple and len(rest) == len(arguments)
        bounds = {"minItems": len(rest), "maxItems": len(rest)} if fixed else {}
        items = {"prefixItems": [_schema_of(item) for item in rest]} if fixed else {"items": _schema_of(rest[0])}
        return {"type": "array"} | items | bounds
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    if not dataclasses.is_dataclass(kind):
        return {}
    properties, required = {}, []
    for field in fields_of(kind):  # type: ignore[arg-type]
        entry = _schema_of(field.kind)
        if field.help:
            entry["description"] = field.help
        if field.default is REQUIRED:
            required.append(field.name)
        else:
            entry["default"] = to_plain(field.default)
        properties[field.name] = entry
    shape = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    about = summary_of(kind)  # type: ignore[arg-type]
    return shape | ({"description": about} if about else {})


def to_yaml(recipe: object, *, comments: bool = True) -> str:
    """Return a recipe dataclass as YAML that resolves to the same recipe.

    Args:
        recipe: The dataclass instance.
        comments: Write the help of each key above it.
    """
    lines = _block(recipe, 0, comments)
    head = [*_comment(summary_of(type(recipe)), 0), ""] if comments and summary_of(type(recipe)) else []
    return "\n".join([*head, *lines]) + "\n"


def _block(value: Any, depth: int, comments: bool) -> list[str]:
    """Return the lines of a dataclass, mapping or list that has something in it."""
    pad = "  " * depth
    lines: list[str] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in fields_of(type(value)):
            item = getattr(value, field.name)
            text = field.help or (summary_of(type(item)) if dataclasses.is_dataclass(item) else "")
            if comments and text:
                lines += _comment(text, depth)
            lines += _entry(f"{pad}{field.name}:", item, depth, comments)
    elif isinstance(value, dict):
        for key, item in value.items():
            lines += _entry(f"{pad}{scalar(str(key))}:", item, depth, comments)
    else:
        for index, item in enumerate(value):
            inner = _nested(item) and _block(item, depth + 1, comments and index == 0)
            if not inner:
                lines.append(f"{pad}- {_inline(item)}")
                continue
            first = next(number for number, line in enumerate(inner) if not line.lstrip().startswith("#"))
            lines += inner[:first]  # the help of the first key stands above the dash
            lines.append(f"{pad}- {inner[first].lstrip()}")
            lines += inner[first + 1 :]
    return lines


def _entry(head: str, value: object, depth: int, comments: bool) -> list[str]:
    if _nested(value):
        return [head, *_block(value, depth + 1, comments)]
    return [f"{head} {_inline(value)}"]


def _nested(value: object) -> bool:
    """Say whether a value needs lines of its own: it holds mappings, or is one that is not empty."""
    if dataclasses.is_dataclass(value):
        return True
    if isinstance(value, list | tuple):
        return any(isinstance(item, dict | list | tuple) or dataclasses.is_dataclass(item) for item in value)
    return isinstance(value, dict) and bool(value)


def _inline(value: object) -> str:
    value = to_plain(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return "{}" if isinstance(value, dict) else scalar(value)


def scalar(value: object) -> str:
    """Return one plain value as YAML that the front reads back unchanged.

    >>> scalar("1e-3"), scalar(1e-3), scalar("no"), scalar(None), scalar("a: b")
    ('"1e-3"', '0.001', 'no', 'null', '"a: b"')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ @%+-]*(?<! )", value) and load_yaml(value, "").data == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=10**9, allow_unicode=True)
    return quoted.rstrip("\n")


def _comment(text: str, depth: int) -> list[str]:
    pad = "  " * depth + "# "
    return textwrap.wrap(text, WIDTH, initial_indent=pad, subsequent_indent=pad, break_long_words=False)
