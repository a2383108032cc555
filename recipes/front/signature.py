"""A block of a recipe from the signature that it feeds, read as text: importing the code would take seconds."""

import ast
import builtins
import collections.abc
import dataclasses
import importlib.util
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

import docstring_parser

from gapbridge import arguments
from recipes.fields import FieldError


@dataclasses.dataclass(frozen=True)
class Feeds:
    """What a block was made from.

    Attributes:
        target: `module:name`, the code that the block feeds.
        left_out: Arguments of the target that the recipe provides itself, each with the reason.
        names: The arguments that are keys of the block.
    """

    target: str
    left_out: Mapping[str, str]
    names: tuple[str, ...]


class FedBlock:
    """Base of the blocks that :func:`takes` extends."""

    feeds: ClassVar[Feeds]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the target by name."""
        return {name: getattr(self, name) for name in self.feeds.names}


Block = TypeVar("Block", bound=FedBlock)
_NAMES = vars(builtins) | vars(typing) | vars(collections.abc) | vars(arguments) | {"typing": typing, "Path": Path}


def takes(target: str, *, leave_out: Mapping[str, str]) -> Callable[[type[Block]], type[Block]]:
    """Add to a dataclass every argument of a class or function, with its type, default and help.

    The block checks its values as :func:`gapbridge.arguments.check_arguments` does, and its `arguments()` returns those
    of the target. A field of the dataclass itself holds where both have one, and its values are checked all the same.

    Args:
        target: `module:name`, the code that the block feeds.
        leave_out: Arguments that the recipe provides itself, each with the reason.

    Raises:
        ValueError: When the target has no such argument to leave out.
    """
    module, _, name = target.partition(":")
    source = _Source(module)
    found = source.parameters(name)
    if odd := sorted(set(leave_out) - {parameter.name for parameter in found}):
        raise ValueError(f"{target} has no argument {odd[0]}; leave it out of leave_out.")

    def extend(block: type[Block]) -> type[Block]:
        own = {field.name for field in dataclasses.fields(block)}  # type: ignore[arg-type]
        wanted = [item for item in found if item.name not in leave_out]
        rows = [(item.name, item.kind, item.field()) for item in wanted if item.name not in own]
        made = dataclasses.make_dataclass(
            block.__name__,
            rows,
            bases=(block,),
            namespace={
                "__doc__": _documented(block, [item for item in wanted if item.name not in own]),
                "__module__": block.__module__,
                "__post_init__": lambda self: _check(self, {item.name: item.kind for item in wanted}),
                "feeds": Feeds(target, dict(leave_out), tuple(item.name for item in wanted)),
            },
            kw_only=True,
        )
        return typing.cast("type[Block]", made)

    return extend


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One argument of a signature.

    Attributes:
        name: Its name.
        kind: Its annotation, sequences as lists.
        default: Its default, or `dataclasses.MISSING`.
        help: Its text in the docstring.
    """

    name: str
    kind: object
    default: Any
    help: str

    def field(self) -> Any:
        """The argument as a field of a dataclass."""
        if isinstance(self.default, list | dict):
            return dataclasses.field(default_factory=lambda: type(self.default)(self.default))
        return dataclasses.field(default=self.default)


def _documented(block: type, added: list[Parameter]) -> str:
    text = inspect.cleandoc(block.__doc__ or "")
    head = [] if "Attributes:" in text else ["", "Attributes:"]
    return "\n".join([text, *head, *(f"    {item.name}: {item.help}" for item in added)])


def _check(block: object, kinds: Mapping[str, object]) -> None:
    for name, kind in kinds.items():
        if not arguments.accepts(kind, getattr(block, name)):
            raise FieldError(name, arguments.refusal(kind, getattr(block, name)))
    if before := getattr(super(type(block), block), "__post_init__", None):
        before()


def names_of(target: str) -> list[str]:
    """Return the names of the arguments of `module:name`, read as text.

    >>> names_of("recipes.fields:check_name")
    ['value', 'where']
    """
    module, _, name = target.partition(":")
    return [item.arg for item, _ in _Source(module).written(name)]


def source_of(module: str) -> Path:
    """The source of a module; of its packages only the outermost is looked up, as the search imports those around.

    Args:
        module: As in `package.module`.

    Raises:
        ValueError: When there is none.
    """
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module} has no source file.")
    if not parts:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*parts)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


class _Source:
    """The text of a module: its definitions and what its names stand for."""

    def __init__(self, module: str) -> None:
        self.tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
        self.module = module

    def parameters(self, name: str) -> list[Parameter]:
        """Arguments of a class's `__init__` or of a function, in order; `self` and starred ones are left out."""
        node = next(n for n in self.tree.body if getattr(n, "name", None) == name)
        helps = {p.arg_name: " ".join((p.description or "").split()) for p in self._documents(node)}
        return [self._parameter(item, default, helps) for item, default in self.written(name)]

    def written(self, name: str) -> list[tuple[ast.arg, ast.expr | None]]:
        """The same arguments as they are written, each with its default where it has one."""
        node = next(n for n in self.tree.body if getattr(n, "name", None) == name)
        if isinstance(node, ast.ClassDef):
            node = next(n for n in node.body if getattr(n, "name", None) == "__init__")
        signature = typing.cast("ast.FunctionDef", node).args
        plain = [*signature.posonlyargs, *signature.args]
        missing: list[ast.expr | None] = [None] * (len(plain) - len(signature.defaults))
        pairs = [*zip(plain, [*missing, *signature.defaults], strict=True)]
        pairs += zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        return [(item, default) for item, default in pairs if item.arg != "self"]

    def _documents(self, node: object) -> list[docstring_parser.DocstringParam]:
        inner = [n for n in getattr(node, "body", []) if getattr(n, "name", None) == "__init__"]
        texts = [ast.get_docstring(part) or "" for part in [node, *inner]]
        return [entry for text in texts for entry in docstring_parser.parse(text).params]

    def _parameter(self, item: ast.arg, default: ast.expr | None, helps: Mapping[str, str]) -> Parameter:
        kind = _listed(self.resolve(item.annotation)) if item.annotation else Any
        value = dataclasses.MISSING if default is None else ast.literal_eval(default)
        return Parameter(item.arg, kind, list(value) if isinstance(value, tuple) else value, helps.get(item.arg, ""))

    def resolve(self, node: ast.expr) -> object:
        """The annotation as a type; a class that only heavy code defines is any value."""
        plain = _Plain().visit(node)
        words = {part.id for part in ast.walk(plain) if isinstance(part, ast.Name)}
        names = {word: self._meaning(word) for word in words}
        expression = ast.fix_missing_locations(ast.Expression(plain))
        return eval(compile(expression, self.module, "eval"), names)  # noqa: S307 - our own source

    def _meaning(self, word: str) -> object:
        if word in _NAMES:
            return _NAMES[word]
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == word:
                return self.resolve(node.value)
            if isinstance(node, ast.ImportFrom) and word in {alias.asname or alias.name for alias in node.names}:
                module = node.module or ""
                ours = module.partition(".")[0] == self.module.partition(".")[0]
                return _Source(module)._meaning(word) if ours else Any
        return Any


class _Plain(ast.NodeTransformer):
    """Names such as `nn.Module` belong to heavy code: any value."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return node if ast.unparse(node.value) == "typing" else ast.Name("Any", ast.Load())


def _listed(kind: object) -> Any:
    """The kind with every sequence as a list, which is what YAML has."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and Ellipsis not in inner:
        return kind
    if origin in {collections.abc.Sequence, tuple, list}:
        return list[_listed(inner[0])]  # type: ignore[misc]
    if origin in {collections.abc.Mapping, dict}:
        return dict.__class_getitem__((inner[0], _listed(inner[1])))
    if kind in {collections.abc.Hashable, object}:  # a column's name; a value that the code itself looks at
        return Any
    if origin is typing.Union or type(kind).__name__ == "UnionType":
        return typing.Union[tuple(map(_listed, inner))]  # noqa: UP007 (computed)
    return kind
