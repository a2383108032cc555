"""The layers of the house: which package may import which, read from the source without importing anything."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.front.table import TABLE

ROOT = Path(__file__).parent.parent
WINGS = ("twinmerge", "distill", "rl", "explain")
NOT_FUNCTIONAL = {"lightning", "pytorch_lightning", "transformers", "peft", "recipes"}
HEAVY = {"torch", "lightning", "pytorch_lightning", "transformers", "peft", "torchmetrics", "datasets"}
# What `python -m recipes.run` loads before it knows that the recipe is good: help, lists and refusals take no seconds.
FRONT = ("run.py", "front/*.py", *("/".join(entry.module.split(".")[1:]) + ".py" for entry in TABLE.values()))


def sources(package, root=ROOT):
    return sorted(path for path in (root / package).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node, path, root=ROOT) -> Iterator[str]:
    """Absolute dotted names an import statement can load; `from a import b` may mean the module a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module_name(path.parent / "__init__.py", root).split(".")
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def all_imports(path, root=ROOT):
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return {name for node in ast.walk(tree) for name in imported_names(node, path, root)}


def top_level_imports(path, root=ROOT):
    """Imports that run when the module is loaded: not those inside functions or under TYPE_CHECKING."""

    def walk(body):
        for node in body:
            yield from imported_names(node, path, root)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for field in ("body", "orelse", "handlers", "finalbody"):
                if not (typing_only and field == "body"):
                    inner = getattr(node, field, [])
                    yield from walk(inner if isinstance(inner, list) else [])

    return set(walk(ast.parse(path.read_text(encoding="utf-8"), str(path)).body))


def roots(names):
    return {name.split(".")[0] for name in names}


def wing_breaches(root=ROOT):
    for wing in WINGS:
        for path in sources(wing, root):
            for other in sorted(roots(all_imports(path, root)) & ({*WINGS, "recipes"} - {wing})):
                yield f"{path.relative_to(root)} imports {other}: only recipes/ may compose wings"


def functional_breaches(root=ROOT):
    for package in (*WINGS, "recipes"):
        for path in sources(package, root):
            if "functional" in path.relative_to(root).with_suffix("").parts:
                for other in sorted(roots(all_imports(path, root)) & NOT_FUNCTIONAL):
                    yield f"{path.relative_to(root)} imports {other}: functional takes tensors and gives tensors"


def front_breaches(root=ROOT):
    """Heavy imports that loading the front reaches, through our own modules as well."""
    files = {module_name(path, root): path for package in (*WINGS, "recipes") for path in sources(package, root)}
    starts = {path for pattern in FRONT for path in (root / "recipes").glob(pattern)}
    reached = {name: name for name, path in files.items() if path in starts}
    waiting = sorted(reached)
    while waiting:
        name = waiting.pop()
        loaded = top_level_imports(files[name], root)
        for heavy in sorted(roots(loaded) & HEAVY):
            yield f"{reached[name]} imports {heavy} when it is loaded: move that import into the function that needs it"
        # Loading a.b.c loads a and a.b too.
        parents = {
            ".".join(other.split(".")[: depth + 1])
            for other in (*loaded, name)
            for depth in range(other.count(".") + 1)
        }
        for other in sorted((parents & files.keys()) - reached.keys()):
            reached[other] = f"{reached[name]} -> {other}"
            waiting.append(other)


@pytest.mark.parametrize("breaches", [wing_breaches, functional_breaches, front_breaches])
def test_the_house_keeps_its_layers(breaches):
    assert not list(breaches())


def test_something_is_checked():
    assert len(sources("twinmerge")) > 5
    assert any((ROOT / "recipes").glob("run.py"))


def test_breaches_are_found(tmp_path):
    files = {
        "twinmerge/__init__.py": "",
        "twinmerge/functional/loss.py": "def f():\n    import peft\n",
        "distill/__init__.py": "from twinmerge import load\n",
        "rl/hpo/agent.py": "from ...explain import shapley\n",
        "explain/functional.py": "import lightning.pytorch as pl\n",
        "recipes/__init__.py": "",
        "recipes/run.py": "import typing\nif typing.TYPE_CHECKING:\n    import peft\nfrom recipes import tools\n",
        "recipes/tools.py": "try:\n    from .deep import thing\nexcept ImportError:\n    pass\n",
        "recipes/deep.py": "import torch.nn\ndef f():\n    import transformers\n",
        "recipes/aside.py": "import lightning\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [breach.split(":")[0] for breach in wing_breaches(tmp_path)] == [
        "distill/__init__.py imports twinmerge",
        "rl/hpo/agent.py imports explain",
    ]
    assert [breach.split(":")[0] for breach in functional_breaches(tmp_path)] == [
        "twinmerge/functional/loss.py imports peft",
        "explain/functional.py imports lightning",
    ]
    assert [breach.split(":")[0] for breach in front_breaches(tmp_path)] == [
        "recipes.run -> recipes.tools -> recipes.deep imports torch when it is loaded"
    ]
