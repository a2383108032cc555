"""The stages of a composition: each an ordinary run of another recipe, in the user's cache under what decides it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.compose.schema import ANSWERS, MERGE, Recipe
from recipes.data.wheels import cache_root
from recipes.errors import RecipeError, RunError
from recipes.front import table
from recipes.front.show import to_yaml
from recipes.running.built_with import built_with
from recipes.running.files import remove_parts, write_text
from recipes.running.folder import FOLDER_KEY
from recipes.running.inputs import Noted, changed, note, read_noted
from recipes.running.lock import refuse_live
from recipes.running.seals import STAMP, damage, stamp

if TYPE_CHECKING:
    from recipes.distill.schema import Recipe as Distillation
    from recipes.explain.schema import Recipe as Explanation
    from recipes.merge.schema import Recipe as Merge
    from recipes.running.folder import RunFolder

TABLE = "answers.parquet"
PACKAGES = ("distill", "explain", "gapbridge", "recipes", "twinmerge")
RESULT = "result.json"
_TURN = 5.0  # seconds between two looks at a stage that another run makes


@dataclass(frozen=True)
class Stage:
    """One step, which has its run folder before it has run.

    Attributes:
        name: merge, a student's name, answers, or the two models whose losses are explained.
        folder: Of its run.
        recipe: What is run; None for the answers, and where a finished run is taken.
        taken: Whether the user named its folder.
        reads: The user's own files that decide it, with those of the stages before it; of a run that is taken those
            that it noted.
    """

    name: str
    folder: Path
    recipe: object = None
    taken: bool = False
    reads: Noted = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Any]:
        """What its run found.

        Raises:
            RunError: When it has no result, or one that cannot be read.
        """
        try:
            found = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"stage {self.name}: {self.folder / RESULT} cannot be read ({error})") from error
        if not isinstance(found, dict):
            raise RunError(f"stage {self.name}: {self.folder / RESULT} holds no mapping")
        return found


def plan(recipe: Recipe) -> tuple[Stage, list[Stage], Stage, list[Stage]]:
    """The stages: the merge, the students, the table of all answers, and what is explained from it."""
    merge = _stage(recipe, MERGE, recipe.merging())
    students = [
        _stage(recipe, name, None if name in recipe.taken else recipe.distillation(name, merge.folder), merge)
        for name in recipe.students
    ]
    read = [merge, *students]
    decides = [recipe.explain.columns, *(part for one in read for part in (one.name, str(one.folder), _content(one)))]
    answers = Stage(ANSWERS, _stored(ANSWERS, decides), reads=_known(read))
    table = answers.folder / TABLE
    why = [_stage(recipe, "-".join(pair), recipe.explanation(pair, table), answers) for pair in recipe.pairs()]
    return merge, students, answers, why


def _stage(recipe: Recipe, name: str, made: Merge | Distillation | Explanation | None, *after: Stage) -> Stage:
    """A stage, with the folder that its recipe, the user's files that it reads and what it is made from decide."""
    if made is None:
        folder = Path(recipe.taken[name]).expanduser()
        return Stage(name, folder, taken=True, reads=read_noted(folder) or {})
    read = map(Path.expanduser, getattr(table.load(made.recipe), "inputs", lambda _: [])(made))
    own = note(path for path in read if not any(path.is_relative_to(stage.folder) for stage in after))
    # A recipe names what the stages before it read only once these are there, and they have it in their names.
    before = _known(after)
    files = {name: entry[-1] for name, entry in own.items() if name not in before}
    decides = [to_yaml(made, comments=False), files, *map(_content, after)]
    return Stage(name, _stored(made.recipe, decides), made, reads={**before, **own})


def _known(stages: Iterable[Stage]) -> dict[str, list[int | str]]:
    """The user's files that decide some stages."""
    return {name: entry for stage in stages for name, entry in stage.reads.items()}


def _stored(name: str, decides: object) -> Path:
    """Folder in the user's cache for what these values decide, with the code of this project."""
    # Stages are runs of other recipes: what this one makes of them is told anew every time.
    key = json.dumps([built_with(*PACKAGES, without="recipes.compose"), decides], sort_keys=True)
    return cache_root() / "stages" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _content(stage: Stage) -> dict[str, object]:
    """Digests of the files of a finished run that is taken; a folder of ours has them in its name."""
    if not stage.taken:
        return {}
    parts = [stage.folder, *(path for path in sorted(stage.folder.rglob("*")) if path.is_dir())]
    return {name: entry[-1] for name, entry in note(parts).items()}


def check_taken(stage: Stage, merge: Stage) -> str:
    """One line about a finished run that is taken as a stage.

    Args:
        stage: The stage.
        merge: The merge, whose tasks a student must have learned.

    Raises:
        RecipeError: When it is none, of another recipe, a student of other tasks, or its data are no longer those
            that it read.
    """
    from recipes.front.parse import parse

    key, wanted = f"taken.{stage.name}", "merge" if stage.name == MERGE else "distill"
    if not (stage.folder / RESULT).is_file():
        raise RecipeError(f"{key}: {stage.folder} is no finished run; give the folder of a finished {wanted} run")
    try:
        found: Any = parse(stage.folder / "recipe.yaml").recipe
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from error
    if found.recipe != wanted:
        raise RecipeError(f"{key}: {stage.folder} is a run of recipe {found.recipe}; expected one of {wanted}")
    if stage.name == MERGE:
        _check_twin(stage, found, key)
    else:
        _check_student(stage, found, merge, key)
    if fault := changed({name: entry for name, entry in stage.reads.items() if name in merge.reads}):
        raise RecipeError(
            f"{key}: {fault} since {stage.folder} was run, so that its scores are of other inputs; put it back, or "
            "make that run again"
        )
    return f"stage {stage.name}: taken from {stage.folder}"


def _check_twin(stage: Stage, found: Merge, key: str) -> None:
    """Refuse a merge without tasks, without a twin that can teach, or without an expert that it has trained."""
    from recipes.distill.merge_run import check_merge_run, merge_run

    if not found.tasks:
        raise RecipeError(f"{key}: {stage.folder} merged without tasks, so that there is nothing to learn; name tasks")
    try:
        check_merge_run(merge_run(str(stage.folder)))
    except RecipeError as error:
        raise RecipeError(*(f"{key}: {problem.removeprefix('data.path: ')}" for problem in error.problems)) from error
    if fault := lost_expert(stage):
        raise RecipeError(f"{key}: {stage.folder} {fault}; make that run again")


def _check_student(stage: Stage, found: Distillation, merge: Stage, key: str) -> None:
    """Refuse what is not one student of the same test inputs."""
    if found.data.source != "merge":
        raise RecipeError(
            f"{key}: {stage.folder} learned from data.source {found.data.source}, and not from a merge; give a student "
            "of this merge"
        )
    students = [path.name for path in sorted((stage.folder / "students").glob("*/"))]
    if len(students) != 1:
        raise RecipeError(
            f"{key}: expected a run of one student, got {', '.join(students) or 'none'} in {stage.folder}; distil it "
            "alone"
        )
    if _tested_on(Path(str(stage.result.get("merge"))), key) != _tested_on(merge, key):
        raise RecipeError(
            f"{key}: {stage.folder} learned from a merge of other tasks or another seed, so that its scores are of "
            "other inputs; give a student of this merge"
        )


def _tested_on(merge: Stage | Path, key: str) -> tuple[object, object]:
    """What decides the test inputs of a merge: its tasks and its seed."""
    from recipes.front.parse import parse

    if isinstance(merge, Stage) and merge.recipe is not None:
        made: Any = merge.recipe
        return made.tasks, made.seed
    folder = merge.folder if isinstance(merge, Stage) else merge
    try:
        read = parse(folder / "recipe.yaml").recipe
        return read.tasks, read.seed
    except (RecipeError, AttributeError) as error:
        raise RecipeError(f"{key}: the merge that it learned from, {folder}, cannot be read ({error})") from error


def ready(folder: Path) -> bool:
    """Whether a stage in the cache is there and whole."""
    return (folder / RESULT).is_file() and not ((folder / STAMP).is_file() and damage(folder, remember=True))


def lost_expert(merge: Stage) -> str:
    """An expert that a merge has trained and that is no longer whole in the user's cache, in words; empty for none.

    Args:
        merge: Made or taken; its experts answer beside its twin.
    """
    from recipes.front.parse import parse
    from recipes.merge.checks import cached_at
    from recipes.merge.experts import expert_damage

    recipe: Any = merge.recipe or parse(merge.folder / "recipe.yaml").recipe
    given = recipe.given()
    for task in recipe.tasks:
        if task.name not in given and (fault := expert_damage(place := cached_at(recipe, task))):
            return f"needs its expert in {place}, which {fault if place.is_dir() else 'is gone'}"
    return ""


def make(stage: Stage, run: RunFolder, lost: str = "") -> bool:
    """Run a stage, or what is left of it, unless it is in the cache; true where it was there.

    Args:
        stage: The stage.
        run: Of the composition: where the recipe of the stage is written, and what tells the user.
        lost: What is missing beside a finished one, so that it is made again.

    Raises:
        RunError: When it failed.
        KeyboardInterrupt: When it was interrupted.
    """
    if stage.taken:
        run.say(f"stage {stage.name}: taken from {stage.folder}")
        return True
    with alone(stage.folder, run):
        if settled(stage, run, lost):
            run.say(f"stage {stage.name}: cached in {stage.folder}")
            return True
        file = run.path / "stages" / f"{stage.name}.yaml"
        write_text(file, to_yaml(stage.recipe))
        begun = ["--resume"] if (stage.folder / "recipe.yaml").is_file() else []
        quiet = ["--quiet"] if run.quiet else []
        run.say(f"stage {stage.name}: {'goes on' if begun else 'begins'} in {stage.folder}")
        code = _run([sys.executable, "-m", "gapbridge", str(file), "--out", str(stage.folder), *begun, *quiet])
        if code in (130, -signal.SIGINT, -signal.SIGTERM):
            raise KeyboardInterrupt
        if code:
            raise RunError(f"stage {stage.name} failed, for the reason above; its run is in {stage.folder}")
        if fault := _read_other(stage):
            _remove(stage.folder)
            raise RunError(f"stage {stage.name} {fault}, which changed while the run was at work; start the run again")
        _settle(stage.folder)
    return False


def settled(stage: Stage, run: RunFolder, lost: str = "") -> bool:
    """Whether a stage is finished and whole; a damaged one is told and removed, a new one is stamped."""
    folder = stage.folder
    shutil.rmtree(_gone(folder), ignore_errors=True)  # of a process that was killed while it removed it
    finished = (folder / RESULT).is_file()
    fault = _read_other(stage) or (lost if finished else "")
    if not fault and finished and not (folder / STAMP).is_file():
        _settle(folder)  # its run ended while nobody waited for it
    elif not fault and finished:
        fault = damage(folder, remember=True)
    if fault:
        run.say(f"{folder} {fault}: it is made again")
        _remove(folder)
    return finished and not fault


def _remove(folder: Path) -> None:
    """Take a stage away at once: what a killed process leaves of it is neither gone on with nor taken for a result."""
    folder.rename(gone := _gone(folder))
    shutil.rmtree(gone)


def _gone(folder: Path) -> Path:
    """Where a stage is put that is about to be removed."""
    return folder.with_name(f".{folder.name}.gone")


def _read_other(stage: Stage) -> str:
    """A file of another content that the run of a stage has read than decides the stage, in words; empty where none."""
    for name, entry in (read_noted(stage.folder) or {}).items():
        if name in stage.reads and entry[-1] != stage.reads[name][-1]:
            return f"was made with another {name}"
    return ""


def _settle(folder: Path) -> None:
    """Stamp a finished stage, without the checkpoints of its trainings: it is not trained on, and they are large."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    stamp(folder)


@contextmanager
def alone(folder: Path, run: RunFolder) -> Iterator[None]:
    """Of the runs that want one stage, one makes it and the others wait.

    Args:
        folder: Of the stage.
        run: What tells the user.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    told = False
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=_TURN)
            if not _at_work(folder):
                break
            lock.release()  # its run goes on, though the composition that started it was killed
            time.sleep(_TURN)
        if not told:
            run.say(f"another run makes {folder}; this one waits for it")
        told = True
    try:
        yield
    finally:
        lock.release()


def _at_work(folder: Path) -> bool:
    """Whether a run is at work in a folder."""
    try:
        refuse_live(folder)
    except RunError:
        return True
    return False


def _run(words: Sequence[str]) -> int:
    """Run a command in a session of its own, to which interruptions are passed on once; its exit code."""
    given = {key: value for key, value in os.environ.items() if key != FOLDER_KEY}
    with subprocess.Popen(words, env=given, start_new_session=True) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def show(stage: Stage, into: Path, figures: Iterable[str] = ("*.png", "*.csv")) -> None:
    """Copy what a reader wants of a stage: its report, its numbers and its recipe.

    Args:
        stage: Finished.
        into: Folder of the composition's run, which gets `stages/<name>`.
        figures: Which files of its figures.
    """
    target = into / "stages" / stage.name
    (target / "figures").mkdir(parents=True, exist_ok=True)
    remove_parts(target)
    found = [stage.folder / name for name in ("report.html", RESULT, "recipe.yaml", "gap.json")]
    found += [file for pattern in figures for file in sorted((stage.folder / "figures").glob(pattern))]
    for file in found:
        if file.is_file():
            shutil.copyfile(file, target / file.relative_to(stage.folder))
