"""Distil the routed twin of a merge into one dense student with a head for every task.

The students learn from the training inputs of all tasks, shuffled together. A row is unlabelled but for its task, which
chooses the head that answers it; a label is read by the losses that ask for one, such as ``hard``. Validation and test
inputs are the merge's own, and so is what scores them, so that a student's row stands beside those of the merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.data.models import resolve_model
from recipes.distill.data import same_words
from recipes.distill.merge_run import MergeRun, merge_run
from recipes.distill.networks import told
from recipes.distill.schema import Values
from recipes.distill.training import figures, fit
from recipes.errors import RunError
from recipes.running.quiet import hush_libraries

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill.module import DistillModule
    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.distill.many_heads import ManyHeads
    from recipes.distill.schema import Recipe
    from recipes.merge.evaluation import Scores
    from recipes.running.folder import RunFolder

    Mixed = MixedTextDataModule | MixedImageDataModule

__all__ = ["report", "row_of", "run_merge"]


def run_merge(recipe: Recipe, folder: RunFolder) -> None:
    """Teacher, students, table, report."""
    from recipes.distill.many_heads import teacher
    from recipes.distill.measures import Measures

    hush_libraries()
    run = merge_run(recipe.data.path)
    tasks = run.tasks(recipe.data.rows)
    for task in tasks:
        for note in task.notes:
            folder.say(f"task {task.name}: {note}")
    twin = Path(recipe.voices[0].model).expanduser()
    with told(RunError):
        taught = teacher(twin, {task.name: task.labels for task in tasks})
        data = _data(recipe, run, tasks, twin)
        module = _module(recipe, taught, twin)
        data.setup()
        _answers(recipe, module, data, folder, twin)
        trainer = fit(recipe, module, data, folder, "students", recipe.training)
        networks = {name: cast("ManyHeads", module.students[name]) for name in recipe.methods}
        measures = Measures({"teacher": taught.to(trainer.strategy.root_device), **networks}, ())
        trainer.callbacks.append(measures)  # type: ignore[attr-defined]  # Lightning makes the list later
        tested = trainer.test(module, datamodule=data, verbose=False)[0]
    if trainer.is_global_zero:
        found = {name: figures(tested, name, len(networks)) for name in networks}
        rows = _rows(recipe, run, tasks, {"teacher": taught, **networks}, folder)
        bytes_of = {"teacher": _bytes(twin)} | _saved(networks, run, twin, folder)
        for name, row in rows.items():
            row |= {key: value for key, value in found.get(name, {}).items() if key in ("loss", "kl")}
            row["bytes"] = bytes_of[name]
        report(run, rows, folder, measures.costs, list(module.doubts.values()))


def _data(recipe: Recipe, run: MergeRun, tasks: Sequence[TextTask], twin: Path) -> Mixed:
    """The inputs of all tasks, in the batches of an update."""
    from recipes.data.text_module import MixedTextDataModule
    from recipes.distill.data import dealt

    if recipe.kind == "images":
        return _pictures(recipe, run, tasks)
    if recipe.student.model:
        same_words([str(twin), str(resolve_model(recipe.student.model))])
    batch = recipe.training.batch_size
    return dealt(MixedTextDataModule, recipe.training)(
        tasks,
        twin,
        batch_size=batch,
        max_length=run.recipe.training.max_length,
        seed=recipe.seed,
        eval_batch_size=2 * batch,
    )


def _pictures(recipe: Recipe, run: MergeRun, tasks: Sequence[TextTask]) -> MixedImageDataModule:
    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.looks import look_of
    from recipes.distill.data import dealt

    class Pictures(dealt(MixedImageDataModule, recipe.training)):  # type: ignore[misc]  # a class that is made here
        """Batches under the name by which a distillation reads images; on the scale of the merge's base."""

        def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
            made = super().on_after_batch_transfer(batch, dataloader_idx)
            return {"images" if name == "pixel_values" else name: value for name, value in made.items()}

    merge, batch = run.recipe, recipe.training.batch_size
    look, changed = look_of(merge.base, merge.training.image_size), merge.training.augmentation
    options: Values = {"batch_size": batch, "eval_batch_size": 2 * batch, "augmentation": changed}
    return cast("MixedImageDataModule", Pictures(tasks, look, seed=recipe.seed, **options))


def _module(recipe: Recipe, taught: ManyHeads, twin: Path) -> DistillModule:
    import lightning

    from distill.module import DistillModule
    from recipes.distill.many_heads import student

    terms = {name: recipe.terms(name) for name in recipe.methods}
    students: dict[str, nn.Module | str] = {}
    for name in terms:  # all from the same initial weights
        lightning.seed_everything(recipe.seed, workers=True, verbose=False)
        students[name] = student(recipe.student, taught, twin)
    classes = taught.classes
    return DistillModule(students, taught, terms, task=recipe.kind, classes=classes, **recipe.arguments())


def _answers(recipe: Recipe, module: DistillModule, data: Mixed, folder: RunFolder, twin: Path) -> None:
    """Ask the teacher once: about validation and test inputs, and those of training where only logits are learned."""
    from distill.losses import DistillLoss
    from distill.networks import Frozen
    from recipes.distill.answers import answer_once
    from recipes.merge.evaluation import evaluation_device

    needs = frozenset[str]().union(*(cast("DistillLoss", loss).needs for loss in module.losses.values()))
    same = needs == {"logits"} and getattr(data, "augmentation", "none") == "none"  # in every epoch
    splits = ["validation", "test", *(["train"] if same else [])]
    device = evaluation_device(recipe.trainer.accelerator)
    answer_once(cast("Frozen", module._teacher), twin, data, splits, folder, device)


def _rows(
    recipe: Recipe, run: MergeRun, tasks: Sequence[TextTask], networks: Mapping[str, ManyHeads], folder: RunFolder
) -> dict[str, Values]:
    """Every network on the merge's test inputs, in the merge's batches and number format, and whom it agrees with."""
    import torch

    from recipes.merge.evaluation import evaluate, evaluation_device, in_precision
    from recipes.merge.precision import NAMED
    from recipes.merge.recipe import mixed

    data = mixed(run.recipe, list(tasks), run.twin)
    data.setup("test")
    batches = list(data.test_dataloader())
    device = evaluation_device(recipe.trainer.accelerator)
    precision = next((kind for kind, name in NAMED.items() if name == run.scored_in), "32")
    number = torch.cat([batch["task"] for batch in batches])
    scores: dict[str, Scores] = {}
    answers: dict[str, Tensor] = {}
    for name, network in networks.items():
        said: list[Tensor] = []
        network.to(device).eval()

        def answer(
            inputs: dict[str, Tensor], asked: list[str], made: ManyHeads = network, kept: list[Tensor] = said
        ) -> Tensor:
            logits = made.asked(inputs, asked)
            kept.append(logits.argmax(-1).cpu())
            return logits

        with folder.phase(f"scoring {name}", len(batches)) as progress:
            forward = in_precision(precision, device, answer)
            scores[name] = evaluate(forward, tasks, batches, progress.advance, device)
        answers[name] = torch.cat(said)
    return {
        name: row_of(score, scores["teacher"], {} if name == "teacher" else _agreed(answers, name, number, tasks))
        for name, score in scores.items()
    }


def _agreed(answers: Mapping[str, Tensor], name: str, number: Tensor, tasks: Sequence[TextTask]) -> dict[str, float]:
    """Share of a task's test inputs that a student answers as the teacher does."""
    same = (answers[name] == answers["teacher"]).float()
    return {task.name: float(same[number == i].mean()) for i, task in enumerate(tasks)} | {"": float(same.mean())}


def row_of(score: Scores, teacher: Scores, agreed: Mapping[str, float]) -> Values:
    """The row of a network in the table.

    Args:
        score: Its scores.
        teacher: Those of the teacher.
        agreed: Its agreement with the teacher by task, and over all rows under the empty name; none for the teacher.
    """
    row: Values = {"mean": score.mean, "tasks": score.tasks, "ms_per_input": score.milliseconds}
    if agreed:
        row["over_teacher"] = score.normalised(teacher)
        row["agreement"] = agreed[""]
        row["agreement_tasks"] = {task: value for task, value in agreed.items() if task}
    return row


def _saved(networks: Mapping[str, ManyHeads], run: MergeRun, twin: Path, folder: RunFolder) -> dict[str, int]:
    """Write every student, and say how many bytes its weights are."""
    from recipes.distill.many_heads import save_student

    card = {"base": run.recipe.base, "taught_by": str(twin)}
    return {
        name: _bytes(save_student(made, folder.path / "students" / name / "model", twin, card))
        for name, made in networks.items()
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def report(run: MergeRun, rows: dict[str, Values], folder: RunFolder, costs: Values, doubts: list[str]) -> None:
    """The run's result and report.

    Args:
        run: The merge.
        rows: By network, the teacher's first.
        folder: Of the run.
        costs: Of `recipes.distill.measures.costs`.
        doubts: What speaks against the teacher, a sentence each.
    """
    summary = [
        {
            "network": name,
            "mean": row["mean"],
            "over teacher": row.get("over_teacher"),
            "agreement": row.get("agreement"),
            "ms per input": row["ms_per_input"],
            "MB": row["bytes"] / 1e6,
            "million parameters": costs[name]["parameters_millions"],
            "GFLOPs per input": costs[name]["gflops_per_input"],
        }
        for name, row in rows.items()
    ]
    tables: dict[str, list[Values]] = {
        "Summary": summary,
        "Test scores by task": [{"network": name, **row["tasks"]} for name, row in rows.items()],
        "Agreement with the teacher by task": [
            {"network": name, **row["agreement_tasks"]} for name, row in rows.items() if "agreement_tasks" in row
        ],
    }
    tables |= {"Warnings": [{"warning": doubt} for doubt in doubts]} if doubts else {}
    told_rows = ", ".join(
        f"{name} {row['mean']:.3f} ({row['over_teacher']:.1%} of the twin)"
        for name, row in rows.items()
        if name != "teacher"
    )
    summed = f"Mean test score: the twin {rows['teacher']['mean']:.3f}, {told_rows}."
    result = {"rows": rows, "networks": costs, "merge": str(run.folder), "scored_in": run.scored_in, "warnings": doubts}
    folder.finish(result, tables, summary=summed)
    folder.say(summed)
