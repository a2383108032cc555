"""Merge experts of a causal language model into a twin that routes every prompt, and score it beside all else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.data.language_rows import load_language
from recipes.data.models import resolve_model
from recipes.errors import RunError
from recipes.merge.baselines import DATA, DYNAMIC, SHARED, Candidates, deciding, told, tune
from recipes.merge.causal.train import language_model
from recipes.merge.checks import cached_at
from recipes.merge.experts import base_checkpoint, check_rank, expert_folder, stored_format_of
from recipes.merge.finetune import alone_with, train_expert
from recipes.merge.layers import check_layers
from recipes.merge.routing import train_router
from recipes.running.files import plain_json
from recipes.running.quiet import hush_libraries
from twinmerge.methods import methods

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from recipes.merge.baselines import Options, Tuned
    from recipes.merge.causal.bench import Bench
    from recipes.merge.causal.scores import Speaker
    from recipes.merge.causal.table import LanguageScores
    from recipes.merge.causal.with_data import Rows
    from recipes.merge.compared import Beside
    from recipes.merge.routing import Features, Routing
    from recipes.merge.schema import Recipe
    from recipes.merge.with_data import Looked
    from recipes.running.folder import RunFolder
    from twinmerge.exclusive import Exclusive
    from twinmerge.folders import Expert
    from twinmerge.twin_mixin import TwinMixin

EXPLAINED = {
    "experts": "every prompt by its own expert",
    "pretrained": "the base as it is",
    **dict.fromkeys(methods(), "static"),
    **DATA,
    "routed": "mixture from the prompt alone",
    "routed by knn": "mixture by votes of the nearest training prompts",
    "emr": "EMR-Merging, told the router's first choice",
    **{name: said.replace(", head named", "") for name, said in DYNAMIC.items()},
    "oracle": "mixture told the true task",
}


def run_causal(
    recipe: Recipe, folder: RunFolder, merged: Callable[..., Any], goes_on_alone: Callable[[], bool]
) -> None:
    """Experts, static baselines, twin, router, table, folder, report.

    Args:
        recipe: The recipe.
        folder: The run folder.
        merged: Makes the twin of a base and its experts, with the certificates of the exclusive ones.
        goes_on_alone: Ends what several processes trained together; false on all but one.
    """
    import torch
    from transformers import AutoTokenizer

    from recipes.merge.causal.compared import compared
    from recipes.merge.causal.scores import Speaker
    from recipes.merge.evaluation import evaluation_device
    from twinmerge.merging import set_parameters

    hush_libraries()
    where = resolve_model(recipe.base)
    if recipe.of_layers():
        check_layers(recipe, RunError)
    experts, model = _experts(recipe, folder, where), language_model(where).eval()
    check_rank("exclusive.rank", recipe.exclusive.rank, [tuple(p.shape) for p in model.parameters()], RunError)
    if not goes_on_alone():
        return
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    bench = bench_of(recipe, folder, tokenizer, evaluation_device(recipe.trainer.accelerator))
    read, pad = _read(recipe, folder, where, model, experts), _padding(tokenizer)
    model.to(bench.device)
    bench = _settled(bench, Speaker(model, pad)).remembering(model, read)
    work = copy.deepcopy(model)

    def expert(task: str) -> Speaker:
        set_parameters(work, read[task].state)
        return Speaker(work, pad)

    rows = {"experts": bench.score_once("experts", lambda: expert, "experts")}
    rows["pretrained"] = bench.score_once("pretrained", lambda: lambda _: Speaker(model, pad), "pretrained")
    own = {task.name: read[task.name] for task in bench.merged}
    seen = _rows(bench, model, pad, own, expert)
    static = _static(seen, own, work)
    rows |= static.rows
    recipe = recipe.with_shared(static.best, folder.say)
    bench = replace(bench, recipe=recipe)
    with folder.phase("exclusive experts", 1) as progress:
        twin, exclusive = merged(recipe, copy.deepcopy(model), own, *static.method(recipe.shared))
        progress.advance()
    stored = getattr(torch, stored_format_of(recipe, where))
    twin.to(bench.device, stored).float().eval()  # what is scored has the precision of what is saved
    twin.router_reads = recipe.router.features
    routing, features = _router(bench, twin, pad)
    rows["routed"] = bench.score("routed", lambda _: Speaker(twin, pad, twin.route))
    rows["oracle"] = bench.score("oracle", lambda task: Speaker(twin, pad, _told(twin, task)), tasks=bench.merged)
    beside = compared(seen, {task: one.state for task, one in own.items()}, twin, features, stored)
    rows |= beside.rows
    twin.router = None  # it keeps its precision
    twin.to("cpu", stored).router = routing.router.cpu()
    _finish(bench, rows, static.best, routing, (twin, exclusive, beside), own)


def _experts(recipe: Recipe, folder: RunFolder, where: Path | str) -> dict[str, Path]:
    """Where every task's expert is, trained where it is missing."""
    from twinmerge.errors import CheckpointError
    from twinmerge.local import local_folder

    given, places = recipe.given(), {}
    for source in recipe.tasks:
        if source.name in given:
            try:
                places[source.name] = expert_folder(given[source.name]) or local_folder(given[source.name])
            except CheckpointError as error:
                raise RunError(f"experts.{source.name}: {error}") from error
            continue
        places[source.name] = cached_at(recipe, source)
        arguments = (recipe.base, source, recipe.training, recipe.trainer, recipe.seed)
        with alone_with(places[source.name], folder.board):
            train_expert(*arguments, places[source.name], folder)
    return places


def _read(
    recipe: Recipe, folder: RunFolder, where: Path | str, model: Any, places: Mapping[str, Path]
) -> dict[str, Expert]:
    from twinmerge.errors import CheckpointError
    from twinmerge.language_folder import read_language_folder

    read = {}
    for task, place in places.items():
        try:
            read[task] = read_language_folder(place, where, model, headers=base_checkpoint(recipe.base))
        except CheckpointError as error:
            raise RunError(f"experts.{task}: {error}") from error
        folder.say(f"expert {task}: {read[task].note}")
    return read


def bench_of(recipe: Recipe, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Bench:
    """What a causal merge is scored by: the tasks with as many training rows as the router reads, in tokens.

    Args:
        recipe: Of the merge.
        folder: Of the run that scores.
        tokenizer: Of the base.
        device: Where models are scored.
    """
    from recipes.merge.causal.bench import Bench
    from recipes.merge.causal.encode import Encoder

    sources = [replace(source, max_train=recipe.router.items) for source in recipe.tasks]
    tasks = [load_language(source, recipe.seed) for source in sources]
    encoder = Encoder(tokenizer, recipe.training.max_length)
    rows = {
        split: {task.name: encoder.rows(task, split) for task in tasks} for split in ("train", "validation", "test")
    }
    for task in tasks:
        for note in task.notes:
            folder.say(f"task {task.name}: {note}")
    if encoder.cut:
        folder.say(f"{encoder.cut} of all rows are longer than {recipe.training.max_length} tokens and were cut")
    return Bench(recipe, folder, tokenizer, tasks, rows, device)


def _settled(bench: Bench, speaker: Speaker) -> Bench:
    """The bench with its number format: as the recipe says, or found on what follows some validation prompts."""
    from recipes.merge.precision import NAMED, settled

    prompts = [r.tokens[: r.prompt] for task in bench.merged for r in bench.rows["validation"][task.name][:4]]
    ids, mask = speaker.batch(prompts[:16])
    chosen, why = settled(
        bench.recipe.eval_precision,
        bench.device,
        lambda batch: speaker.model(**batch, use_cache=False).logits[:, -1],
        {"input_ids": ids, "attention_mask": mask},
    )
    bench.folder.say(f"scored in {NAMED[chosen]}: {why}")
    return replace(bench, precision=chosen)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    from recipes.merge.causal.data import padding_of

    return padding_of(tokenizer)


def _rows(bench: Bench, model: Any, pad: int, experts: Mapping[str, Expert], expert: Callable[[str], Speaker]) -> Rows:
    """What merges look at beside the weights, and the experts on validation, to which scores are normalised."""
    from recipes.merge.causal.with_data import Rows

    held = bench.score_once("experts", lambda: expert, "experts", split="validation", tasks=bench.merged)
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    changed = [n for n, own in named.items() if any(not own.equal(e.state[n].to(own)) for e in experts.values())]
    return Rows(bench, model, pad, changed, held)


def _static(seen: Rows, experts: Mapping[str, Expert], work: Any) -> Looked[LanguageScores]:
    """Tune every static merge on validation, and score the best of each."""
    from recipes.merge.causal.scores import Speaker
    from recipes.merge.with_data import with_data
    from twinmerge.merging import set_parameters, shared_expert

    bench, model, states = seen.bench, seen.model, {task: one.state for task, one in experts.items()}
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    candidates = Candidates(
        named, lambda method, options: shared_expert(model, states, method, **options), bench.recipe.seed
    )

    def merged(method: str, options: Options) -> Callable[[str], Speaker]:
        return partial(_always, Speaker(set_parameters(work, candidates(merge_of(method), options)), seen.pad))

    def merge_of(method: str) -> str:
        return bench.recipe.shared.method if method == SHARED else method

    def validate(method: str, options: Options, part: int) -> float:
        decides = deciding(merge_of(method), options, seed)
        name, make = f"{method} {told(options)}".strip(), partial(merged, method, options)
        return bench.score_once(name, make, *decides, split="validation", tasks=bench.merged).normalised(seen.held)

    seed = bench.recipe.seed
    static = tune([*bench.recipe.baselines.grid(), *bench.recipe.shared.grid()], validate)
    rows = {}
    for method, (_, options) in static.items():
        if method != SHARED:
            decides = deciding(method, options, seed)
            rows[method] = bench.score_once(method, partial(merged, method, options), *decides)
    looked = with_data(seen, model, states)
    return replace(looked, best=static | looked.best, rows=rows | looked.rows)


def _always(speaker: Speaker, task: str) -> Speaker:
    return speaker


def _router(bench: Bench, twin: TwinMixin, pad: int) -> tuple[Routing, dict[str, Features]]:
    """Train the router on what the shared expert makes of the prompts, and those features; the twin has it then."""
    import torch

    from recipes.merge.causal.scores import Speaker
    from recipes.merge.evaluation import in_precision

    speaker, size = Speaker(twin, pad), bench.recipe.eval_batch_size
    read = in_precision(bench.precision, bench.device, twin.features)
    features = {}
    for split in ("train", "validation", "test"):
        prompts = [r.tokens[: r.prompt] for task in bench.merged for r in bench.rows[split][task.name]]
        ids = [i for i, task in enumerate(bench.merged) for _ in bench.rows[split][task.name]]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[Tensor] = []
        with bench.folder.phase(f"features of {split}", -(-len(order) // size)) as progress, torch.no_grad():
            for start in range(0, len(order), size):
                part = [prompts[i] for i in order[start : start + size]]
                found.append(read(*speaker.batch(part, left=False)).float().cpu())
                progress.advance()
        features[split] = (torch.cat(found)[torch.tensor(order).argsort()], torch.tensor(ids))
    routing = train_router(bench.recipe.router, features, len(bench.merged), bench.recipe.seed, bench.folder)
    twin.router = routing.router.to(bench.device)
    return routing, features


def _told(twin: TwinMixin, task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The mixture of an oracle: the expert of the true task alone."""
    import torch

    true = torch.eye(len(twin.tasks), device=twin.device)[twin.tasks.index(task)]
    return lambda ids, _: true.expand(len(ids), -1)


def _finish(
    bench: Bench,
    rows: Mapping[str, LanguageScores],
    static: Tuned,
    routing: Routing,
    made: tuple[TwinMixin, Exclusive, Beside[LanguageScores]],
    experts: Mapping[str, Expert],
) -> None:
    """Write the twin folder and the report."""
    from recipes.merge import report
    from recipes.merge.precision import NAMED
    from twinmerge.artefact import model_card, save

    recipe, folder, (twin, exclusive, beside) = bench.recipe, bench.folder, made
    main = {name: _part(row, [task.name for task in bench.merged]) for name, row in rows.items()}
    source = (folder.path / "recipe.yaml").read_text(encoding="utf-8")
    about = {"tasks": list(experts), "base": recipe.base, "base_class": type(twin).__bases__[1].__name__}
    found = report.result(main, static, routing.numbers, {})
    texts = {
        "recipe.yaml": source,
        "README.md": model_card(about, recipe.name, source),
        "result.json": json.dumps(plain_json(found), indent=2) + "\n",
    }
    sources = {task: expert.digest for task, expert in experts.items()}
    target = save(
        twin,
        folder.path / "merged",
        tokenizer=bench.tokenizer,
        card={"base": recipe.base, "residuals": exclusive.residuals, "sources": sources},
        texts=texts,
        overwrite=True,
    )
    base, places = sum(f.stat().st_size for f in target.glob("model*.safetensors")), report.places(target)
    size = {**report.sizes(base, experts, target), **beside.sizes(base, places)}
    outcome = report.result(main, static, routing.numbers, size)
    outcome |= {"twin_bytes": places, "scored_in": NAMED[bench.precision]}
    outcome["shared"] = asdict(recipe.shared)
    outcome["metrics"] = {task.name: task.metric for task in bench.tasks}
    more = {}
    if recipe.unseen:
        outcome["unseen"] = _unseen(rows, recipe.unseen)
        shown = outcome["unseen"]["rows"].items()
        more["Unseen tasks"] = [{"row": n, "normalised": r["normalised"], **r["tasks"]} for n, r in shown]
    report.finish(folder, outcome, exclusive.residuals, routing.mixture, EXPLAINED, more)


def _part(row: LanguageScores, tasks: Sequence[str]) -> LanguageScores:
    return replace(row, tasks={task: row.tasks[task] for task in tasks}, lower=row.lower & set(tasks))


def _unseen(rows: Mapping[str, LanguageScores], tasks: Sequence[str]) -> dict[str, Any]:
    """Every row on the tasks that were left out, normalised by their own experts, which nothing merged has seen."""
    parts = {name: _part(row, tasks) for name, row in rows.items() if name != "oracle"}
    held = parts["experts"]
    table = {name: {"normalised": part.normalised(held), "tasks": part.tasks} for name, part in parts.items()}
    return {"tasks": list(tasks), "rows": table}
