"""Strict YAML with line numbers: plain values only, no duplicate key, nothing infinite, no tag."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from recipes.errors import RecipeError

Key = tuple[str | int, ...]
MAX_NODES = 100_000  # a page of aliases of aliases would otherwise fill the memory
MAX_DEPTH = 60
LONGEST_NUMBER = 100  # digits of a whole number that are read at all: Python refuses thousands
REFUSED: object = type("Refused", (), {"__repr__": lambda self: "?"})()  # stands for a value whose problem is noted


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2: `no` is text, `1e-3` is a number, a date is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own way)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve("null", r"~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile("^$"))]
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "-+.0123456789",
)


@dataclass
class Document:
    """A parsed document.

    Attributes:
        data: Plain values: dict, list, str, int, float, bool, None.
        lines: Line (from 1) of every key and list item, by its path.
        problems: What was refused, each with its line; empty for a good document.
    """

    data: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def load_yaml(text: str, source: str) -> Document:
    r"""Parse one YAML document.

    Args:
        text: The document.
        source: Its name, for the messages.

    Returns:
        The values, the line of each, and every duplicate key, infinite number, tag or non-text key found.

    Raises:
        RecipeError: When the text is not YAML at all.

    >>> document = load_yaml("a: 1e-3\nb: {c: no, c: 2}", "demo.yaml")
    >>> document.data["a"], document.lines[("b", "c")], document.problems
    (0.001, 2, [(2, 'b.c: the key appears twice; keep one')])
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{source}:{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError(f"{source}: nested too deeply; at most {MAX_DEPTH} levels are accepted") from error
    document = Document()
    if node is not None:
        document.data = _Builder(document, source).build(node, ())
    return document


def dotted(path: Key) -> str:
    """Return a path as the user writes it: `tasks.0.name`."""
    return ".".join(map(str, path))


class _Builder:
    """Turns nodes into plain values and notes lines and problems on the way."""

    def __init__(self, document: Document, source: str) -> None:
        self.document = document
        self.source = source
        self.nodes = 0

    def build(self, node: Node, path: Key) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            line = node.start_mark.line + 1
            raise RecipeError(f"{self.source}:{line}: too large or nested too deeply (an alias inside itself?)")
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if not isinstance(node, ScalarNode) and node.tag not in {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            return self.tag(node, path)
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: MappingNode, path: Key) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
                self.problem(line, path, f"expected a text key, got {shown}; write it in quotes")
                continue
            key = str(key_node.value)
            if key in values:
                self.problem(line, (*path, key), "the key appears twice; keep one")
                continue
            self.document.lines[(*path, key)] = line
            values[key] = self.build(value_node, (*path, key))
        return values

    def scalar(self, node: Node, path: Key) -> object:
        line = node.start_mark.line + 1
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            if len(text) > LONGEST_NUMBER:
                self.problem(
                    line, path, f"expected a number of at most 64 bits, got {text[:20]}... of {len(text)} digits"
                )
                return REFUSED
            number = int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
            if not -(2**63) <= number < 2**64:
                self.problem(line, path, f"expected a number of at most 64 bits, got {text}")
                return REFUSED
            return number
        if kind == "float":
            if text[-1] in "fFnN" or not math.isfinite(float(text)):
                self.problem(line, path, f"expected a finite number, got {text}")
                return REFUSED
            return float(text)
        return self.tag(node, path)

    def tag(self, node: Node, path: Key) -> object:
        self.problem(node.start_mark.line + 1, path, f"the tag {node.tag} is not accepted; write plain values")
        return REFUSED

    def problem(self, line: int, path: Key, message: str) -> None:
        name = f"{dotted(path)}: " if path else ""
        self.document.problems.append((line, name + message))
