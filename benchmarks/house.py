"""Count what the house promises of itself: no import circle, short files and functions, every argument reachable.

``python -m benchmarks.house`` reads the source of the packages as text, imports no torch, and writes the counts.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipes.csp.schema import Adaptation
from recipes.distill.schema import Recipe as Distillation
from recipes.explain.schema import Estimation
from recipes.front.schema import fields_of
from recipes.front.signature import names_of
from recipes.hpo.schema import Training
from recipes.running.trainer import TrainerConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gapbridge", "twinmerge", "distill", "rl", "explain", "recipes")
FED = (Adaptation, Training, Estimation, Distillation)  # blocks made from the signature of a module
BARS = {
    "import_circles": 0,
    "files_over_400": 0,
    "functions_over_60": 3,
    "unreachable_arguments": 0,
    "any_count": 400,
    "yaml_without_tiny": 0,
}
TRAINER = "lightning.pytorch.trainer.trainer:Trainer"
PYTHON_BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```python\n(.*?)```", flags=re.DOTALL)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}


@functools.lru_cache(maxsize=1000)
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Every node of a module's source, found once for all that is counted."""
    return tuple(ast.walk(ast.parse(source)))


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that a module can import, inside functions too; what only a type checker reads does not count."""
    typing_only = {
        id(inner)
        for node in nodes(source)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in nodes(source):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def circles(modules: Mapping[str, Path]) -> list[list[str]]:
    """Groups of modules of which each reaches every other by imports."""
    edges = {
        name: {
            other
            for other in imports(path.read_text(encoding="utf-8"), name.rpartition(".")[0])
            if other in modules and other != name and not other.endswith("__init__")
        }
        for name, path in modules.items()
    }
    reached = {name: _reach(name, edges) for name in edges}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in edges if name in reached[name]
    }
    return sorted(sorted(group) for group in groups)


def _reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += edges[name]
    return found


def long_functions(modules: Mapping[str, Path], limit: int = 60) -> list[dict[str, object]]:
    """Functions with more lines than the limit, docstring apart."""
    rows = []
    for path in modules.values():
        for node in nodes(path.read_text(encoding="utf-8")):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                lines = (node.end_lineno or 0) - node.lineno + 1 - (text.count("\n") + 1 if text else 0)
                if lines > limit:
                    rows.append({"file": str(path.relative_to(ROOT)), "function": node.name, "lines": lines})
    return rows


def long_files(modules: Mapping[str, Path], limit: int = 400) -> list[dict[str, object]]:
    """Files with more lines than the limit."""
    counted = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values()}
    return [{"file": str(path.relative_to(ROOT)), "lines": n} for path, n in counted.items() if n > limit]


def uses_of_any(modules: Mapping[str, Path]) -> int:
    """How often a type is `Any`, imports apart."""
    every = (node for path in modules.values() for node in nodes(path.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in every)


def yaml_without_tiny() -> list[str]:
    """Shipped recipes that have no variant that runs in seconds; variants of one recipe share one."""
    names = {path.stem for path in (ROOT / "recipes").rglob("*.yaml")}
    tiny = {name.removesuffix("_tiny") for name in names if name.endswith("_tiny")}
    return sorted(name for name in names if not name.endswith("_tiny") and not _prefixes(name) & tiny)


def _prefixes(name: str) -> set[str]:
    words = name.split("_")
    return {"_".join(words[: n + 1]) for n in range(len(words))}


def blocks() -> list[tuple[str, str, bool]]:
    """Python blocks of README and docs: page, code, and whether the tests run it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (str(page.relative_to(ROOT)), found[2], found[1] is None)
        for page in pages
        for found in PYTHON_BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def unreachable_arguments() -> list[dict[str, object]]:
    """Arguments of a signature that are no key of their recipe and not left out of it for a reason."""
    pairs = [(block.feeds.target, block, block.feeds.left_out) for block in FED]
    return [
        {"target": target, "argument": name}
        for target, block, left_out in [*pairs, (TRAINER, TrainerConfig, {})]
        for name in names_of(target)
        if name not in {item.name for item in fields_of(block)} and not left_out.get(name)
    ]


def tables_of(modules: Mapping[str, Path]) -> dict[str, list[dict[str, object]]]:
    """What breaks a promise, row by row; each table is empty when it is kept."""
    return {
        "import_circles": [{"modules": ", ".join(group)} for group in circles(modules)],
        "files_over_400": long_files(modules),
        "functions_over_60": long_functions(modules),
        "unreachable_arguments": unreachable_arguments(),
        "yaml_without_tiny": [{"recipe": name} for name in yaml_without_tiny()],
    }


def figures_of(modules: Mapping[str, Path], tables: Mapping[str, list[dict[str, object]]]) -> dict[str, float]:
    """The counts by name."""
    found = blocks()
    return {name: float(len(rows)) for name, rows in tables.items()} | {
        "any_count": float(uses_of_any(modules)),
        "docs_blocks": float(len(found)),
        "docs_blocks_run": float(sum(is_run for _, _, is_run in found)),
    }


def main() -> None:
    """Count, print and write."""
    from benchmarks.common import write_results

    modules = sources()
    tables = tables_of(modules)
    figures = figures_of(modules, tables)
    for name, value in figures.items():
        print(f"{name:20}{value:g}")
        for row in tables.get(name, []):
            print("   ", *row.values())
    print(write_results("house", figures, tables, seeds=1))


if __name__ == "__main__":
    main()
