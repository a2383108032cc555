"""Train a twin's router on the features of mixed inputs, and say how well it names their tasks."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from recipes.fields import FieldError, check_positive
from recipes.running.trainer import TrainerConfig, build_trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor

    from recipes.data.image_module import MixedImageDataModule
    from recipes.data.text_module import MixedTextDataModule
    from recipes.running.folder import RunFolder
    from twinmerge.modeling_twin import Router

Features = tuple["Tensor", "Tensor"]  # (rows, width) and task ids (rows,)


@dataclass
class RouterTraining:
    """The router: which network, on how much data.

    Attributes:
        kind: mlp (the paper's network), linear, or knn (training-free, a deviation); auto is linear for encoders and
            mlp for causal models.
        features: Hidden states whose masked means the router reads: last (the paper's), or all layers side by side (a
            deviation that costs no further forward). For causal models also generated: the state of the last of up to
            16 tokens that the shared expert adds to a prompt, as the paper's code has it. Auto is all for a linear
            router of an encoder, since words and style stand in the lower layers, and last otherwise.
        items: Training inputs a task; only their task is used, not their labels.
        epochs: Passes over them; the epoch with the lowest validation loss is kept.
        batch_size: Features a step.
        learning_rate: Of AdamW.
        top_k: Weights kept per input, 0 keeps all as in the paper.
        temperature: Of the softmax; 0 fits it on validation.
    """

    kind: Literal["auto", "mlp", "linear", "knn"] = "auto"
    features: Literal["auto", "last", "all", "generated"] = "auto"
    items: int = 3000
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 5e-4
    top_k: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Refuse counts and rates that are not positive."""
        for key in ("items", "epochs", "batch_size", "learning_rate"):
            check_positive(getattr(self, key), key)
        for key in ("top_k", "temperature"):
            if getattr(self, key) < 0:
                raise FieldError(key, f"expected 0 or more, got {getattr(self, key)}")

    def settled(self, causal: bool) -> RouterTraining:
        """The router of an encoder or a causal model, with what was left to `auto` in place."""
        kind = ("mlp" if causal else "linear") if self.kind == "auto" else self.kind
        reads: Literal["last", "all"] = "all" if kind == "linear" and not causal else "last"
        return replace(self, kind=kind, features=reads if self.features == "auto" else self.features)


@dataclass(frozen=True)
class Routing:
    """A trained router and what it does.

    Attributes:
        router: The router.
        numbers: Its temperature and its accuracy in naming the task, by split; `accuracy` is that on test.
        mixture: Mean mixture it gives each task's test inputs (tasks x experts).
    """

    router: Router
    numbers: dict[str, float]
    mixture: list[list[float]]


def train_router(
    options: RouterTraining, features: Mapping[str, Features], tasks: int, seed: int, folder: RunFolder
) -> Routing:
    """Train on training features, keep the best validation epoch, fit the temperature on validation; test only reports.

    Args:
        options: Which network, and how it is trained.
        features: `train`, `validation` and `test` -> features of the shared expert and task ids.
        tasks: Number of experts.
        seed: Of initial values and order.
        folder: Run folder, for progress, metrics and checkpoints.
    """
    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from recipes.running.callbacks import BestWeights
    from recipes.running.resume import ResumableLoader
    from twinmerge.router import RouterModule, fit_temperature, knn_router

    lightning.seed_everything(seed, workers=True, verbose=False)
    if options.kind == "knn":
        router = knn_router(*features["train"], tasks)
    else:
        width = features["train"][0].shape[1]
        kind: Literal["mlp", "linear"] = "linear" if options.kind == "linear" else "mlp"
        module = RouterModule(width, tasks, kind=kind, learning_rate=options.learning_rate)
        module.router.standardise(features["train"][0])
        best = BestWeights("validation/loss")
        config = TrainerConfig(max_epochs=options.epochs, accelerator="cpu", devices=1, enable_model_summary=False)
        sets = [TensorDataset(*features[split]) for split in ("train", "validation")]
        pairs = ResumableLoader(sets[0], options.batch_size, seed=seed), DataLoader(sets[1], options.batch_size)
        trainer = build_trainer(config, folder, "router", callbacks=[best])
        trainer.fit(module, *pairs, ckpt_path=folder.checkpoint_of("router"))
        module.load_state_dict(best.weights)
        router = module.router.eval()
    router.top_k = options.top_k
    router.temperature = options.temperature or fit_temperature(router, *features["validation"])
    numbers = {"temperature": router.temperature}
    with torch.no_grad():
        for split in ("validation", "test"):
            x, y = features[split]
            numbers[f"accuracy_{split}"] = float((router(x).argmax(-1) == y).float().mean())
        weights = router.weights(x)
    mixture = [weights[y == task].mean(0).tolist() for task in range(tasks)]
    numbers["accuracy"] = numbers["accuracy_test"]
    folder.say(
        f"router: names the task of {numbers['accuracy']:.1%} of the test inputs, temperature {router.temperature:.2f}"
    )
    return Routing(router, numbers, mixture)


def task_features(
    encode: Callable[..., Tensor],
    data: MixedTextDataModule | MixedImageDataModule,
    split: str,
    folder: RunFolder,
    what: str = "features",
    device: torch.device | str = "cpu",
) -> Features:
    """Features, computed on `device`, and task ids of a split in the order of its rows, all tasks one by one."""
    import torch

    parts: list[Tensor] = []
    order: list[int] = []
    ids: list[Tensor] = []
    batches: list[tuple[list[int], dict[str, Tensor]]] = list(data.by_length(split))
    with folder.phase(f"{what} of {split}", len(batches)) as progress, torch.no_grad():
        for positions, batch in batches:
            inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "task")}
            parts.append(encode(**inputs).cpu())
            ids.append(batch["task"])
            order += positions
            progress.advance()
    back = torch.tensor(order).argsort()
    return torch.cat(parts)[back], torch.cat(ids)[back]


def batch_features(
    encode: Callable[..., Tensor],
    batches: Sequence[Mapping[str, Tensor]],
    split: str,
    folder: RunFolder,
    device: torch.device | str = "cpu",
) -> tuple[list[Tensor], Tensor, float]:
    """Features of batches that are scored later with them: batch by batch, all task ids, and milliseconds an input."""
    import torch

    parts: list[Tensor] = []
    spent = 0.0
    with folder.phase(f"features of {split}", len(batches)) as progress, torch.no_grad():
        for batch in batches:
            start = time.perf_counter()
            inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "task")}
            parts.append(encode(**inputs).cpu())
            spent += time.perf_counter() - start
            progress.advance()
    ids = torch.cat([batch["task"] for batch in batches])
    return parts, ids, 1000 * spent / len(ids)
