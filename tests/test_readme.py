"""The README's commands and code are those that are tested."""

import ast
import re
from pathlib import Path

import pytest

import twinmerge
from recipes.front.table import shipped

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_continuous_integration_runs_the_readmes_install_and_test_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for words in ("-c constraints.txt -e '.[dev]'", "python -m pytest -n 2"):
        assert words in README
        assert words in script


def test_every_shipped_recipe_that_the_readme_names_exists():
    named = set(re.findall(r"\b(\w+\.yaml)\b", README)) - {"my.yaml", "FILE.yaml"}
    assert named
    assert named <= shipped().keys()


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_use_public_names(block):
    used = {
        n.attr
        for n in ast.walk(ast.parse(block))
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "twinmerge"
    }
    assert used <= set(twinmerge.__all__)
