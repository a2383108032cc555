"""Distil the routed twin of a merge of causal language models into one dense model.

The student learns, token by token, what the twin says after the prompts of all tasks, shuffled together. The twin
reads whole texts under the mixture of their prompts, and the losses compare the tokens of completions. Scores are those
of the merge's table: the same test rows, metrics, batches and number format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

import twinmerge
from distill.errors import DistillError
from distill.language import LanguageNetwork, next_tokens
from distill.terms import Outputs
from recipes.data.language_rows import load_language
from recipes.data.models import resolve_model
from recipes.distill.data import dealt, same_words
from recipes.distill.many_tasks import report, row_of
from recipes.distill.merge_run import MergeRun, merge_run
from recipes.distill.networks import told, unloadable
from recipes.distill.prompt_data import PromptData
from recipes.distill.schema import Values
from recipes.distill.shorter import KEYS, kept_layers, shorter
from recipes.distill.training import figures, fit
from recipes.errors import RunError
from recipes.running.quiet import hush_libraries
from twinmerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from distill.batches import Batch
    from recipes.data.language_rows import LanguageTask
    from recipes.distill.schema import Network, Recipe
    from recipes.merge.causal.scores import Speaker
    from recipes.merge.causal.table import LanguageScores
    from recipes.merge.precision import Format
    from recipes.running.folder import RunFolder
    from twinmerge.twin_mixin import TwinMixin

__all__ = ["PromptRouted", "run_prompts"]


class PromptRouted(LanguageNetwork):
    """The twin of causal models, whose mixture for a text comes from its prompt alone.

    Args:
        model: The twin; a batch says by `prompt`, whole numbers (rows,), how many first tokens of each text that is.
    """

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """Logits of every token of `next_tokens`."""
        twin = cast("TwinMixin", self.model)
        ids, seen, prompt = batch["input_ids"], batch["attention_mask"], batch["prompt"]
        longest = int(prompt.max())
        places = torch.arange(longest, device=ids.device)
        with torch.no_grad():
            weights = twin.route(ids[:, :longest], seen[:, :longest] * (places < prompt[:, None]))
        logits = twin(input_ids=ids, attention_mask=seen, router_weights=weights, use_cache=False).logits
        return Outputs(logits[:, :-1][next_tokens(batch)[1]])


def run_prompts(recipe: Recipe, folder: RunFolder) -> None:
    """Teacher, students, table, report."""
    import lightning
    from transformers import AutoTokenizer

    from distill.module import DistillModule
    from recipes.distill.measures import Measures

    hush_libraries()
    run = merge_run(recipe.data.path)
    twin = Path(recipe.voices[0].model).expanduser()
    tokenizer = AutoTokenizer.from_pretrained(twin, trust_remote_code=False)
    tasks = _tasks(recipe, run, folder)
    with told(RunError):
        if recipe.student.model:
            same_words([str(twin), str(resolve_model(recipe.student.model))], special=False)
        taught = _teacher(twin)
        terms = {name: recipe.terms(name) for name in recipe.methods}
        students: dict[str, LanguageNetwork] = {}
        for name in terms:  # all from the same initial weights
            lightning.seed_everything(recipe.seed, workers=True, verbose=False)
            students[name] = LanguageNetwork(_student(recipe.student, twin))
        module = DistillModule(dict(students), taught, terms, task="language", **recipe.arguments())
        data = dealt(PromptData, recipe.training)(
            tasks,
            tokenizer,
            batch_size=recipe.training.batch_size,
            max_length=run.recipe.training.max_length,
            seed=recipe.seed,
        )
        trainer = fit(recipe, module, data, folder, "students", recipe.training)
        networks = {name: cast("LanguageNetwork", module.students[name]) for name in terms}
        measures = Measures({"teacher": taught.to(trainer.strategy.root_device), **networks}, ())
        trainer.callbacks.append(measures)  # type: ignore[attr-defined]  # Lightning makes the list later
        tested = trainer.test(module, datamodule=data, verbose=False)[0]
    if not trainer.is_global_zero:
        return
    scores = _scores(recipe, run, {"teacher": taught, **networks}, tokenizer, folder)
    agreed = _agreed(data, {"teacher": taught, **networks}, tasks)
    rows = {name: row_of(score, scores["teacher"], agreed.get(name, {})) for name, score in scores.items()}
    rows["teacher"]["bytes"] = sum(file.stat().st_size for file in twin.rglob("*.safetensors"))
    for name, made in networks.items():
        found = figures(tested, name, len(networks))
        rows[name] |= {key: value for key, value in found.items() if key in ("loss", "kl")}
        target = folder.path / "students" / name / "model"
        cast("PreTrainedModel", made.model.to("cpu").eval()).save_pretrained(target)
        tokenizer.save_pretrained(target)
        rows[name]["bytes"] = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
    report(run, rows, folder, measures.costs, list(module.doubts.values()))


def _tasks(recipe: Recipe, run: MergeRun, folder: RunFolder) -> list[LanguageTask]:
    """The merged tasks, with the merge's own validation and test rows."""
    rows, merge = recipe.data.rows, run.recipe
    sources = [replace(source, max_train=rows) if rows else source for source in merge.tasks]
    tasks = [load_language(source, merge.seed) for source in sources if source.name not in merge.unseen]
    for task in tasks:
        for note in task.notes:
            folder.say(f"task {task.name}: {note}")
    return tasks


def _teacher(where: Path) -> PromptRouted:
    try:
        return PromptRouted(twinmerge.load(where, dtype=torch.float32))
    except CheckpointError as error:
        raise DistillError(f"the twin {where} cannot teach: {error}") from error


def _student(config: Network, twin: Path) -> PreTrainedModel:
    """A plain causal model: the one that is named or the twin's shared expert, with all of its layers or some."""
    from transformers import AutoModelForCausalLM

    options: Values = {key: value for key, value in config.options.items() if key not in KEYS}
    options |= {"dtype": torch.float32}
    try:
        if config.model:
            where = resolve_model(config.model)
            made = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=False, **options)
            model = cast("PreTrainedModel", made)
        else:
            model = twinmerge.load(twin, "shared", check=False, **options)
    except (CheckpointError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise unloadable(config, twin, error) from error
    vars(model.config).pop("auto_map", None)  # of the twin's folder, whose code it does not run
    kept = kept_layers(getattr(model.config, "num_hidden_layers", None), config.options)
    return model if kept is None else shorter(model, kept)


def _scores(
    recipe: Recipe,
    run: MergeRun,
    networks: Mapping[str, LanguageNetwork],
    tokenizer: PreTrainedTokenizerBase,
    folder: RunFolder,
) -> dict[str, LanguageScores]:
    """Every network on the test rows of the merged tasks, as the merge scores its own rows."""
    from recipes.merge.causal.data import padding_of
    from recipes.merge.causal.run import bench_of
    from recipes.merge.causal.scores import Speaker
    from recipes.merge.evaluation import evaluation_device
    from recipes.merge.precision import NAMED

    device = evaluation_device(recipe.trainer.accelerator)
    precision: Format = next((kind for kind, name in NAMED.items() if name == run.scored_in), "32")
    bench = replace(bench_of(run.recipe, folder, tokenizer, device), precision=precision)
    found = {}
    for name, network in networks.items():
        twin = cast("TwinMixin", network.to(device).eval().model)
        speaker = Speaker(twin, padding_of(tokenizer), twin.route if name == "teacher" else None)
        found[name] = bench.score(name, partial(_always, speaker), tasks=bench.merged)
    return found


def _always(speaker: Speaker, task: str) -> Speaker:
    return speaker


@torch.no_grad()
def _agreed(
    data: PromptData, networks: Mapping[str, LanguageNetwork], tasks: Sequence[LanguageTask]
) -> dict[str, dict[str, float]]:
    """By task, the share of the test tokens of completions where student and teacher have the same likeliest one."""
    device = next(networks["teacher"].parameters()).device
    same: dict[str, list[Tensor]] = {name: [] for name in networks if name != "teacher"}
    number: list[Tensor] = []
    for given in data.test_dataloader():
        batch = {name: value.to(device) for name, value in cast("Batch", given).items()}
        number.append(batch["task"][next_tokens(batch)[1].nonzero()[:, 0]].cpu())
        said = networks["teacher"](batch).logits.argmax(-1)
        for name, found in same.items():
            found.append((networks[name](batch).logits.argmax(-1) == said).float().cpu())
    of = torch.cat(number)
    made = {}
    for name, found in same.items():
        alike = torch.cat(found)
        made[name] = {task.name: float(alike[of == i].mean()) for i, task in enumerate(tasks)}
        made[name][""] = float(alike.mean())
    return made
