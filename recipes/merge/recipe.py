"""Merge fine-tunes of one base into a twin: shared expert, exclusive experts, router; then score it beside all else.

``python -m recipes.run merge.yaml`` makes the experts it is not given (once, in the user's cache), tunes every static
method on validation, builds the twin over the chosen shared expert, trains the router on training inputs, and writes
the twin folder ``merged/`` and a table on the test inputs of all tasks shuffled together. In every row but `oracle` the
mixture comes from the input alone; the rows say whether the question (the head) was named by the caller or routed too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.tables import own_files
from recipes.errors import RecipeError, RunError
from recipes.merge.alone import read_all, run_alone
from recipes.merge.causal.run import run_causal
from recipes.merge.checks import cached_at, check
from recipes.merge.experts import check_rank, stored_format_of
from recipes.merge.finetune import alone_with, train_expert
from recipes.merge.routable import check_routable
from recipes.merge.routing import batch_features, task_features, train_router
from recipes.merge.schema import Recipe
from recipes.merge.zero_shot import unnamed, with_zero_shot
from recipes.running.environment import process_rank
from recipes.running.files import plain_json
from recipes.running.quiet import hush_libraries
from twinmerge.towers import load_body

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.merge.baselines import Options, Tuned
    from recipes.merge.compared import Beside
    from recipes.merge.evaluation import Scores
    from recipes.merge.routing import Features, Routing
    from recipes.merge.rows import Judge, Read
    from recipes.running.folder import RunFolder
    from twinmerge.exclusive import Exclusive
    from twinmerge.folders import Expert
    from twinmerge.merging import Method
    from twinmerge.twin_mixin import TwinMixin

__all__ = ["Recipe", "check", "finished", "inputs", "mixed", "run"]


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    try:
        experts = [Path(place) for place in recipe.given().values()]
    except RecipeError:  # the pre-flight says so
        experts = []
    tables = [file for task in recipe.tasks for file in own_files(task)]
    return [Path(recipe.base), *experts, *tables, *map(Path, (*recipe.texts.values(), *recipe.images.values()))]


def finished(path: Path) -> list[str]:
    """The twin of a run folder, once it is written: experts that are trained longer make another."""
    return ["merged"] if (path / "merged").is_dir() else []


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Experts, static baselines, twin, router, table, folder, report."""
    import torch

    from recipes.merge import rows as table
    from recipes.merge.compared import compared
    from recipes.merge.wemoe import check_blocks
    from recipes.merge.with_data import all_static, check_linear

    if not recipe.tasks:
        run_alone(recipe, folder)
        return
    if recipe.training.model == "causal":
        run_causal(recipe, folder, _merge, _goes_on_alone)
        return
    hush_libraries()
    where = resolve_model(recipe.base)
    model = load_body(where)
    check_rank("exclusive.rank", recipe.exclusive.rank, [tuple(p.shape) for p in model.parameters()], RunError)
    check_routable(recipe.base, tuple(recipe.training.frozen), RunError)
    check_linear(recipe, model)
    check_blocks(recipe, model)
    experts, tokenizer = _experts(recipe, folder, model)
    if not _goes_on_alone():
        return
    labelled, tasks, experts = _prepared(recipe, folder, experts)
    data, seen = mixed(recipe, tasks, tokenizer), mixed(recipe, labelled, tokenizer)
    judge = table.Judge.of(recipe, folder, tasks, data, model, experts)
    states = {task: expert.state for task, expert in experts.items()}
    whole = table.whole(judge, model, states)
    judge = judge.settled(whole)
    held, rows = table.experts(judge, whole)
    own = table.base(judge, model, labelled, seen if recipe.baselines.probe else None)
    rows["pretrained"] = own.pop("pretrained")
    recipe, static = all_static(judge, model, states, held)
    rows |= static.rows

    stored = getattr(torch, stored_format_of(recipe, where))
    with folder.phase("exclusive experts", 1) as progress:
        twin, exclusive = _merge(recipe, copy.deepcopy(model), experts, *static.method(recipe.shared))
        progress.advance()
    twin = _settled(judge, twin, stored, recipe.router.features)
    features, read = _features(judge, twin)
    routing = train_router(recipe.router, features, len(tasks), recipe.seed, folder)
    twin.router = routing.router.to(judge.device)
    rows |= table.routed(judge, twin, read) | table.oracle(judge, twin)
    beside = compared(judge, model, states, twin, features, read, stored)
    rows |= {**beside.rows, **own}

    twin.router = None  # it keeps its precision
    twin.to("cpu", stored)  # type: ignore[arg-type]
    twin.router = routing.router.cpu()
    judge = replace(judge, recipe=recipe)
    _write(judge, model, tokenizer, experts, (twin, exclusive, routing), (rows, static.best, labelled), beside)


def _prepared(
    recipe: Recipe, folder: RunFolder, experts: Mapping[str, Expert]
) -> tuple[list[TextTask], list[TextTask], dict[str, Expert]]:
    """What the experts learned from, what the router reads, and the experts with heads in the order of the labels."""
    # The router may read more inputs, of which it takes the task and not the label.
    labelled = [load_task(source, recipe.seed) for source in recipe.tasks]
    tasks = [load_task(replace(source, max_train=recipe.router.items), recipe.seed) for source in recipe.tasks]
    for task in labelled:
        for note in task.notes:
            folder.say(f"task {task.name}: {note}")
    if recipe.training.heads == "zeroshot":
        for told in filter(None, map(unnamed, labelled)):
            folder.say(told)
        experts = with_zero_shot(recipe, labelled, experts)
    return labelled, tasks, _in_order(labelled, experts)


def _settled(judge: Judge, twin: TwinMixin, stored: torch.dtype, reads: str) -> TwinMixin:
    """The twin with its heads, without its router, in the precision of what is saved."""
    twin.heads.update(judge.heads)
    twin.to(judge.device, stored)  # type: ignore[arg-type]  # transformers wraps the method, and its types are lost
    twin.float().eval()
    twin.router_reads = reads
    return twin


def _features(judge: Judge, twin: TwinMixin) -> tuple[dict[str, Features], Read]:
    """Router features and task ids by split, and those of the test batches one by one, which are scored with them."""
    import torch

    encode, device = judge.precise(twin.features), judge.device
    features = {"train": task_features(encode, judge.data, "train", judge.folder, device=device)}
    read = {split: batch_features(encode, given, split, judge.folder, device) for split, given in judge.batches.items()}
    features |= {split: (torch.cat(found), ids) for split, (found, ids, _) in read.items()}
    return features, read["test"]


def _write(
    judge: Judge,
    model: PreTrainedModel,
    tokenizer: Path | str,
    experts: Mapping[str, Expert],
    made: tuple[TwinMixin, Exclusive, Routing],
    found: tuple[dict[str, Scores], Tuned, list[TextTask]],
    beside: Beside[Scores],
) -> None:
    """The twin folder, and the report of the run."""
    from recipes.data.looks import saved_reader
    from recipes.merge import report
    from recipes.merge.precision import NAMED
    from twinmerge.artefact import model_card, save
    from twinmerge.attaching import statistics

    recipe, folder = judge.recipe, judge.folder
    (twin, exclusive, routing), (rows, static, labelled) = made, found
    source = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    about: dict[str, object] = {"tasks": list(experts), "base": recipe.base, "base_class": type(model).__name__}
    about |= {"batch_norms": bool(statistics(model))}
    texts = {
        "recipe.yaml": source,
        "README.md": model_card(about, recipe.name, source),
        "result.json": json.dumps(plain_json(report.result(rows, static, routing.numbers, {}, labelled)), indent=2)
        + "\n",
    }
    sources = {task: expert.digest for task, expert in experts.items()}
    target = save(
        twin,
        folder.path / "merged",
        tokenizer=saved_reader(tokenizer, getattr(judge.data, "look", None), twin),
        card={"base": recipe.base, "residuals": exclusive.residuals, "sources": sources},
        texts=texts,
        labels={task: expert.labels or [] for task, expert in experts.items()},
        overwrite=True,
    )
    stored = next(twin.parameters()).dtype  # of one model as of the twin's shared expert
    base, places = stored.itemsize * sum(p.numel() for p in model.parameters()), report.places(target)
    size = {**report.sizes(base, experts, target), **beside.sizes(base, places)}
    outcome = report.result(rows, static, routing.numbers, size, labelled)
    outcome |= {"twin_bytes": places, "scored_in": NAMED[judge.precision], "shared": asdict(recipe.shared)}
    why = [{"scored in": NAMED[judge.precision], "why": judge.why}]
    report.finish(folder, outcome, exclusive.residuals, routing.mixture, more={"Number format": why})


def mixed(recipe: Recipe, tasks: list[TextTask], tokenizer: Path | str) -> MixedTextDataModule | MixedImageDataModule:
    """All tasks' inputs in the batches in which a merge scores them.

    Args:
        recipe: Of the merge.
        tasks: Its tasks.
        tokenizer: Where the tokenizer of texts is.
    """
    if recipe.tasks[0].kind == "images":
        from recipes.data.image_module import MixedImageDataModule
        from recipes.data.looks import look_of

        look, batch = look_of(recipe.base, recipe.training.image_size), recipe.training.batch_size
        rows = recipe.eval_batch_size
        return MixedImageDataModule(tasks, look, batch_size=batch, seed=recipe.seed, eval_batch_size=rows)
    from recipes.data.text_module import MixedTextDataModule

    return MixedTextDataModule(
        tasks,
        tokenizer,
        batch_size=recipe.training.batch_size,
        max_length=recipe.training.max_length,
        seed=recipe.seed,
        eval_batch_size=recipe.eval_batch_size,
    )


def _experts(recipe: Recipe, folder: RunFolder, model: PreTrainedModel) -> tuple[dict[str, Expert], Path | str]:
    """All experts by task, trained where missing, compared with the base; and where their tokenizer is."""
    given = recipe.given()
    for source in recipe.tasks:
        if source.name not in given:
            given[source.name] = str(cached_at(recipe, source))
            card = (recipe.base, source, recipe.training, recipe.trainer, recipe.seed)
            with alone_with(Path(given[source.name]), folder.board):
                train_expert(*card, Path(given[source.name]), folder)
    return read_all(recipe, folder, model, {source.name: given[source.name] for source in recipe.tasks})


def _goes_on_alone() -> bool:
    """True on the one process that merges; what several trained together ends here."""
    from torch import distributed

    rank = process_rank()
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    return rank == 0


def _in_order(tasks: list[TextTask], experts: Mapping[str, Expert]) -> dict[str, Expert]:
    """The experts with their outputs in the order of the tasks' labels."""
    from twinmerge.errors import CheckpointError
    from twinmerge.folders import mapped

    made = {}
    for task in tasks:
        try:
            made[task.name] = mapped(experts[task.name], list(task.labels))
        except CheckpointError as error:
            raise RunError(f"experts.{task.name}: {error}") from error
    return made


def _merge(
    recipe: Recipe,
    model: PreTrainedModel,
    experts: Mapping[str, Expert],
    method: Method,
    options: Options,
) -> tuple[TwinMixin, Exclusive]:
    """The twin without its router: LoRA experts in the product form where the shared expert allows it."""
    from twinmerge.one_call import merge_experts

    policy, dense = recipe.exclusive.policy(), recipe.exclusive.dense
    return merge_experts(model, experts, method, policy, dense=dense, seed=recipe.seed, **options)
