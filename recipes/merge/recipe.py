"""Merge fine-tunes of one base into a twin: shared expert, exclusive experts, router; then score it beside all else.

``python -m recipes.run merge.yaml`` makes the experts it is not given (once, in the user's cache), tunes every static
method on validation, builds the twin over the chosen shared expert, trains the router on training inputs, and writes
the twin folder ``merged/`` and a table on the test inputs of all tasks shuffled together. In every row but `oracle` the
mixture comes from the input alone; the rows say whether the question (the head) was named by the caller or routed too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.tables import own_files
from recipes.errors import RecipeError, RunError
from recipes.merge.alone import read_all, run_alone
from recipes.merge.baselines import Candidates, seeded, trials, tune
from recipes.merge.causal.run import run_causal
from recipes.merge.checks import cached_at, check, check_rank
from recipes.merge.experts import expert_damage, stored_format_of
from recipes.merge.finetune import train_expert
from recipes.merge.routable import check_routable
from recipes.merge.routing import batch_features, task_features, train_router
from recipes.merge.schema import Recipe
from recipes.running.environment import process_rank
from recipes.running.files import plain_json
from recipes.running.quiet import hush_libraries

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.merge.evaluation import Batch, Counted, Model, Scores
    from recipes.running.folder import RunFolder
    from twinmerge.exclusive import Exclusive
    from twinmerge.folders import Expert
    from twinmerge.modeling_twin import Head
    from twinmerge.twin_mixin import TwinMixin

__all__ = ["Recipe", "check", "finished", "inputs", "run"]


def inputs(recipe: Recipe) -> list[Path]:
    """The user's own files and folders that a run reads."""
    try:
        experts = [Path(place) for place in recipe.given().values()]
    except RecipeError:  # the pre-flight says so
        experts = []
    tables = [file for task in recipe.tasks for file in own_files(task)]
    return [Path(recipe.base), *experts, *tables, *map(Path, recipe.texts.values())]


def finished(path: Path) -> list[str]:
    """The twin of a run folder, once it is written: experts that are trained longer make another."""
    return ["merged"] if (path / "merged").is_dir() else []


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Experts, static baselines, twin, router, table, folder, report."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from recipes.merge import report
    from recipes.merge.evaluation import (
        evaluate,
        evaluate_rows,
        evaluation_device,
        in_precision,
        linear_probe,
        with_experts,
        with_heads,
    )
    from twinmerge.artefact import model_card, save
    from twinmerge.merging import set_parameters
    from twinmerge.modeling_twin import masked_mean

    if not recipe.tasks:
        run_alone(recipe, folder)
        return
    if recipe.training.model == "causal":
        run_causal(recipe, folder, _merge, _goes_on_alone)
        return
    hush_libraries()
    where = resolve_model(recipe.base)
    model = AutoModel.from_pretrained(where, dtype=torch.float32).eval()
    check_rank(recipe, [tuple(p.shape) for p in model.parameters()], RunError)
    check_routable(recipe.base, tuple(recipe.training.frozen), RunError)
    experts, tokenizer = _experts(recipe, folder, model)
    if not _goes_on_alone():
        return
    device = evaluation_device(recipe.trainer.accelerator)
    model.to(device)
    # What the experts learned from; the router may read more inputs, of which it takes the task and not the label.
    labelled = [load_task(source, recipe.seed) for source in recipe.tasks]
    tasks = [load_task(replace(source, max_train=recipe.router.items), recipe.seed) for source in recipe.tasks]
    for task in labelled:
        for note in task.notes:
            folder.say(f"task {task.name}: {note}")
    experts = _in_order(labelled, experts)
    heads = {task: cast("Head", expert.head).to(device) for task, expert in experts.items()}
    data, seen = _mixed(recipe, tasks, tokenizer), _mixed(recipe, labelled, tokenizer)
    data.setup(None)
    batches = {"validation": list(data.val_dataloader()), "test": list(data.test_dataloader())}

    precise = partial(in_precision, recipe.eval_precision, device)

    def score(name: str, answer: Model, split: str = "test") -> Scores:
        with folder.phase(f"{split}: {name}", len(batches[split])) as progress:
            return evaluate(precise(answer), tasks, batches[split], progress.advance, device)

    states = {task: expert.state for task, expert in experts.items()}
    whole = with_experts({t: set_parameters(copy.deepcopy(model), state) for t, state in states.items()}, heads)
    held, rows = score("experts", whole, "validation"), {"experts": score("experts", whole)}
    rows["pretrained"] = score("pretrained", with_heads(model, heads))
    del whole
    static, answer_of = _tuned(recipe, folder, model, states, heads, (tasks, data.parts("validation"), held))
    rows |= {method: score(method, answer_of(method, options)) for method, (_, options) in static.items()}

    with folder.phase("exclusive experts", 1) as progress:
        twin, exclusive = _merge(recipe, copy.deepcopy(model), experts)
        progress.advance()
    twin.heads.update(heads)
    stored = getattr(torch, stored_format_of(recipe, where))
    twin.to(device, stored)  # type: ignore[arg-type]  # transformers wraps the method, and its types are lost
    twin.float().eval()  # what is scored has the precision of what is saved
    twin.router_reads = recipe.router.features
    encode = precise(twin.features)
    features = {"train": task_features(encode, data, "train", folder, device=device)}
    read = {split: batch_features(encode, given, split, folder, device) for split, given in batches.items()}
    features |= {split: (torch.cat(found), ids) for split, (found, ids, _) in read.items()}
    routing = train_router(recipe.router, features, len(tasks), recipe.seed, folder)
    twin.router = routing.router.to(device)

    with folder.phase("test: routed", len(batches["test"])) as progress:
        with torch.no_grad():  # the features are those of this very batch: one forward serves both
            weights = iter([routing.router.weights(found.to(device)) for found in read["test"][0]])
        answers = precise(partial(_routed, twin, weights))
        routed = evaluate_rows(answers, tasks, batches["test"], progress.advance, device)
        rows |= {n: replace(row, milliseconds=row.milliseconds + read["test"][2]) for n, row in routed.items()}
    rows["oracle"] = score("oracle", partial(_oracle, twin))
    if recipe.baselines.probe:
        seen.setup("fit")

        def pooled(**inputs: Tensor) -> Tensor:
            return masked_mean(model(**inputs)[0], inputs.get("attention_mask"))

        splits = ("train", "validation")
        base = precise(pooled)
        features = {split: task_features(base, seen, split, folder, "base features", device) for split in splits}
        rows["linear probe"] = score("linear probe", linear_probe(model, features, labelled))

    made = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    about = {"tasks": list(experts), "base": recipe.base, "base_class": type(model).__name__}
    texts = {
        "recipe.yaml": made,
        "README.md": model_card(about, recipe.name, made),
        "result.json": json.dumps(plain_json(report.result(rows, static, routing.numbers, {}, labelled)), indent=2)
        + "\n",
    }
    sources = {task: expert.digest for task, expert in experts.items()}
    twin.router = None  # it keeps its precision
    twin.to("cpu", stored)  # type: ignore[arg-type]
    twin.router = routing.router.cpu()
    target = save(
        twin,
        folder.path / "merged",
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        card={"base": recipe.base, "residuals": exclusive.residuals, "sources": sources},
        texts=texts,
        labels={task: expert.labels or [] for task, expert in experts.items()},
        overwrite=True,
    )
    size = report.sizes(sum(p.nbytes for p in model.parameters()), experts, target)
    outcome = {**report.result(rows, static, routing.numbers, size, labelled), "twin_bytes": report.places(target)}
    report.finish(folder, outcome, exclusive.residuals, routing.mixture)


def _tuned(
    recipe: Recipe,
    folder: RunFolder,
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    heads: Mapping[str, Head],
    judged: tuple[list[TextTask], Sequence[Sequence[Batch]], Scores],
) -> tuple[dict[str, tuple[float, dict[str, float]]], Callable[[str, Mapping[str, float]], Model]]:
    """The best candidate of every static merge on validation, and what makes a model of one."""
    from recipes.merge.evaluation import evaluate, evaluation_device, in_precision, with_heads
    from twinmerge.merging import set_parameters, shared_expert

    tasks, parts, held = judged
    device, grid, work = evaluation_device(recipe.trainer.accelerator), recipe.baselines.grid(), copy.deepcopy(model)
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    candidates = Candidates(named, partial(_called, shared_expert, model, states), recipe.seed)
    counted: dict[tuple[object, ...], Counted] = {}
    tried = trials(grid, len(parts))

    def answer_of(method: str, options: Mapping[str, float]) -> Model:
        return with_heads(set_parameters(work, candidates(method, options)), heads)

    steps = sum(count * len(part) for count, part in zip(tried, parts, strict=True))
    with folder.phase("validation: static candidates", steps) as progress:

        def validate(method: str, options: dict[str, float], part: int) -> float:
            answer = in_precision(recipe.eval_precision, device, answer_of(method, options))
            own = counted.setdefault((method, *options.items()), {})
            return evaluate(answer, tasks, parts[part], progress.advance, device, own).normalised(held)

        static = tune(grid, validate, len(parts))
    if len(parts) > 1:
        folder.say(
            f"static merges: {tried[0]} candidates on a quarter of the validation rows, the better {tried[1]} on half, "
            f"{tried[2]} on all"
        )
    return static, answer_of


def _called(
    shared_expert: Callable[..., dict[str, Tensor]],
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    method: str,
    options: dict[str, float],
) -> dict[str, Tensor]:
    return shared_expert(model, states, method, **options)


def _mixed(recipe: Recipe, tasks: list[TextTask], tokenizer: Path | str) -> MixedTextDataModule:
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
            with _alone_with(Path(given[source.name])):
                train_expert(*card, Path(given[source.name]), folder)
    return read_all(recipe, folder, model, {source.name: given[source.name] for source in recipe.tasks})


def _alone_with(entry: Path) -> AbstractContextManager[object]:
    """Of the runs that want one expert in the cache, one trains it and the others wait; one that is there is free."""
    if process_rank() != 0 or not expert_damage(entry):
        return nullcontext()
    from filelock import FileLock

    entry.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(entry.with_name(f".{entry.name}.lock"))


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


def _merge(recipe: Recipe, model: PreTrainedModel, experts: Mapping[str, Expert]) -> tuple[TwinMixin, Exclusive]:
    """The twin without its router: LoRA experts in the product form where the shared expert allows it."""
    from twinmerge.merging import merge, merge_lora

    shared, policy = recipe.shared, recipe.exclusive.policy()
    terms = {task: expert.terms for task, expert in experts.items()}
    if all(terms.values()) and shared.method in ("average", "task_arithmetic") and "rank" in policy:
        scale = 1 / len(terms) if shared.method == "average" else shared.options.get("scale", 0.3)
        return merge_lora(model, terms, scale, policy["rank"])
    options = seeded(shared.method, shared.options, recipe.seed)
    states = {task: expert.state for task, expert in experts.items()}
    dense = recipe.exclusive.dense
    return merge(model, states, shared.method, rank={**policy, "seed": recipe.seed}, dense=dense, **options)


def _routed(
    twin: TwinMixin, weights: Iterator[Tensor], inputs: dict[str, Tensor], asked: list[str]
) -> dict[str, Tensor]:
    """Both routed rows of one forward. A head routed wrongly answers another question: NaN, which counts as wrong."""
    outputs = twin.classify(**inputs, head=asked, router_weights=next(weights))
    own = outputs.logits.clone()
    own[outputs.router_weights.argmax(-1) != outputs.task] = float("nan")
    return {"routed": outputs.logits, "routed, head routed too": own}


def _oracle(twin: TwinMixin, inputs: dict[str, Tensor], asked: list[str]) -> Tensor:
    import torch

    true = torch.eye(len(twin.tasks), device=inputs["input_ids"].device)[[twin.tasks.index(name) for name in asked]]
    logits: Tensor = twin.classify(**inputs, head=asked, router_weights=true).logits
    return logits
