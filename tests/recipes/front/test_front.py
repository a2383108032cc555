"""The command as the user runs it: cheap answers, exit codes, run folders, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.front import table
from recipes.front.parse import parse
from recipes.front.show import to_yaml
from tests.recipes.conftest import ROOT

HEAVY = ("torch", "lightning", "transformers", "numpy", "pandas", "matplotlib", "rich")
TOY = "recipe: toy\n"


def bare_start() -> float:
    """The processor's seconds that an interpreter takes to start and to end."""
    lines = (
        "import resource, sys; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    )
    return float(subprocess.run([sys.executable, "-c", lines], capture_output=True, check=True).stdout)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--list"], 0),
        (["--schema", "toy"], 0),
        (["--new", "toy"], 2),
        (["r.yaml", "--print-config"], 0),
        (["r.yaml", "--check"], 0),
        (["r.yaml", "method.rnk=1", "seed=x", "tasks.0.name=../.."], 2),
        (["r.yaml", "--resume"], 2),
        (["none.yaml"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_answers_are_cheap_and_import_nothing_heavy(command, tmp_path, words, code):
    (tmp_path / "r.yaml").write_text(TOY)
    done = command(*words, flags=("-X", "importtime"))
    assert done.code == code
    modules = [line.rpartition("|")[2].strip() for line in done.err.splitlines() if "|" in line]
    imported = {name.partition(".")[0] for name in modules}
    assert "recipes" in imported
    assert imported.isdisjoint(HEAVY)
    assert len(modules) < 400  # a bare interpreter imports about 65
    # Half a second, where a bare interpreter starts in a twentieth of one; on a busy machine both take longer, so
    # they are compared with each other. In a fresh environment the first command compiles what it imports.
    assert done.cpu < 0.5 or min(command(*words).cpu / bare_start() for _ in range(4)) < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"]


def test_every_recipe_of_the_table_is_cheap_to_import():
    lines = [
        "import sys, time",
        "from recipes.front import table",
        "for name in table.TABLE: module = table.load(name); module.Recipe, module.check, module.run",
        f"print([name for name in {HEAVY} if name in sys.modules], time.process_time())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    loaded, _, seconds = done.stdout.rpartition(" ")
    assert loaded == "[]", done.stdout + done.stderr
    assert float(seconds) < 1 or float(seconds) / bare_start() < 20


@pytest.mark.parametrize("path", sorted(table.shipped().values()), ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_explained(path, tmp_path):
    parsed = parse(path)
    (tmp_path / "again.yaml").write_text(to_yaml(parsed.recipe), encoding="utf-8")
    assert parse(tmp_path / "again.yaml").recipe == parsed.recipe
    head = path.read_text(encoding="utf-8").partition("recipe:")[0]
    assert head.startswith("#"), "a shipped recipe begins with a comment: what it does, paper, command, result, time"
    assert "python -m recipes.run" in head


def test_exit_codes_and_sentences(front):
    assert front("r.yaml", "--quiet", r=TOY).code == 0
    failed = front("r.yaml", "--quiet", "do=fail")
    assert (failed.code, failed.out, failed.err) == (1, "", "it cannot be done; try something else\n")
    stopped = front("r.yaml", "--quiet", "do=interrupt")
    assert stopped.code == 130
    assert stopped.err == "interrupted; go on with: python -m recipes.run r.yaml do=interrupt --resume\n"
    spaced = front("r.yaml", "--quiet", "do=interrupt", "method={kind: dare, rank: 4}", "--out", "my run")
    assert spaced.err.endswith(" do=interrupt 'method={kind: dare, rank: 4}' --resume --out 'my run'\n")
    crashed = front("r.yaml", "--quiet", "do=crash")
    where = Path("runs/toy-toy/4/traceback.txt")
    assert crashed.code == 1
    assert crashed.err == f"the run failed: KeyError: 'inner\\nworkings' (traceback: {where})\n"
    assert "toy.py" in where.read_text()
    with pytest.raises(KeyError):
        front("r.yaml", "--debug", "do=crash")


def test_check_is_numbered_and_writes_nothing(front, tmp_path):
    done = front("r.yaml", "--check", r=TOY)
    assert (done.code, done.out) == (0, " 1. 2 tasks\n 2. the plan: nothing\n")
    refused = front("r.yaml", "--check", "path=none")
    assert (refused.code, refused.out) == (2, " 1. 2 tasks\n")
    assert refused.err == "path: none does not exist; give a file\n"
    assert front("r.yaml", "path=none").code == 2  # a run looks first, too
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_run_folder_holds_everything(front, tmp_path):
    done = front("r.yaml", "seed=3", r=TOY)
    folder = tmp_path / "runs/toy-toy/1"
    assert done.out.splitlines()[-1] == "done: runs/toy-toy/1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "command.txt",
        "environment.json",
        "inputs.json",
        "recipe.yaml",
        "report.html",
        "result.json",
    ]
    assert json.loads((folder / "result.json").read_text()) == {"score": 1.0, "bad": None, "value": 11.0}
    assert (folder / "command.txt").read_text() == "python -m recipes.run r.yaml seed=3\n"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["seeds"] == {"seed": 3}
    assert {"python", "torch", "lightning"} <= environment["versions"].keys()
    assert parse(folder / "recipe.yaml").recipe.seed == 3
    page = (folder / "report.html").read_text()
    assert "&lt;a&gt;" in page
    assert "all &amp; well" in page
    assert front("r.yaml", "seed=3").out.endswith("done: runs/toy-toy/2\n")


def test_a_run_is_never_overwritten_without_force(front, tmp_path):
    assert front("r.yaml", "--out", "o", r=TOY).code == 0
    (tmp_path / "o/figures").mkdir()
    (tmp_path / "o/figures/extra.png").write_text("kept")
    refused = front("r.yaml", "--out", "o")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "--out o: a run is in it; add --resume to go on with it or --force to replace it\n"
    assert (tmp_path / "o/figures/extra.png").exists()
    assert front("r.yaml", "--out", "o", "--force", "path=none").code == 2
    assert (tmp_path / "o/figures/extra.png").exists()  # a refused recipe replaces nothing
    assert front("r.yaml", "--out", "o", "--force").code == 0
    assert not (tmp_path / "o/figures/extra.png").exists()


def test_a_run_that_trained_is_replaced_by_force(front, tmp_path):
    words = ("r.yaml", "do=train", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "trainer.max_epochs=1")
    assert front(*words, "--out", "o", r="recipe: toy\n").code == 0
    assert (tmp_path / "o/metrics.csv").is_file()
    (tmp_path / "o/model.pt").unlink()  # the toy's own, which no recipe makes
    assert front(*words, "--out", "o", "--force").code == 0


def test_force_does_not_delete_what_is_no_run(front, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years")
    done = front("r.yaml", "--out", "mine", "--force", r=TOY)
    assert (done.code, done.err) == (2, "--out mine: the folder is not empty and holds no run; give another folder\n")
    file = front("r.yaml", "--out", "mine/thesis.tex", "--force")
    assert (file.code, file.err) == (2, "--out mine/thesis.tex: a file has this name; give a folder\n")
    assert (tmp_path / "mine/thesis.tex").read_text() == "years"


def test_resume_compares_the_recipes(front, tmp_path):
    assert front("r.yaml", "do=interrupt", r=TOY).code == 130
    refused = front("r.yaml", "do=nothing", "method.rank=5", "trainer.max_epochs=3", "--resume")
    assert refused.code == 2
    assert refused.err.splitlines() == [
        "--resume: the recipe of runs/toy-toy/1 differs; set these back, or start a new run:",
        "  do: the run has 'interrupt', now it is 'nothing'",
        "  method.rank: the run has 8, now it is 5",
    ]
    accepted = front("r.yaml", "do=interrupt", "trainer.max_epochs=3", "trainer.devices=2", "--resume")
    assert accepted.code == 130
    assert "resuming with trainer.max_epochs 3 instead of null" in accepted.out
    assert "resume=runs/toy-toy/1" in accepted.out
    assert len((tmp_path / "runs/toy-toy/1/command.txt").read_text().splitlines()) == 2
    missing = front("r.yaml", "do=interrupt", "trainer.max_epochs=3", "trainer.devices=2", "--resume", "x.ckpt")
    assert missing.err == "--resume x.ckpt: no such checkpoint; give a path, or nothing for the newest one\n"
    assert missing.code == 2


def test_complete_run_is_not_resumed(front):
    front("r.yaml", "--out", "o", r=TOY)
    done = front("r.yaml", "--out", "o", "--resume")
    assert (done.code, done.out) == (0, "o is complete already; nothing to do\n")


def test_ctrl_c_says_how_to_go_on(tmp_path):
    (tmp_path / "r.yaml").write_text(TOY)
    default = ["env", "--default-signal=INT"]  # a shell's background jobs ignore it, and what they start would too
    process = subprocess.Popen(
        [*default, sys.executable, "-m", "tests.recipes.toy_run", "r.yaml", "do=sleep", "--out", "o"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "o/environment.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; go on with: python -m recipes.run r.yaml do=sleep --resume --out o"
    assert err.startswith("sleep: ")
    assert not (tmp_path / "o/result.json").exists()


def test_trained_run_resumes_bit_equal_through_the_command(front, tmp_path):
    import torch

    words = ("r.yaml", "do=train", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1")
    assert front(*words, "trainer.max_epochs=4", "--out", "whole", r=TOY).code == 0
    assert front(*words, "trainer.max_epochs=2", "--out", "parts").code == 0
    done = front(*words, "trainer.max_epochs=4", "--out", "parts", "--resume")
    assert done.code == 0
    assert "resuming parts from parts/checkpoints/epoch=1-step=16.ckpt" in done.out
    whole, parts = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert (tmp_path / "whole/metrics.csv").read_text().count("\n") > 1


def test_pipe_that_closes_early_is_no_failure(tmp_path):
    command = f"{sys.executable} -m tests.recipes.toy_run --schema toy | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_two_processes_share_one_run_folder(command, tmp_path):
    (tmp_path / "r.yaml").write_text(TOY)
    words = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1")
    done = command("r.yaml", "do=train", *words, timeout=300)
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "runs/toy-toy").iterdir()] == ["1"]
    assert done.out.count("done: ") == 1
    assert (tmp_path / "runs/toy-toy/1/model.pt").exists()


@pytest.mark.slow
def test_two_processes_that_fail_end(command, tmp_path):
    (tmp_path / "r.yaml").write_text(TOY)
    words = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1")
    done = command("r.yaml", "do=unread", *words, timeout=300)  # they waited for each other for ever
    assert done.code == 1
    assert "a parameter that is trained gets no gradient" in done.err
    assert "trainer.strategy=ddp_find_unused_parameters_true" in done.err
    done = command("r.yaml", "do=unread", *words[:2], f"{words[2]}_find_unused_parameters_true", words[3], timeout=300)
    assert done.code == 0, done.err


def test_a_checkpoint_of_another_folder_is_refused(front, tmp_path):
    words = ("r.yaml", "do=train", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    assert front(*words, "--out", "one", r=TOY).code == 0
    assert front(*words, "--out", "two").code == 0
    (tmp_path / "two/result.json").unlink()
    [other] = (tmp_path / "one/checkpoints").rglob("*.ckpt")
    refused = front(*words, "--out", "two", "--resume", str(other))
    assert refused.code == 2
    assert refused.err == (
        f"--resume {other}: this is no checkpoint of the run in two; give one under two/checkpoints, or the folder of "
        "its run with --out\n"
    )
    [own] = (tmp_path / "two/checkpoints").rglob("*.ckpt")
    assert f"resuming two from two/checkpoints/{own.name}" in front(*words, "--out", "two", "--resume", str(own)).out


def test_a_finished_part_is_not_said_to_be_trained_on(front, tmp_path, monkeypatch):
    from tests.recipes import toy

    words = ("r.yaml", "do=interrupt", "--out", "o")
    assert front(*words, "trainer.max_epochs=2", r=TOY).code == 130
    before = (tmp_path / "o/recipe.yaml").read_bytes()
    monkeypatch.setattr(toy, "finished", lambda path: ["first"], raising=False)
    refused = front(*words, "trainer.max_epochs=4", "--resume")
    assert refused.code == 2
    assert refused.err == (
        "--resume: first was trained with trainer.max_epochs 2 and is not trained on to 4; set trainer.max_epochs back "
        "to 2, or start a new run, without --resume\n"
    )
    assert (tmp_path / "o/recipe.yaml").read_bytes() == before
    assert front(*words, "trainer.max_epochs=2", "--resume").code == 130


@pytest.mark.parametrize(
    ("words", "told", "raised"),
    [
        (("--out", "file/inner"), "Not a directory", "Not a directory"),
        (("--out", "x" * 300), "the name is too long for this file system", "File name too long"),
        (("--out", "o" * 100 + "/" + "x" * 300), "the name is too long for this file system", "File name too long"),
    ],
)
def test_what_nobody_foresaw_is_a_sentence(front, tmp_path, words, told, raised):
    (tmp_path / "file").write_text("")
    failed = front("r.yaml", *words, r=TOY)
    assert failed.code == 1
    assert told in failed.err
    assert failed.err.count("\n") == 1
    with pytest.raises(OSError, match=raised):
        front("r.yaml", *words, "--debug")


def test_a_check_that_breaks_is_a_sentence(front, monkeypatch):
    from tests.recipes import toy

    def broken(recipe):
        raise KeyError("inner\nworkings")
        yield ""

    monkeypatch.setattr(toy, "check", broken)
    for words in (("--check",), ()):
        failed = front("r.yaml", *words, r=TOY)
        assert (failed.code, failed.err.count("\n")) == (1, 1)
        assert failed.err == "stopped: KeyError: 'inner\\nworkings' (add --debug for its traceback)\n"
        with pytest.raises(KeyError):
            front("r.yaml", *words, "--debug")


def test_a_run_that_finishes_no_folder_is_not_done(front, monkeypatch):
    from tests.recipes import toy

    monkeypatch.setattr(toy, "run", lambda recipe, folder: None)
    ended = front("r.yaml", r=TOY)
    assert ended.code == 1
    assert "done" not in ended.out
    assert ended.err.strip() == (
        "recipe toy: its run ended without folder.finish(result), so runs/toy-toy/1 has no result and no report; call "
        "folder.finish at the end of run in tests.recipes.toy"
    )
