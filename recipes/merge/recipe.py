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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.errors import RunError
from recipes.merge.alone import read_all, run_alone
from recipes.merge.baselines import seeded, tune
from recipes.merge.causal.run import run_causal
from recipes.merge.checks import cached_at, check, check_rank
from recipes.merge.finetune import train_expert
from recipes.merge.routable import check_routable
from recipes.merge.routing import task_features, train_router
from recipes.merge.schema import Recipe
from recipes.running.environment import process_rank
from recipes.running.files import plain_json
from recipes.running.quiet import hush_libraries

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data.splits import TextTask
    from recipes.data.text_module import MixedTextDataModule
    from recipes.merge.evaluation import Model, Scores
    from recipes.running.folder import RunFolder
    from twinmerge.exclusive import Exclusive
    from twinmerge.folders import Expert
    from twinmerge.modeling_twin import Head

__all__ = ["Recipe", "check", "run"]


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Experts, static baselines, twin, router, table, folder, report."""
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
    from twinmerge.merging import set_parameters, shared_expert
    from twinmerge.modeling_twin import masked_mean

    if not recipe.tasks:
        run_alone(recipe, folder)
        return
    if recipe.training.model == "causal":
        run_causal(recipe, folder, _merge, _goes_on_alone)
        return
    hush_libraries()
    where = resolve_model(recipe.base)
    model = AutoModel.from_pretrained(where).eval()
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
    grid, work = recipe.baselines.grid(), copy.deepcopy(model)

    def merged(method: str, options: dict[str, float]) -> Model:
        state = shared_expert(model, states, method, **seeded(method, options, recipe.seed))
        return with_heads(set_parameters(work, state), heads)

    with folder.phase("validation: static candidates", len(grid) * len(batches["validation"])) as progress:

        def validate(method: str, options: dict[str, float]) -> float:
            answer = precise(merged(method, options))
            row = evaluate(answer, tasks, batches["validation"], progress.advance, device)
            return row.normalised(held)

        static = tune(grid, validate)
    rows |= {method: score(method, merged(method, options)) for method, (_, options) in static.items()}

    with folder.phase("exclusive experts", 1) as progress:
        twin, exclusive = _merge(recipe, copy.deepcopy(model), experts)
        progress.advance()
    twin.heads.update(heads)
    twin.to(device).eval()
    twin.router_reads = recipe.router.features
    features = {
        split: task_features(precise(twin.features), data, split, folder, device=device)
        for split in ("train", "validation", "test")
    }
    routing = train_router(recipe.router, features, len(tasks), recipe.seed, folder)
    twin.router = routing.router.to(device)

    with folder.phase("test: routed", len(batches["test"])) as progress:
        answers = precise(partial(_routed, twin))
        rows |= evaluate_rows(answers, tasks, batches["test"], progress.advance, device)
    rows["oracle"] = score("oracle", partial(_oracle, twin))
    if recipe.baselines.probe:
        seen.setup("fit")

        def pooled(**inputs: Tensor) -> Tensor:
            return masked_mean(model(**inputs)[0], inputs.get("attention_mask"))

        splits = ("train", "validation")
        read = precise(pooled)
        features = {split: task_features(read, seen, split, folder, "base features", device) for split in splits}
        rows["linear probe"] = score("linear probe", linear_probe(model, features, labelled))

    made = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    about = {"tasks": list(experts), "base": recipe.base, "base_class": type(model).__name__}
    texts = {
        "recipe.yaml": made,
        "README.md": model_card(about, recipe.name, made),
        "result.json": json.dumps(plain_json(report.result(rows, static, routing.numbers, {})), indent=2) + "\n",
    }
    sources = {task: expert.digest for task, expert in experts.items()}
    target = save(
        twin.cpu(),
        folder.path / "merged",
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        card={"base": recipe.base, "residuals": exclusive.residuals, "sources": sources},
        texts=texts,
        labels={task: expert.labels or [] for task, expert in experts.items()},
        overwrite=True,
    )
    size = report.sizes(sum(p.nbytes for p in model.parameters()), experts, target)
    outcome = report.result(rows, static, routing.numbers, size)
    report.finish(folder, outcome, exclusive.residuals, routing.mixture)


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


def _experts(recipe: Recipe, folder: RunFolder, model: nn.Module) -> tuple[dict[str, Expert], Path | str]:
    """All experts by task, trained where missing, compared with the base; and where their tokenizer is."""
    given = recipe.given()
    for source in recipe.tasks:
        if source.name not in given:
            given[source.name] = str(cached_at(recipe, source))
            card = (recipe.base, source, recipe.training, recipe.trainer, recipe.seed)
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


def _merge(recipe: Recipe, model: nn.Module, experts: Mapping[str, Expert]) -> tuple[Any, Exclusive]:
    """The twin without its router: LoRA experts in the product form where the shared expert allows it."""
    from twinmerge.merging import merge, merge_lora

    shared, policy = recipe.shared, recipe.exclusive.policy()
    terms = {task: expert.terms for task, expert in experts.items()}
    if all(terms.values()) and shared.method in ("average", "task_arithmetic") and "rank" in policy:
        scale = 1 / len(terms) if shared.method == "average" else shared.options.get("scale", 0.3)
        return merge_lora(model, terms, scale, policy["rank"])
    options = seeded(shared.method, shared.options, recipe.seed)
    states = {task: expert.state for task, expert in experts.items()}
    return merge(model, states, shared.method, rank={**policy, "seed": recipe.seed}, **options)


def _routed(twin: Any, inputs: dict[str, Tensor], asked: list[str]) -> dict[str, Tensor]:
    """Both routed rows of one forward. A head routed wrongly answers another question: NaN, which counts as wrong."""
    outputs = twin.classify(**inputs, head=asked)
    own = outputs.logits.clone()
    own[outputs.router_weights.argmax(-1) != outputs.task] = float("nan")
    return {"routed": outputs.logits, "routed, head routed too": own}


def _oracle(twin: Any, inputs: dict[str, Tensor], asked: list[str]) -> Tensor:
    import torch

    true = torch.eye(len(twin.tasks), device=inputs["input_ids"].device)[[twin.tasks.index(name) for name in asked]]
    logits: Tensor = twin.classify(**inputs, head=asked, router_weights=true).logits
    return logits
