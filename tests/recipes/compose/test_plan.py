"""Which stages a changed line makes again, and what a composition refuses."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recipes.compose import stages
from recipes.compose.recipe import check, inputs
from recipes.compose.schema import Recipe
from recipes.compose.stages import Stage, check_taken, lost_expert, make, plan, ready
from recipes.errors import RecipeError, RunError
from recipes.front.parse import parse
from recipes.front.show import to_yaml
from recipes.merge.checks import cached_at
from recipes.running.folder import RunFolder
from recipes.running.inputs import note
from recipes.running.seals import stamp
from tests.recipes import tiny

FILE = Path(stages.__file__).with_name("compose.yaml")


def parsed(*words: str) -> Recipe:
    return parse(FILE, words).recipe


def names(recipe: Recipe) -> dict[str, str]:
    merge, students, answers, why = plan(recipe)
    return {stage.name: stage.folder.name for stage in (merge, *students, answers, *why)}


def changed(*words: str) -> set[str]:
    before, after = names(parsed()), names(parsed(*words))
    return {name for name in after if before.get(name) != after[name]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))


ALL = {"merge", "dense", "small", "answers", "expert-twin", "twin-dense", "twin-small"}


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["name=other"], set()),
        (["explain.examples=3"], set()),
        (["explain.estimation.folds=3"], {"expert-twin", "twin-dense", "twin-small"}),
        (["explain.columns=[year]"], {"answers", "expert-twin", "twin-dense", "twin-small"}),
        (["students.dense.changes.epochs=9"], ALL - {"merge", "small"}),
        (["changes.epochs=9"], ALL - {"merge"}),
        (["trainer.max_epochs=9"], ALL - {"merge"}),
        (["merge.exclusive.rank=8"], ALL),
        (["seed=1"], ALL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_changed_line_makes_again_what_depends_on_it(words, again):
    assert changed(*words) == again


def test_a_changed_file_of_the_users_makes_again_what_reads_it(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(60)))
    task = f"{{name: own, source: csv, path: {file}, text: [text], label: label}}"
    words = ["merge.tasks=[{name: trec, max_train: 64}, " + task + "]"]
    before = names(parsed(*words))
    assert file in inputs(parsed(*words))
    file.write_text(file.read_text().replace("word 3,", "other 3,"))
    after = names(parsed(*words))
    assert all(before[name] != after[name] for name in ALL)


def own_task(folder: Path, name: str = "own") -> str:
    """A csv task of one's own, as it stands in a recipe; its file has the further column year."""
    file = folder / f"{name}.csv"
    rows = "".join(f"{name} {i},{'ab'[i % 2]},{2000 + i % 7}\n" for i in range(60))
    file.write_text("text,label,year\n" + rows)
    return f"{{name: {name}, source: csv, path: {file}}}"


def made(stage: Stage, *, note_of: Path | None = None, again: bool = False) -> None:
    """What the run of a merge leaves that later stages look for."""
    (stage.folder / "merged").mkdir(parents=True, exist_ok=again)
    (stage.folder / "recipe.yaml").write_text(to_yaml(stage.recipe))
    heads = {task.name: {} for task in stage.recipe.tasks}
    (stage.folder / "merged/twin.json").write_text(json.dumps({"heads": heads}))
    (stage.folder / "result.json").write_text("{}")
    if note_of is not None:
        (stage.folder / "inputs.json").write_text(json.dumps(note([note_of])))


def test_a_merge_of_ones_own_files_that_is_there_moves_no_other_stage(tmp_path):
    recipe = parsed(f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]")
    before = names(recipe)
    made(plan(recipe)[0])
    assert names(recipe) == before


def test_files_below_the_home_folder_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("base", "expert", "body"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"one")
    words = ["merge.base=~/base", "merge.experts={trec: ~/expert}", "students.small.model=~/body"]
    for name, moved in (("base", ALL), ("expert", ALL), ("body", ALL - {"merge", "dense"})):
        before = names(parsed(*words))
        (tmp_path / name / "model.safetensors").write_bytes(b"two")
        after = names(parsed(*words))
        assert {stage for stage in ALL if before[stage] != after[stage]} == moved


def test_other_code_makes_everything_again(monkeypatch):
    before = names(parsed())
    monkeypatch.setattr(stages, "built_with", lambda *packages, without: f"other code of {packages}")
    after = names(parsed())
    assert all(before[name] != after[name] for name in ALL)


def test_a_run_that_is_taken_counts_by_its_content(tmp_path):
    run = tmp_path / "run"
    (run / "merged").mkdir(parents=True)
    (run / "result.json").write_text("{}")
    (run / "merged" / "model.safetensors").write_bytes(b"one")
    recipe = dataclasses.replace(parsed(), merge=None, taken={"merge": str(run)})
    before = names(recipe)
    assert before["merge"] == "run"
    (run / "merged" / "model.safetensors").write_bytes(b"two")
    after = names(recipe)
    assert {name for name in after if after[name] != before[name]} == ALL - {"merge"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["taken.merge=runs/x"], "merge: expected exactly one of merge and taken.merge, got both"),
        (["merge.seed=3"], "merge.seed: expected none"),
        (["students={}"], "students: expected at least one, got none"),
        (["students={twin: {}}"], "students.twin: expected another name than merge, answers, expert, twin"),
        (["students={experts: {}}"], "students.experts: expected another name than"),
        (["students={a: {}, twin-a: {}}"], "students.twin-a: expected another name than"),
        (["students.dense.changes={epoch: 3}"], "students.dense.changes"),
        (["students.dense.losses={}"], "students.dense.losses: expected at least one loss, got none"),
        (["regime=A7"], "regime"),
        (["taken={other: runs/x}"], "taken.other: expected merge or one of dense, small"),
        (["explain.groups={a: []}"], "explain: groups: expected at least one group, each of at least one column"),
        (["explain.groups={a: [task], b: [task]}"], "explain: groups: column 'task' is listed twice"),
        (["explain.examples=-1"], "explain.examples"),
        (["explain.columns=[source]"], "explain.columns: expected further columns; 'source' is one of the table's own"),
        (
            ["explain.columns=[small_log]"],
            "explain.columns: expected further columns; 'small_log' is one of the table's",
        ),
        (["explain.columns=[twin_answer]"], "explain.columns: expected further columns; 'twin_answer' is one of the"),
        (
            ["explain.groups={a: [yaer]}", "explain.columns=[year]"],
            "explain.groups.a: no column is called 'yaer'; did you",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_composed_is_refused(words, said):
    with pytest.raises(RecipeError) as error:
        parsed(*words)
    assert said in str(error.value)


def test_a_folder_that_is_no_such_run_is_refused(tmp_path):
    recipe = dataclasses.replace(parsed(), taken={"dense": str(tmp_path)})
    with pytest.raises(
        RecipeError, match=r"taken\.dense: .* is no finished run; give the folder of a finished distill"
    ):
        list(check(recipe))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["students.dense.losses={kdd: {}}"], "students.dense: methods.dense: "),
        (["students.dense.losses={kd: {temperatur: 2}}"], "students.dense: methods.dense: "),
        (["trainer.devices=3"], "students.dense: "),
        (["students.dense.model=../gone"], "students.dense: "),
        (["students.my-own={}"], "students.my-own: methods: a student is called 'my-own'"),
        (
            ["merge.base=base", "students.small.options={num_hidden_layers: 3}"],
            "students.small: student.options.num_hid",
        ),
        (
            ["merge.base=base", "students.dense.model=other"],
            "students.dense: student.model: the teacher's and the student",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_students_are_checked_before_their_twin_is_there(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.merge.recipe.check", lambda recipe: iter(()))  # it has its own tests
    monkeypatch.chdir(tmp_path)
    tiny.save_base(tmp_path / "base")  # of two layers
    words_of = tiny.save_base(tmp_path / "other") / "tokenizer.json"
    words_of.write_text(words_of.read_text().replace('"warm"', '"cold"'))
    with pytest.raises(RecipeError) as error:
        list(check(parsed(*words)))
    assert str(error.value).startswith(said)


def test_a_student_of_other_inputs_is_refused(tmp_path, monkeypatch):
    recipe, run, other = parsed(), tmp_path / "small", tmp_path / "merge"
    monkeypatch.setattr("recipes.merge.recipe.check", lambda merge: iter(()))
    for folder, made, result in (
        (other, dataclasses.replace(recipe.merging(), seed=3), {}),
        (run, recipe.distillation("small", other), {"merge": str(other)}),
    ):
        folder.mkdir()
        (folder / "recipe.yaml").write_text(to_yaml(made))
        (folder / "result.json").write_text(json.dumps(result))
    (run / "students" / "small").mkdir(parents=True)
    taken = dataclasses.replace(recipe, taken={"small": str(run)})
    with pytest.raises(RecipeError, match=r"taken\.small: .* learned from a merge of other tasks or another seed"):
        list(check(taken))
    (other / "recipe.yaml").write_text(to_yaml(recipe.merging()))
    assert f"stage small: taken from {run}" in list(check(taken))
    (run / "students" / "another").mkdir()
    with pytest.raises(RecipeError, match=r"taken\.small: expected a run of one student, got another, small in"):
        list(check(taken))
    (run / "students" / "another").rmdir()
    (other / "recipe.yaml").unlink()
    with pytest.raises(RecipeError, match=r"taken\.small: the merge that it learned from, .* cannot be read"):
        list(check(taken))


def test_a_merge_whose_files_have_changed_since_is_not_taken(tmp_path, monkeypatch):
    recipe = parsed(f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]")
    merge = plan(recipe)[0]
    made(merge, note_of=(file := tmp_path / "own.csv"))
    taken = Stage("merge", merge.folder, taken=True, reads=note([file]))
    monkeypatch.setattr(stages, "lost_expert", lambda _: "")
    assert check_taken(taken, taken) == f"stage merge: taken from {merge.folder}"
    file.write_text(file.read_text().replace("own 3,", "other 3,"))
    taken = plan(dataclasses.replace(recipe, merge=None, taken={"merge": str(merge.folder)}))[0]
    with pytest.raises(RecipeError, match=rf"taken\.merge: {file} has changed since {merge.folder} was run, so that"):
        check_taken(taken, taken)


def test_a_merge_whose_trained_experts_are_gone_is_made_again(tmp_path, run, monkeypatch, capsys):
    recipe = parsed(f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]", "merge.base=base")
    merge = plan(recipe)[0]
    for task in merge.recipe.tasks:
        (place := cached_at(merge.recipe, task)).mkdir(parents=True)
        (place / "expert.json").write_text("{}")
        stamp(place)
    monkeypatch.setattr(stages, "_run", ran := Ran())
    assert not make(merge, run, lost_expert(merge))
    assert make(merge, run, lost_expert(merge))
    shutil.rmtree(place)
    assert not make(merge, run, lost_expert(merge))
    assert f"needs its expert in {place}, which is gone: it is made again" in capsys.readouterr().out
    assert "--resume" not in ran.words[1]
    made(merge, again=True)
    with pytest.raises(
        RecipeError, match=rf"taken\.merge: {merge.folder} needs its expert in {place}, which is gone; mak"
    ):
        check_taken(taken := Stage("merge", merge.folder, taken=True), taken)


def test_a_merge_without_tasks_is_not_taken(tmp_path):
    text = "recipe: merge\nexperts: {a: a, b: b}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "result.json").write_text("{}")
    taken = Stage("merge", tmp_path, taken=True)
    with pytest.raises(RecipeError, match=r"taken\.merge: .* merged without tasks, so that there is nothing to learn"):
        check_taken(taken, taken)


def test_it_is_started_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="starts its stages itself"):
        list(check(parsed()))


class Ran:
    """A stand-in for the command that runs a stage."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.words = code, []

    def __call__(self, words) -> int:
        self.words.append([str(word) for word in words])
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text("recipe: merge\n")
        (folder / "checkpoints").mkdir(exist_ok=True)
        if self.code == 0:
            (folder / "result.json").write_text(json.dumps({"made": len(self.words)}))
        return self.code


@pytest.fixture
def run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run", "test")


def test_a_stage_is_made_once_goes_on_and_is_made_again_when_damaged(run, monkeypatch, capsys):
    stage = plan(parsed())[0]
    monkeypatch.setattr(stages, "_run", stopped := Ran(130))
    with pytest.raises(KeyboardInterrupt):
        make(stage, run)
    assert not ready(stage.folder)
    monkeypatch.setattr(stages, "_run", ran := Ran())
    assert not make(stage, run)  # made now
    assert "--resume" in ran.words[0]
    assert "--resume" not in stopped.words[0]
    assert not (stage.folder / "checkpoints").exists()
    assert make(stage, run)  # was there
    assert len(ran.words) == 1
    assert ready(stage.folder)
    (stage.folder / "result.json").write_text('{"made": 7}')
    assert not ready(stage.folder)
    assert not make(stage, run)
    assert "it is made again" in capsys.readouterr().out
    assert stage.result == {"made": 2}


def test_a_stage_of_other_files_than_it_is_named_after_is_never_used(tmp_path, run, monkeypatch, capsys):
    recipe = parsed(f"merge.tasks=[{own_task(tmp_path)}, {own_task(tmp_path, 'two')}]")
    stage, file = plan(recipe)[0], tmp_path / "own.csv"
    before = file.read_text()

    class Late(Ran):
        """The user writes to the file when the composition has planned its stages, and before the stage reads it."""

        def __call__(self, words) -> int:
            code = super().__call__(words)
            (stage.folder / "inputs.json").write_text(json.dumps(note([file])))
            return code

    file.write_text(before.replace("own 3,", "other 3,"))
    monkeypatch.setattr(stages, "_run", Late())
    with pytest.raises(
        RunError, match=rf"stage merge was made with another {file}, which changed while the run was at"
    ):
        make(stage, run)
    assert not ready(stage.folder)
    monkeypatch.setattr(stages, "_run", Late(130))  # and one that is interrupted does not go on with them either
    with pytest.raises(KeyboardInterrupt):
        make(stage, run)
    file.write_text(before)
    monkeypatch.setattr(stages, "_run", ran := Late())
    assert not make(stage, run)
    assert "--resume" not in ran.words[0]
    assert f"was made with another {file}: it is made again" in capsys.readouterr().out


def test_a_stage_whose_run_outlived_its_composition_is_waited_for(run, monkeypatch, capsys):
    stage = plan(parsed())[0]
    stage.folder.mkdir(parents=True)
    (stage.folder / "recipe.yaml").write_text("recipe: merge\n")
    code = "import sys, time\nfrom pathlib import Path\nfrom recipes.running.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    code += "    (Path(sys.argv[1]) / 'result.json').write_text('{}')\n"
    monkeypatch.setattr(stages, "_TURN", 0.05)
    monkeypatch.setattr(stages, "_run", lambda words: pytest.fail("a second run was started in the folder"))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(stage.folder)], stdin=pipe, stdout=pipe, text=True) as one:
        assert one.stdout.readline() == "in\n"
        ending = threading.Timer(0.5, one.stdin.close)
        ending.start()
        assert make(stage, run)
        ending.join()
    assert f"another run makes {stage.folder}; this one waits for it" in capsys.readouterr().out


def test_a_stage_whose_removal_was_killed_is_not_taken_for_a_finished_one(run, monkeypatch):
    stage = plan(parsed())[0]
    monkeypatch.setattr(stages, "_run", Ran())
    make(stage, run)
    (stage.folder / "merged").mkdir()
    (stage.folder / "result.json").write_text('{"made": 7}')  # damaged, so that it is removed

    def killed(folder: Path, **_: object) -> None:
        """As the end of the process after the first files are gone."""
        if folder.is_dir():
            for name in (stages.STAMP, "recipe.yaml"):
                (folder / name).unlink()
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            make(stage, run)
    monkeypatch.setattr(stages, "_run", ran := Ran())
    assert not make(stage, run)
    assert "--resume" not in ran.words[0]
    assert stage.result == {"made": 1}
    assert not (stage.folder / "merged").exists()
    kept = [stage.folder.name, f".{stage.folder.name}.lock"]
    assert sorted(path.name for path in stage.folder.parent.iterdir()) == sorted(kept)  # no half of one is left


@pytest.mark.parametrize("code", [-signal.SIGTERM, -signal.SIGINT])
def test_a_stage_that_is_ended_is_an_interruption(run, monkeypatch, code):
    monkeypatch.setattr(stages, "_run", Ran(code))
    with pytest.raises(KeyboardInterrupt):
        make(plan(parsed())[0], run)


def test_a_stage_that_fails_ends_the_run_in_a_sentence(run, monkeypatch):
    monkeypatch.setattr(stages, "_run", Ran(1))
    stage = plan(parsed())[0]
    with pytest.raises(RunError, match=rf"stage merge failed, for the reason above; its run is in {stage.folder}"):
        make(stage, run)


def test_a_result_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        _ = Stage("merge", tmp_path).result
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(RunError, match="holds no mapping"):
        _ = Stage("merge", tmp_path).result
