"""Which router names the task best: networks and the layers that they read, on the eight text tasks.

Features are masked means of the hidden states of the base; 600 inputs a task, of which three quarters train the router
and the rest are held out, and 150 validation inputs a task, on which the epoch and the temperature are chosen. Every
router is trained as the merge recipe trains it. `mass` is the mean weight that the mixture gives the true task's
expert. Ten minutes of one core; features are kept in ``runs/text8``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from benchmarks.common import Figure, write_results
from benchmarks.text8_experts import LENGTH, TASKS
from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.task_source import TaskSource
from recipes.data.text_module import MixedTextDataModule
from recipes.merge.routing import RouterTraining
from twinmerge.modeling_twin import masked_mean
from twinmerge.router import RouterModule, fit_temperature, knn_router
from twinmerge.twin_parts import Router

SEEDS = (0,)
ROUTERS = (("linear", "all"), ("linear", "last"), ("knn", "last"), ("mlp", "last"))
ROOT = Path("runs") / "text8"
Features = tuple[Tensor, Tensor]


def features(seed: int) -> dict[str, Features]:
    """Means of all layers (rows, layers, width) and task ids, of the training and the validation inputs."""
    file = ROOT / f"features-{seed}.pt"
    if not file.is_file():
        where = resolve_model("shipped:minilm")
        sources = [TaskSource(name=task, max_train=600, max_validation=150, max_test=10) for task in TASKS]
        tasks = [load_task(source, seed) for source in sources]
        data = MixedTextDataModule(tasks, where, batch_size=16, max_length=LENGTH, eval_batch_size=64)
        data.setup(None)
        model, made = AutoModel.from_pretrained(where, trust_remote_code=False).eval(), {}
        for split in ("train", "validation"):
            parts, ids = [], []
            with torch.inference_mode():
                for _, batch in data.by_length(split):
                    given = {name: value for name, value in batch.items() if name not in ("labels", "task")}
                    states = model(**given, output_hidden_states=True).hidden_states
                    parts.append(torch.cat([masked_mean(state, given["attention_mask"]) for state in states], -1))
                    ids.append(batch["task"])
            made[split] = (torch.cat(parts), torch.cat(ids))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, file)
    found: dict[str, Features] = torch.load(file, weights_only=True)
    return found


def parts_of(found: Mapping[str, Features], seed: int) -> dict[str, Features]:
    """The training inputs dealt out, of every task three quarters to train on and the rest held out."""
    x, y = found["train"]
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for task in range(len(TASKS)):
        mine = (y == task).nonzero()[:, 0]
        chosen[mine[torch.randperm(len(mine), generator=draw)[: 3 * len(mine) // 4]]] = True
    return {"train": (x[chosen], y[chosen]), "held out": (x[~chosen], y[~chosen]), "validation": found["validation"]}


def trained(kind: str, train: Features, validation: Features, seed: int) -> Router:
    """A router with the recipe's settings: the epoch of the lowest validation loss, then the temperature."""
    x, y = train
    if kind == "knn":
        router = knn_router(x, y, len(TASKS))
    else:
        torch.manual_seed(seed)
        options = RouterTraining()
        module = RouterModule(x.shape[1], len(TASKS), kind=kind, learning_rate=options.learning_rate)
        router, optimizer = module.router, module.configure_optimizers()
        router.standardise(x)
        best, kept = float("inf"), router.state_dict()
        for _ in range(options.epochs):
            router.train()
            for rows in torch.randperm(len(x)).split(options.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(router(x[rows]), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(F.cross_entropy(router.eval()(validation[0]), validation[1]))
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in router.state_dict().items()}
        router.load_state_dict(kept)
    fit_temperature(router, *validation)
    return router.eval()


def row(kind: str, reads: str, seed: int, found: Mapping[str, Features]) -> dict[str, Any]:
    """One router: its size, and how it does on validation and on what was held out."""
    width = AutoModel.from_pretrained(resolve_model("shipped:minilm"), trust_remote_code=False).config.hidden_size
    cut = {split: (x if reads == "all" else x[:, -width:], y) for split, (x, y) in found.items()}
    router = trained(kind, cut["train"], cut["validation"], seed)
    made: dict[str, Any] = {"seed": seed, "router": kind, "reads": reads}
    for split in ("validation", "held out"):
        x, y = cut[split]
        with torch.no_grad():
            weights, guess = router.weights(x), router(x).argmax(1)
        made[f"accuracy, {split}"] = float((guess == y).float().mean())
        made[f"mass, {split}"] = float(weights[torch.arange(len(y)), y].mean())
    return made | {"megabytes": sum(value.nbytes for value in router.state_dict().values()) / 1e6}


def main() -> None:
    """Train every router, and write the results."""
    rows = []
    for seed in SEEDS:
        found = parts_of(features(seed), seed)
        for kind, reads in ROUTERS:
            rows.append(row(kind, reads, seed, found))
            print(rows[-1], flush=True)
    figures: dict[str, Figure] = {}
    for kind, reads in ROUTERS:
        mine = [one for one in rows if (one["router"], one["reads"]) == (kind, reads)]
        for measure in ("accuracy", "mass"):
            for split in ("validation", "held out"):
                name = f"{measure}_{kind}_{reads}_{split.replace(' ', '_')}"
                figures[name] = sum(one[f"{measure}, {split}"] for one in mine) / len(mine)
    write_results("text8_routers", figures, {"routers": rows}, seeds=len(SEEDS))


if __name__ == "__main__":
    main()
