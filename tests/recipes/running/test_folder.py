"""The run folder: whole files, figures with their numbers, a report without outside links, progress."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recipes.errors import RecipeError
from recipes.running import folder as runfolder, progress as progress_module
from recipes.running.environment import describe_environment, process_rank
from recipes.running.files import write_bytes, write_json
from recipes.running.folder import RunFolder, new_folder, newest_folder
from recipes.running.progress import progress
from tests.recipes.browser import Tags, check_page, needs_chromium


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path, "toy-x")


def test_figure_is_a_png_with_its_numbers(folder):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4])
    folder.figure("curve", figure, [(1, np.float32(3.5)), ("a, b", float("nan"))], ["step", "loss"])
    assert (folder.path / "figures/curve.png").read_bytes().startswith(b"\x89PNG")
    assert (folder.path / "figures/curve.csv").read_text() == 'step,loss\n1,3.5\n"a, b",\n'
    with pytest.raises(ValueError, match=r"'\.\./x' is not usable"):
        folder.figure("../x", figure, [], [])


class Links(Tags):
    """Collects what a page refers to, and checks that its tags match."""

    def __init__(self, page: str) -> None:
        self.links: list[str] = []
        super().__init__(page)

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in {"src", "href"}]
        super().handle_starttag(tag, attrs)


def test_report_is_self_contained(folder):
    from matplotlib.figure import Figure

    folder.start("recipe: toy\nname: <b>\n", {"seed": 1}, ["python", "-m", "recipes.run", "a b.yaml"])
    folder.figure("one", Figure(), [], ["x"], title="Levels — of <all>", told="Higher is better.")
    folder.figure("two_more", Figure(), [], ["x"])
    rows = [{"task": "<script>alert(1)</script>", "score": 0.123456, "count": 1234567}, {"task": "b", "other": [1]}]
    folder.finish({"score": np.float64(0.5), "array": np.arange(2)}, {"Scores": rows}, summary="1 < 2")
    page = (folder.path / "report.html").read_text()
    parsed = Links(page)
    assert parsed.open == []
    inside = [f"#s{number}" for number in range(5)]
    assert [link for link in parsed.links if link.startswith("#")] == inside
    assert [number for number in inside if f"<h2 id='{number[1:]}'>" in page] == inside
    other = [link[:22] for link in parsed.links if not link.startswith("#")]
    picture = "data:image/png;base64,"
    assert other == [picture, "figures/one.csv", picture, "figures/two_more.csv"]
    told = "Levels — of &lt;all&gt;. Higher is better."
    assert f"<img alt='{told}'" in page
    assert f"<figcaption>{told} <a href='figures/one.csv'>" in page
    assert "<img alt='two more'" in page
    assert "<script" not in page
    for text in (
        "0.1235",
        "1,234,567",
        "1 &lt; 2",
        "name: &lt;b&gt;",
        "&#x27;a b.yaml&#x27;",
        "<th scope='col'>other</th>",
    ):
        assert text in page
    assert json.loads((folder.path / "result.json").read_text()) == {"score": 0.5, "array": [0, 1]}


def test_a_figure_that_says_nothing_of_itself_is_called_by_its_name(folder):
    (folder.path / "figures").mkdir()
    (folder.path / "figures/mine.png").write_bytes(b"no picture")
    folder.finish({"score": 1})
    assert "<img alt='mine'" in (folder.path / "report.html").read_text()


@needs_chromium
def test_a_browser_shows_the_report_without_a_word(folder):
    from matplotlib.figure import Figure

    folder.start("recipe: toy\n# " + "words " * 60 + "\n", {}, ["x"])
    folder.figure("one", Figure(), [], ["x"], title="Levels", told="Higher is better.")
    wide = [{f"a rather long name of a column {i}": "words " * 20 for i in range(3)}]
    many = [{"row": "a rather long name of a row"} | {f"oxford_flowers_{i}": 0.12345 for i in range(20)}]
    long = [{"runs": 2} | {f"explained_equals_measured number {i}": 1.0 for i in range(9)}]
    folder.finish({"score": 1.0}, {"Wide": wide, "Long": long, "Many": many}, summary="well")
    found = check_page(folder.path / "report.html")
    assert found["pictures"][0]["alt"] == "Levels. Higher is better."
    assert found["links"] == [*(f"#s{number}" for number in range(7)), "figures/one.csv"]


def test_every_figure_says_how_it_is_read():
    recipes = Path(runfolder.__file__).parents[1]
    calls = [
        (file.name, {keyword.arg for keyword in node.keywords})
        for file in recipes.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "folder.figure"
    ]
    assert len(calls) > 20
    assert [name for name, given in calls if not given >= {"title", "told"}] == []


def test_a_figure_of_another_run_says_whose_it_is(folder, tmp_path):
    from matplotlib.figure import Figure

    other = RunFolder(tmp_path / "other", "toy-y")
    other.figure("curve", Figure(), [(1, 2)], ["x", "y"], title="Loss — by task", told="Lower is better.")
    folder.adopt(other.path / "figures/curve.png", "twin-curve", "twin to small")
    folder.finish({})
    page = (folder.path / "report.html").read_text()
    assert "<img alt='twin to small: Loss — by task. Lower is better.'" in page
    assert "href='figures/twin-curve.csv'" in page
    assert (folder.path / "figures/twin-curve.csv").read_text() == "x,y\n1,2\n"


def test_result_comes_last(folder, monkeypatch):
    monkeypatch.setattr(runfolder, "render", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.finish({"score": 1})
    assert list(folder.path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from recipes.running.files import write_bytes
for n in range(10**9):
    write_bytes(Path(sys.argv[1]), bytes([n % 256]) * 300_000)
"""


def test_kill_leaves_the_old_file_or_the_whole_new_one(tmp_path):
    path = tmp_path / "x.bin"
    for delay in np.linspace(0.01, 0.2, 6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[3])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(float(delay))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1


def test_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_json_refuses_nothing_that_a_result_may_hold(tmp_path):
    value = {"nan": float("nan"), "inf": [np.float32("inf")], "path": Path("a"), "set": {1}, 2: np.int64(3), "é": None}
    write_json(tmp_path / "x.json", value)
    expected = {"nan": None, "inf": [None], "path": "a", "set": [1], "2": 3, "é": None}
    assert json.loads((tmp_path / "x.json").read_text()) == expected


def test_numbers_count_up_past_gaps_and_strangers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no run is under runs/toy-x"):
        newest_folder("toy", "x")
    assert [str(new_folder("toy", "x")) for _ in range(2)] == ["runs/toy-x/1", "runs/toy-x/2"]
    (tmp_path / "runs/toy-x/9").mkdir()
    (tmp_path / "runs/toy-x/notes").mkdir()
    (tmp_path / "runs/toy-x/77").write_text("a file")
    assert str(new_folder("toy", "x")) == "runs/toy-x/10"
    assert str(newest_folder("toy", "x")) == "runs/toy-x/10"


def test_two_runs_never_share_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbers = iter([[], [1]])
    (tmp_path / "runs/toy-x/1").mkdir(parents=True)  # appears after the numbers were read
    monkeypatch.setattr(runfolder, "run_numbers", lambda parent: next(numbers))
    assert str(new_folder("toy", "x")) == "runs/toy-x/2"


def test_other_ranks_use_the_folder_of_rank_zero(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_rank() == 1
    with pytest.raises(RecipeError, match="give --out DIR"):
        new_folder("toy", "x")
    monkeypatch.setenv(runfolder.FOLDER_KEY, str(tmp_path / "made"))
    assert new_folder("toy", "x") == tmp_path / "made"
    monkeypatch.delenv(runfolder.FOLDER_KEY)
    waited = []
    monkeypatch.setattr(runfolder.Board, "wait", lambda board, word: waited.append((vars(board)["_out"], word)))
    assert new_folder("toy", "x", out=Path("o")) == Path("o")
    assert waited == [(Path("o"), "ready")]


def test_other_ranks_are_silent_and_write_nothing(folder, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    folder.start("recipe: toy\n", {}, ["x"])
    folder.say("hello")
    with folder.phase("train", 3) as phase:
        list(phase.track(range(3)))
    folder.finish({"a": 1})
    assert list(folder.path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_progress_is_one_line_per_interval_without_a_terminal(folder, monkeypatch, capsys):
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with folder.phase("train", 8) as phase:
        for step in range(8):
            phase.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert re.fullmatch(r"train: \d/8 \(\d+%\), 0:\d\d elapsed, 0:\d\d left, loss \d", lines[0])
    assert re.fullmatch(r"train: 8/8 \(100%\), \d:\d\d elapsed, loss 7", lines[-1])


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress("[train]", 4) as phase:
        assert list(phase.track("abcd")) == list("abcd")
    assert "[train]" in screen.getvalue()
    assert "4/4" in screen.getvalue()


def test_quiet_says_nothing(tmp_path, capsys):
    folder = RunFolder(tmp_path, "x", quiet=True)
    folder.say("hello")
    with folder.phase("train") as phase:
        phase.advance()
    assert capsys.readouterr() == ("", "")


def test_environment_is_plain():
    environment = describe_environment({"seed": 0})
    assert json.loads(json.dumps(environment)) == environment
    assert environment["device"]["cores"] > 0
