"""Every block of Python in README and docs runs, in the order of its page.

What a page takes for granted, such as a table of the reader's own, stands before the block in a comment that readers
do not see: ``<!-- setup`` on a line of its own, the code, ``-->``. A block that needs what no test has, such as a
cluster, is preceded by ``<!-- not run: reason -->``. Pages that load the merged model of the first command get that
of a tiny run.
"""

import functools
import re
import shutil
from pathlib import Path

import pytest

import rl.csp
from benchmarks.house import PYTHON_BLOCK
from recipes.run import main

# Pages are code of users, to whom Lightning's advice on workers and summaries is shown and is no error.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MERGED = "runs/merge-text4/1"
SETUP = re.compile(r"<!-- setup\n(.*?)-->", flags=re.DOTALL)


def script(page):
    """The page's code in its order, every line where it stands in the page, so that a traceback names it."""
    text = page.read_text(encoding="utf-8")
    spans = [found.span(2) for found in PYTHON_BLOCK.finditer(text) if found[1] is None]
    spans += [found.span(1) for found in SETUP.finditer(text)]
    inside = {at for start, end in spans for at in range(start, end)}
    kept = "".join(char if at in inside else "\n" * (char == "\n") for at, char in enumerate(text))
    return kept if kept.strip() else ""


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A finished run of the tiny merge recipe."""
    folder = tmp_path_factory.mktemp("merge") / "run"
    assert main(["merge_tiny.yaml", "--out", str(folder), "--quiet"]) == 0
    return folder


WITH_CODE = [page for page in PAGES if script(page)]
ON_A_TWIN = [page for page in WITH_CODE if MERGED in script(page)]
ELSEWHERE = [ROOT / "docs" / "hpo.md"]  # tests/rl/hpo/test_tutorial.py runs it, and looks at what comes out


def run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    shorter = functools.partial(rl.csp.estimate_worst_case, iterations=5, episodes=32, test_episodes=256)
    monkeypatch.setattr(rl.csp, "estimate_worst_case", shorter)  # pages show the call; what it finds, they do not claim
    exec(compile(script(page), str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 - our own pages


@pytest.mark.parametrize(
    "page", [page for page in WITH_CODE if page not in ON_A_TWIN + ELSEWHERE], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


@pytest.mark.slow  # fetches a model and texts from the package index; `.ci/run` runs it by name
@pytest.mark.parametrize("page", ON_A_TWIN, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_on_a_real_twin(page, merged, tmp_path, monkeypatch):
    shutil.copytree(merged, tmp_path / MERGED)
    run(page, tmp_path, monkeypatch)


def test_code_is_found_where_it_stands(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n<!-- setup\na = 1\n-->\n```python\nb = a\n```\n<!-- not run: no cluster -->\n```python\nc = d\n```\n"
    )
    assert script(page).splitlines() == ["", "", "a = 1", "", "", "b = a", *[""] * 5]
