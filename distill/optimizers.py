"""An optimizer a student, behind one: nothing that an optimizer measures over its parameters spans two students."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.errors import DistillError
from distill.regimes import Regime

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from timm.utils import ModelEmaV3


class SeparateOptimizers(Optimizer):
    """Several optimizers that step together, each over its own parameters alone.

    LAMB limits the gradient by its norm over all parameter groups, and D-Adaptation and Prodigy find one rate for all:
    in a common optimizer one student would change how far another goes. Schedules, clipping and checkpoints see the
    groups of all, in the order of the parts.

    Args:
        parts: The optimizers; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Compute the loss once, where a closure does, and update every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, object]:
        """What one optimizer over all groups would save."""
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Give every part its own."""
        super().load_state_dict(state_dict)
        first = 0
        for part in self.parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[first : first + count]
            first += count
            part.state.clear()
            for group in part.param_groups:
                part.state.update({p: self.state[p] for p in group["params"] if p in self.state})


def check_optimizer(regime: Regime) -> None:
    """Try the optimizer of a regime on one parameter.

    Raises:
        DistillError: If timm has none of this name, or it does not take the regime's values.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    values = (regime.learning_rate, regime.weight_decay, regime.momentum)
    try:
        create_optimizer_v2([nn.Parameter(torch.zeros(1))], regime.optimizer, *values)
    except Exception as error:  # what timm and the optimizers of others raise
        near = difflib.get_close_matches(regime.optimizer, list_optimizers(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "timm.optim.list_optimizers() names them"
        reason = " ".join(str(error).split())[:100]
        raise DistillError(f"optimizer {regime.optimizer!r} cannot be made ({reason}); {hint}") from error


def checked_factors(factors: Mapping[str, float] | None, students: Iterable[str]) -> dict[str, float]:
    """What the learning rate of every student is multiplied with.

    Args:
        factors: By student; 1 where one is not named.
        students: Their names.

    Raises:
        DistillError: For a factor of a student that there is not.

    >>> checked_factors({"kd": 2.0}, ["ce", "kd"])
    {'ce': 1.0, 'kd': 2.0}
    """
    names, given = list(students), factors or {}
    if unknown := [name for name in given if name not in names]:
        raise DistillError(f"rate_factors names {unknown[0]!r}, but the students are {', '.join(names)}; name these")
    return {name: given.get(name, 1.0) for name in names}


def make_optimizer(regime: Regime, students: Mapping[str, nn.Module], factors: Mapping[str, float]) -> Optimizer:
    """The optimizer of a regime, one a student.

    Args:
        regime: Names it, its rates and what decays.
        students: By name, all that is trained with a student: its network as `network`, its losses as `losses`.
        factors: By student, what the regime's learning rate is multiplied with.
    """
    own = {name: replace(regime, learning_rate=factors[name] * regime.learning_rate) for name in students}
    parts = [_single(own[name], trained) for name, trained in students.items()]
    return parts[0] if len(parts) == 1 else SeparateOptimizers(parts)


def _single(regime: Regime, trained: nn.Module) -> Optimizer:
    from timm.optim import create_optimizer_v2, param_groups_weight_decay

    if regime.decay == "matrices":
        model = getattr(trained.network, "model", None)
        spared = [f"network.model.{name}" for name in getattr(model, "no_weight_decay", set)()]
        groups: Any = param_groups_weight_decay(trained, regime.weight_decay, no_weight_decay_list=spared)
    else:
        groups = [p for p in trained.parameters() if p.requires_grad]
    made: Optimizer = create_optimizer_v2(
        groups, regime.optimizer, regime.learning_rate, regime.weight_decay, regime.momentum
    )
    return made


def averaged(students: nn.ModuleDict, regime: Regime) -> ModelEmaV3 | None:
    """The running average of the students' weights, where the regime has one."""
    if not regime.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(students, decay=regime.ema)


def make_schedule(regime: Regime, optimizer: Optimizer, length: int) -> Scheduler:
    """Timm's schedule of a regime, its shape kept where a run has another length.

    Args:
        regime: Names it.
        optimizer: Whose rates it sets.
        length: Epochs or updates of this run, as `schedule_on` counts.
    """
    from timm.scheduler import create_scheduler_v2

    scale = length / regime.epochs
    schedule: Scheduler = create_scheduler_v2(
        optimizer,
        regime.schedule,
        num_epochs=length,
        decay_milestones=[round(m * scale) for m in regime.milestones],
        decay_rate=regime.decay_rate,
        min_lr=regime.min_lr,
        warmup_lr=regime.warmup_lr,
        warmup_epochs=round(regime.warmup_epochs * scale),
        step_on_epochs=regime.schedule_on == "epoch",
        updates_per_epoch=1,
    )[0]
    return schedule


def seed_of(*place: int) -> int:
    """A seed for torch's generators that a place names.

    Args:
        place: Numbers of the place, such as seed, rank, epoch and batch.
    """
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def own_stream(device: torch.device, *place: int) -> Iterator[None]:
    """Draw from a stream that a place names, and leave torch's generators as they were.

    Dropout and stochastic depth draw from the device's generator: without this, what a student drops would depend on
    how many students went before it.

    Args:
        device: Whose generator draws.
        place: Numbers of the place, such as seed, rank, epoch and batch.
    """
    seed = seed_of(*place)
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        torch.default_generator.manual_seed(seed)
        if devices:
            getattr(torch, device.type).manual_seed(seed)
        yield
