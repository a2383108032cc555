"""README.md and docs quote only measured figures, and every results file keeps its contract.

A quoted number is followed at once by its source in an HTML comment, ``<!-- <file>.<figure>:<format> -->``, as in
``12.3x<!-- factorize.speedup_2048:.1f -->`` or ``0.7%<!-- factorize.max_excess_residual:.1% -->``. The file is one of
benchmarks/results/*.json, the format is Python's for the number, a unit in letters may stand between number and
comment, and ``<figure>.low`` or ``<figure>.high`` names a bound of an interval.
"""

import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.common import RESULTS, breach, interleaved_times, median_ratio, write_results

ROOT = Path(__file__).parent.parent
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
RESULT_FILES = sorted(RESULTS.glob("*.json"))
SOURCE = re.compile(r"<!--\s*(?P<file>\w+)\.(?P<figure>\w+)(?:\.(?P<bound>low|high))?:(?P<format>\S+?)\s*-->")
NUMBER = re.compile(r"(?<![\de+−-])(?P<number>[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?)[a-zA-Z×]*$")


def mistakes(text, results):
    """What is wrong with the figures quoted in a page, given the results by file name."""
    for source in SOURCE.finditer(text):
        file, figure, bound, style = source.group("file", "figure", "bound", "format")
        quoted = NUMBER.search(text[: source.start()])
        if quoted is None:
            yield f"no number stands right before {source.group()}"
        elif file not in results:
            yield f"{source.group()} names benchmarks/results/{file}.json, which does not exist"
        elif figure not in results[file]["figures"]:
            yield f"{source.group()} names no figure of {file}.json; it has {', '.join(results[file]['figures'])}"
        else:
            value = results[file]["figures"][figure]
            if isinstance(value, Mapping):
                value = value[bound or "value"]
            elif bound:
                yield f"{source.group()} asks for a bound, but the figure has no interval"
                continue
            measured = format(value, style)
            if quoted.group("number").replace("−", "-").lstrip("+") != measured.lstrip("+"):
                yield f"{quoted.group('number')} is quoted for {source.group()}, but {measured} was measured"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_quoted_figure_was_measured(page):
    results = {path.stem: json.loads(path.read_text()) for path in RESULT_FILES}
    assert not list(mistakes(page.read_text(encoding="utf-8"), results))


@pytest.mark.parametrize("path", sorted((RESULTS.parent / "kept").rglob("*.json")), ids=lambda path: path.stem)
def test_a_kept_run_names_no_folder_of_a_machine(path):
    assert not re.findall(r'"/[^"]*', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_every_results_file_keeps_the_contract(path):
    assert breach(json.loads(path.read_text()), path.stem) is None
    assert (ROOT / "benchmarks" / f"{path.stem}.py").exists(), f"no script benchmarks/{path.stem}.py remakes this file"


def test_the_check_of_quotes():
    results = {
        "speed": {"figures": {"ratio": {"value": 12.34, "low": 11.0, "high": 13.0}, "loss": 0.0071, "n": 1234.5}}
    }
    good = """**12.3x<!-- speed.ratio:.1f -->** (11.0<!--speed.ratio.low:.1f--> to 13.0<!-- speed.ratio.high:.1f -->),
    0.7%<!-- speed.loss:.1% -->, 0.0071<!-- speed.loss:.4f -->, 1,234ms<!-- speed.n:,.0f --> and
    7.1e-03<!-- speed.loss:.1e -->"""
    assert len(SOURCE.findall(good)) == 7
    assert not list(mistakes(good, results))
    for bad, reason in {
        "12.4x<!-- speed.ratio:.1f -->": "12.4 is quoted",
        "112.3<!-- speed.ratio:.1f -->": "112.3 is quoted",
        "about<!-- speed.ratio:.1f -->": "no number",
        "12.3 x<!-- speed.ratio:.1f -->": "no number",
        "12.3<!-- sped.ratio:.1f -->": "sped.json, which does not exist",
        "12.3<!-- speed.rate:.1f -->": "it has ratio, loss, n",
        "0.7%<!-- speed.loss.low:.1% -->": "no interval",
    }.items():
        assert len(found := list(mistakes(bad, results))) == 1, bad
        assert reason in found[0]


def test_results_are_written_whole_and_broken_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    path = write_results("speed", {"a": 1.5, "b": {"value": 2, "low": 1, "high": 3}}, {"rows": [{"x": 1}]}, seeds=3)
    results = json.loads(path.read_text())
    assert breach(results, "speed") is None
    assert results["command"] == "python -m benchmarks.speed"
    assert results["machine"]["cores"] >= 1
    assert "torch" in results["versions"]
    for figures, seeds in [
        ({}, 1),
        ({"a": float("nan")}, 1),
        ({"a": "fast"}, 1),
        ({"a": {"value": 1, "low": 2, "high": 3}}, 1),
        ({"a": {"value": 1}}, 1),
        ({"a": 1.0}, 0),
    ]:
        with pytest.raises(ValueError, match="the results of 'slow' break the contract"):
            write_results("slow", figures, {}, seeds=seeds)
    assert [entry.name for entry in tmp_path.iterdir()] == ["speed.json"]


def test_timing_is_interleaved_and_ratios_are_paired():
    order = []
    times = interleaved_times({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    # The machine slows down in some rounds, both functions alike.
    slow = [1.0, 5.0, 1.0, 9.0, 1.0, 1.0, 2.0, 1.0, 1.0]
    assert median_ratio([10 * s for s in slow], slow) == {"value": 10.0, "low": 10.0, "high": 10.0}
    assert median_ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == {"value": 2.0, "low": 1.0, "high": 3.0}
    spread = median_ratio([float(i) for i in range(1, 10)], [1.0] * 9)
    assert spread == {"value": 5.0, "low": 2.0, "high": 8.0}


def test_the_list_of_benchmarks(capsys):
    runpy.run_module("benchmarks", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("factorize: ") for line in lines)
    assert "  remake   python -m benchmarks.factorize" in lines


def test_the_page_of_families_is_that_of_the_results():
    experts = pytest.importorskip("benchmarks.experts")
    tables = json.loads((RESULTS / "experts.json").read_text())["tables"]
    assert experts.PAGE.read_text(encoding="utf-8") == experts.page(tables)
