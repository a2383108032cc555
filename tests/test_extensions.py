"""A package outside this repository adds its own parts, installed as its users would install it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder that the example package is installed in."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "example_package"
    subprocess.run(["cp", "-r", str(ROOT / "tests" / "example_package"), str(source)], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def outside(installed, tmp_path):
    """Run Python in an empty folder with the package installed."""

    def run(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{installed}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_recipe_from_outside_gets_the_same_front(outside, tmp_path):
    listed = outside("-m", "gapbridge", "--list")
    assert "count     count what a file holds (from gapbridge-example)\n            count.yaml" in listed.stdout
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    assert json.loads(outside("-m", "gapbridge", "--schema", "count").stdout)["required"] == ["path"]
    assert outside("-m", "gapbridge", "--new", "count").stdout.startswith("# Count the lines")
    checked = outside("-m", "gapbridge", "count.yaml", "path=none.txt", "--check")
    assert checked.returncode == 2
    assert "path: none.txt does not exist; give a text file" in checked.stderr
    mistaken = outside("-m", "gapbridge", "count.yaml", "paht=x")
    assert "unknown key; did you mean 'path'?" in mistaken.stderr
    done = outside("-m", "gapbridge", "count.yaml", "path=three.txt")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/count-lines/1/result.json").read_text())["lines"] == 3
    assert "3 lines." in (tmp_path / "runs/count-lines/1/report.html").read_text()


def test_the_command_finds_our_recipes_when_another_package_has_that_name(tmp_path):
    stranger = tmp_path / "recipes"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise ImportError('the recipes of another project')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    found = [
        subprocess.run(
            [sys.executable, "-m", module, "--list"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for module in ("recipes.run", "gapbridge")
    ]
    assert "another project" in found[0].stderr
    assert found[1].returncode == 0, found[1].stderr
    assert "merge.yaml" in found[1].stdout
