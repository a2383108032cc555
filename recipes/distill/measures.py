"""What networks of a distill run cost, and which classes they take for which: tables and figures of its report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from recipes.distill.classes import class_names
from recipes.distill.schema import Recipe

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer
    from torch import Tensor, nn

    from recipes.running.folder import RunFolder

__all__ = ["confusion", "costs", "measure"]

ROUNDS = 5  # timed passes; the median of them is told
SHOWN = 40  # classes that a figure has room for
Numbers = dict[str, float]
Rows = Mapping[str, object]


def measure(
    recipe: Recipe, folder: RunFolder, networks: Mapping[str, nn.Module], trainer: Trainer
) -> dict[str, Numbers]:
    """What networks cost; of classifiers the confusion of their classes too, as figures of the report.

    Args:
        recipe: The recipe.
        folder: Of the run.
        networks: By name, behind the common call.
        trainer: That has tested them: its data, its device and its limit of test batches hold here too.

    Returns:
        Of `costs`, by name.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it where it was given one
    device = trainer.strategy.root_device
    found = costs(networks, next(iter(data.test_dataloader())), device)
    if recipe.kind == "language":
        return found
    labels = list(getattr(data, "names", None) or class_names(recipe) or map(str, range(recipe.data.classes)))
    limit = int(sum(trainer.num_test_batches) * trainer.world_size)
    for name, network in networks.items():
        counts = confusion(network, islice(data.test_dataloader(), limit), len(labels), device)
        _draw(folder, name, counts, labels)
    return found


def costs(networks: Mapping[str, nn.Module], given: Rows, device: torch.device) -> dict[str, Numbers]:
    """Parameters in millions, GFLOPs of one input (multiplications and additions) and milliseconds of one.

    The FLOPs are those of matrix products, convolutions and attention, as torch counts them. Time is that of a batch by
    its rows, the median of some passes in eval mode on the device; what else the machine does weighs on it.

    Args:
        networks: By name, behind the common call.
        given: A batch.
        device: Where to measure.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch = _moved(given, device)
    rows = len(next(iter(batch.values())))
    one = {name: value[:1] for name, value in batch.items()}
    found = {}
    for name, network in networks.items():
        with _still(network, device):
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
            "ms_per_input": 1e3 * statistics.median(times) / rows,
        }
    return found


def confusion(network: nn.Module, batches: Iterable[Rows], classes: int, device: torch.device) -> Tensor:
    """How often a class (row) is taken for another (column), shape (classes, classes), whole numbers.

    Args:
        network: Of images or texts.
        batches: With labels, indices or distributions, whose likeliest class counts.
        classes: How many there are.
        device: Where to compute.
    """
    import torch

    from distill.scores import classes_of

    counts = torch.zeros(classes, classes, dtype=torch.long)
    with _still(network, device):
        for given in batches:
            batch = _moved(given, device)
            answers = network(batch).logits.argmax(-1).cpu()
            truth = classes_of(batch["labels"]).cpu().long()
            counts += torch.bincount(classes * truth + answers, minlength=classes**2).view(classes, classes)
    return counts


def _moved(given: Rows, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch, on a device."""
    import torch

    return {name: value.to(device) for name, value in given.items() if isinstance(value, torch.Tensor)}


@contextmanager
def _still(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A network in eval mode on a device, without gradients; back in its modes afterwards."""
    import torch

    modes = [(module, module.training) for module in network.modules()]
    network.eval().to(device)
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
    rows = [[label, *row] for label, row in zip(labels, counts.tolist(), strict=True)]
    folder.figure(f"confusion_{name}", figure, rows, ["right class", *labels])
