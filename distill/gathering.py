"""The rows of all processes in the order of the global batch, with gradients that flow back to their owners."""

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from distill.errors import DistillError


def world() -> tuple[int, int]:
    """Number of processes and rank of this one; (1, 0) outside of a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def own_batch(together: int, accumulated: int = 1) -> int:
    """Rows of a batch of this process, so that all processes' batches of an update hold a given number.

    Args:
        together: Rows of an update.
        accumulated: Batches that a process accumulates for it.

    Raises:
        DistillError: If the rows do not divide.

    Example:
        >>> own_batch(64, accumulated=4)
        16
    """
    parts = world()[0] * accumulated
    if together % parts:
        raise DistillError(
            f"a batch of {together} does not divide into {parts} parts (processes times accumulated batches); change "
            "batch_size or the devices"
        )
    return together // parts


class Window:
    """The batches of one update, weighted so that the update is that of all their rows in one batch on one process.

    A mean over a batch's own rows weighs every batch and process alike, however many rows they hold: right for equal
    batches, wrong for texts that differ in tokens and for an epoch's last, shorter window. All processes call it alike.
    """

    def __init__(self) -> None:
        self._first: Tensor | int | None = None
        self._sum: Tensor | int = 0

    def weight(self, rows: int, batches: int, device: torch.device, *, even: bool) -> Tensor | float:
        """What to multiply a batch's mean loss with.

        Args:
            rows: Rows here, which the mean is over.
            batches: Batches that the Trainer accumulates, by whose number it divides.
            device: Where the processes talk.
            even: Whether all processes and batches hold as many rows, but for the shape of the last window.
        """
        if even and batches == 1:
            return 1.0
        size, _ = world()
        total: Tensor | int = rows
        if size > 1:
            total = torch.tensor(float(rows), device=device)
            distributed.all_reduce(total)
        if self._first is None:
            self._first = total.clamp(min=1.0) if isinstance(total, Tensor) else max(total, 1)
        self._sum = self._sum + total
        weight: Tensor | float = rows * size / self._first
        return weight

    def close(self, batches: int) -> Tensor | float:
        """What to multiply the gradient with before the update; the next window begins."""
        first, rows = self._first, self._sum
        self._first, self._sum = None, 0
        if first is None or batches == 1:
            return 1.0
        factor: Tensor | float = batches * first / (rows.clamp(min=1.0) if isinstance(rows, Tensor) else max(rows, 1))
        return factor


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes, as one process with the global batch would hold them.

    Row i of rank r becomes row i W + r, the inverse of how `distill.data.ViewOrder` deals out a batch. A loss of these
    rows that every process computes has, after DDP's mean over processes, the gradient of the one process: backward
    sums what all of them ask of a row.

    Args:
        rows: Shape (batch, ...), the same on every process.

    Returns:
        Shape (W batch, ...); the rows themselves outside of a process group.

    Example:
        >>> gather(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if world()[0] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the rows of all processes, on any device; torch's `SyncBatchNorm` needs GPUs.

    Mean and variance come from the processes' own in two rounds of one number a channel. All must hold as many rows.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of shape (batch, channels, height, width), each channel standardised, scaled and shifted."""
        if not self.training or world()[0] == 1:
            return super().forward(maps)
        axes, rows = (0, 2, 3), maps.numel() // maps.shape[1] * world()[0]
        mean = gather(maps.mean(axes)[None]).mean(0)
        centred = maps - mean[:, None, None]
        variance = gather(centred.square().mean(axes)[None]).mean(0)
        with torch.no_grad():
            momentum = cast(float, self.momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(variance * rows / (rows - 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        size, ctx.rank = world()
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        # Summed in place of a copy only where autograd owns the tensor alone, which it does not promise.
        total = total.clone()
        distributed.all_reduce(total)
        return total[ctx.rank :: world()[0]]
