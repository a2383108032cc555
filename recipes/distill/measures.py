"""What networks of a distill run cost, and which classes they take for which: tables and figures of its report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from distill.scores import classes_of
from recipes.distill.classes import class_names
from recipes.distill.schema import Recipe

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer
    from torch import Tensor, nn

    from recipes.running.folder import RunFolder

__all__ = ["Measures", "class_labels", "confusion", "costs"]

ROUNDS = 3  # timed passes; the median of them is told
SHOWN = 40  # classes that a figure has room for
Numbers = dict[str, float]


class Measures(Callback):
    """Watches a test: what networks cost on its first batch, and for which classes they take its rows.

    Args:
        networks: By name, behind the common call.
        classes: Names of the classes; none where nothing is classified.
    """

    def __init__(self, networks: Mapping[str, nn.Module], classes: Sequence[str]) -> None:
        self.networks, self.classes = dict(networks), list(classes)
        self.costs: dict[str, Numbers] = {}
        self.counts = {name: torch.zeros(len(classes), len(classes)) for name in self.networks if classes}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: object, outputs: object, batch: object, batch_idx: int, *_: object
    ) -> None:
        """Look at the very rows that were tested."""
        given = cast("Mapping[str, Tensor]", batch)
        with trainer.precision_plugin.forward_context():
            self.costs = self.costs or costs(self.networks, given)
            for name in self.counts:
                self.counts[name] += confusion(self.networks[name], given, len(self.classes)).to(self.counts[name])

    def on_test_end(self, trainer: Trainer, pl_module: object) -> None:
        """Add up what all processes have seen."""
        for name, counts in self.counts.items():
            there = counts.to(trainer.strategy.root_device)
            self.counts[name] = cast("Tensor", trainer.strategy.reduce(there, reduce_op="sum")).cpu()

    def draw(self, folder: RunFolder) -> None:
        """A figure a network with the counts as CSV: rows are right classes, columns answers."""
        for name, counts in self.counts.items():
            _draw(folder, name, counts, self.classes)


def class_labels(recipe: Recipe, data: LightningDataModule) -> list[str]:
    """Names of the classes of a recipe's data, numbers where they have none; nothing for language."""
    if recipe.kind == "language":
        return []
    return list(getattr(data, "names", None) or class_names(recipe) or map(str, range(recipe.data.classes)))


def costs(networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Numbers]:
    """Parameters in millions, GFLOPs of one input (multiplications and additions) and milliseconds of one.

    The FLOPs are those of matrix products, convolutions and attention, as torch counts them. Time is that of a batch by
    its rows, the median of some passes in eval mode where the batch is; what else the machine does weighs on it.

    Args:
        networks: By name, behind the common call.
        batch: Of tensors.
    """
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    device = next(iter(batch.values())).device
    one = {name: value[:1] for name, value in batch.items()}
    found = {}
    for name, network in networks.items():
        with _still(network):
            with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
                network(one)
            times = []
            for turn in range(ROUNDS + 1):  # the first warms up
                start = time.perf_counter()
                network(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times += [time.perf_counter() - start] if turn else []
        found[name] = {
            "parameters_millions": sum(p.numel() for p in network.parameters()) / 1e6,
            "gflops_per_input": counter.get_total_flops() / 1e9,
            "ms_per_input": 1e3 * statistics.median(times) / len(next(iter(batch.values()))),
        }
    return found


def confusion(network: nn.Module, batch: Mapping[str, Tensor], classes: int) -> Tensor:
    """How often a class (row) of a batch is taken for another (column), shape (classes, classes), whole numbers.

    Args:
        network: Of images or texts.
        batch: With labels, indices or distributions, whose likeliest class counts.
        classes: How many there are.
    """
    with _still(network):
        answers = network(batch).logits.argmax(-1)
    pairs = classes * classes_of(batch["labels"]).long() + answers
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """A network in eval mode, without gradients; back in its modes afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _draw(folder: RunFolder, name: str, counts: Tensor, labels: Sequence[str]) -> None:
    """A figure with the counts as CSV: rows are right classes, columns answers."""
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, label="share of the right class's rows")
    axes.set(title=name, xlabel="answer", ylabel="right class")
    if len(labels) <= SHOWN:
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        axes.set_yticks(range(len(labels)), labels, fontsize=6)
    rows = [[label, *row] for label, row in zip(labels, counts.long().tolist(), strict=True)]
    told = "One row a right class: dark cells on the diagonal are right answers, those beside it what it is taken for."
    title = f"Right classes and answers of {name}"
    folder.figure(f"confusion_{name}", figure, rows, ["right class", *labels], title=title, told=told)
