"""The number format of the forwards that score and route: as asked, or found by a measured trial on one batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from recipes.merge.evaluation import in_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Format = Literal["32", "bf16"]
NAMED: dict[Format, str] = {"32": "32 bits", "bf16": "bfloat16"}
ROUNDS = 3  # of the whole batch in each format, one after the other
WORTH = 0.8  # bf16 is taken when it needs at most this share of the time
HOPELESS = 2.0  # and given up on a few rows when it needs this many times as much, as where it is emulated
SLOW = "bf16 is not faster on this processor"
NEAR = 0.01  # relative difference of two numbers that agree


def settled(
    asked: Literal["auto", "32", "bf16"],
    device: torch.device,
    answer: Callable[[dict[str, Tensor]], Tensor],
    batch: Mapping[str, Tensor],
) -> tuple[Format, str]:
    """The number format of a run, and why.

    Args:
        asked: As in the recipe; `auto` takes bf16 when its answers on the batch are those of 32 bits and it is faster.
        device: Where the answers are computed.
        answer: Inputs to logits (rows, outputs), minus infinity where a row has no such output.
        batch: A batch of inputs, each with the rows in its first dimension.

    Returns:
        `32` or `bf16`, and the end of a sentence that says why.
    """
    if asked != "auto":
        return asked, "as the recipe says"
    few = {name: value[:2].to(device) for name, value in batch.items()}
    timed(answer, few, "32", device)  # warm
    timed(answer, few, "bf16", device)
    if timed(answer, few, "bf16", device)[1] > HOPELESS * timed(answer, few, "32", device)[1]:
        return "32", SLOW
    whole = {name: value.to(device) for name, value in batch.items()}
    rounds = [[timed(answer, whole, kind, device) for kind in ("32", "bf16")] for _ in range(ROUNDS)]
    if not agree(rounds[0][0][0], rounds[0][1][0]):
        return "32", "bf16 gives other answers on a trial batch"
    plain, half = (min(pair[place][1] for pair in rounds) for place in (0, 1))
    if half > WORTH * plain:
        return "32", SLOW
    return "bf16", "its answers on a trial batch are those of 32 bits, and it is faster on this processor"


def timed(
    answer: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], kind: str, device: torch.device
) -> tuple[Tensor, float]:
    """Logits in a number format, and the seconds that they took: of the processor's work, whatever else it does."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    with torch.no_grad():
        logits = in_precision(kind, device, answer)(batch).float().cpu()
    return logits, clock() - start


def agree(plain: Tensor, half: Tensor) -> bool:
    """Whether two forwards give the same answers: the same largest output, or nearly the same number.

    Args:
        plain: Logits (rows, outputs), minus infinity where a row has no such output.
        half: The same of the other forward.
    """
    alone = plain.isfinite().sum(1) == 1
    near = (plain - half)[:, 0].abs() <= NEAR * (1 + plain[:, 0].abs())
    same = plain.argmax(1) == half.argmax(1)
    return bool(torch.where(alone, near, same).all())
