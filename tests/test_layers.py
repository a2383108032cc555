"""The layers of the house: which package may import which, read from the source without importing anything."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import house
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
    every = house.nodes(path.read_text(encoding="utf-8"))
    return {name for node in every for name in imported_names(node, path, root)}


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


def circle_breaches(root=ROOT):
    """Modules that reach each other by imports, those inside functions included."""
    for group in house.circles(house.sources(root)):
        yield f"{', '.join(group)} import each other: move what they share below them"


def floor_of(name):
    """The floor of a module inside recipes: the ground is 0, and a recipe or its data the highest."""
    part = name.split(".")[1] if "." in name else ""
    return {"": 0, "errors": 0, "fields": 0, "front": 1, "running": 2, "data": 3}.get(part, 4)


def floor_breaches(root=ROOT):
    """Imports inside recipes that go up: recipe -> data -> running -> front -> errors and fields."""
    for path in sources("recipes", root):
        name = module_name(path, root)
        if name in {"recipes", "recipes.run"}:
            continue
        imported = house.imports(path.read_text(encoding="utf-8"), name.rpartition(".")[0])
        for other in sorted({found for found in imported if "recipes." in found}):
            if floor_of(other) > floor_of(name):
                yield f"{path.relative_to(root)} imports {other}: inside recipes, imports go downwards"


def upward_breaches(root=ROOT):
    """Imports inside a wing that go up: functional knows errors and the names of methods, and nothing of modules."""
    for wing in WINGS:
        files = {module_name(other, root) for other in sources(wing, root)}
        for path in sources(wing, root):
            if "functional" not in path.relative_to(root).with_suffix("").parts:
                continue
            for other in sorted(all_imports(path, root) & files):
                if "functional" not in other.split(".") and other.split(".")[-1] not in {"errors", "methods", wing}:
                    yield f"{path.relative_to(root)} imports {other}: functional stands below the modules"


def name_breaches(root=ROOT):
    """Public names that bear the name of a file: importing the file would put the module in the place of the name."""
    for stub in sorted(root.rglob("__init__.pyi")):
        files = {path.stem if path.suffix == ".py" else path.name for path in stub.parent.iterdir()}
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) else []:
                if (alias.asname or alias.name) in files:
                    yield f"{stub.relative_to(root)} exports {alias.name}, which is a file too: rename the file"


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Keep no trees of the sources for the tests of other files."""
    yield
    house.nodes.cache_clear()


BREACHES = [
    wing_breaches,
    functional_breaches,
    front_breaches,
    circle_breaches,
    floor_breaches,
    upward_breaches,
    name_breaches,
]


@pytest.mark.parametrize("breaches", BREACHES)
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


def test_arrows_that_go_up_are_found(tmp_path):
    files = {
        "recipes/__init__.py": "",
        "recipes/errors.py": "",
        "recipes/front/parse.py": "from recipes.errors import RecipeError\n",
        "recipes/running/folder.py": "def f():\n    from recipes.merge.recipe import run\n",
        "recipes/merge/recipe.py": "from recipes.running.folder import f\n",
        "distill/functional/kd.py": "from distill.errors import E\nfrom distill.module import M\n",
        "distill/errors.py": "",
        "distill/module.py": "",
        "distill/check_it.py": "",
        "distill/__init__.pyi": "from .check_it import check_it as check_it\nfrom .module import M as M\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [breach.split(":")[0] for breach in floor_breaches(tmp_path)] == [
        "recipes/running/folder.py imports recipes.merge.recipe",
        "recipes/running/folder.py imports recipes.merge.recipe.run",
    ]
    assert list(circle_breaches(tmp_path))
    assert [breach.split(":")[0] for breach in upward_breaches(tmp_path)] == [
        "distill/functional/kd.py imports distill.module"
    ]
    assert [breach.split(",")[0] for breach in name_breaches(tmp_path)] == ["distill/__init__.pyi exports check_it"]
