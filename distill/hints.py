"""Terms with parameters of their own: FitNet by level or module, CC, CRD, ReviewKD and the curriculum temperature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import functional as L
from distill.errors import DistillError
from distill.gathering import GlobalBatchNorm2d, gather, world
from distill.layers import asked
from distill.terms import LogitTerm, Outputs, Term, features_of
from gapbridge.arguments import Count, NotNegative, Positive, ProperShare, Seed, Whole


class FitNetHint(Term):
    """FitNet: a 1x1 convolution maps one of the student's feature maps to the teacher's, see `functional.hint`.

    Args:
        student_channels: Channels of the student's maps, from fine to coarse.
        teacher_channels: Of the teacher's.
        level: Which map is compared.

    Reference:
        Romero et al. (2015), arXiv 1412.6550.
    """

    name = "fitnet"
    needs = "maps"

    def __init__(
        self, student_channels: tuple[Count, ...], teacher_channels: tuple[Count, ...], level: Whole = 2
    ) -> None:
        super().__init__()
        if not 0 <= level < min(len(student_channels), len(teacher_channels)):
            raise DistillError(
                f"level is {level}, but the networks share {min(len(student_channels), len(teacher_channels))} maps; "
                "count from 0"
            )
        self.level = level
        self.regressor = nn.Conv2d(student_channels[level], teacher_channels[level], 1)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean squared error on the teacher's grid."""
        target = teacher.maps[self.level].detach().float()
        mapped = self.regressor(student.maps[self.level].float())
        return L.hint(_on_grid(mapped, target), target)


class LayerHint(Term):
    """FitNet between any two modules: a linear map of the student's channels, then `functional.hint`.

    Maps (batch, channels, rows, columns) are compared on the teacher's grid, sequences (batch, places, width) place by
    place, for texts without padding; what has two forms, as a CNN's map and a transformer's sequence, by the mean over
    places.

    Args:
        student_layers: From the name of one of the student's modules to the width of what it gives.
        teacher_layers: Likewise of the teacher.
        student: Name of the student's module, as `model.named_modules()` has it.
        teacher: Name of the teacher's module.

    Reference:
        Romero et al. (2015), arXiv 1412.6550, section 2.2.
    """

    name = "hint"
    needs = "layers"

    def __init__(
        self, student_layers: Callable[[str], int], teacher_layers: Callable[[str], int], student: str, teacher: str
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.asked_layers = asked([student, teacher])
        self.regressor = nn.Linear(student_layers(student), teacher_layers(teacher))

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean squared error.

        Raises:
            DistillError: If sequences have different lengths, or a cache stands in for the teacher.
        """
        if self.teacher not in teacher.layers:
            raise DistillError(
                f"the hint compares {self.teacher!r} of the teacher, of whom a cache keeps logits only; ask it anew"
            )
        mine, target = student.layers[self.student].float(), teacher.layers[self.teacher].detach().float()
        if mine.ndim == 4:
            mine = mine.movedim(1, -1)
        if mine.ndim != target.ndim:
            mine = mine.flatten(1, -2).mean(1) if mine.ndim > 2 else mine
            target = target.mean((2, 3)) if target.ndim == 4 else target.mean(1) if target.ndim == 3 else target
            return L.hint(self.regressor(mine), target)
        mapped = self.regressor(mine)
        if target.ndim == 4:
            return L.hint(_on_grid(mapped.movedim(-1, 1), target), target)
        if mapped.shape != target.shape:
            raise DistillError(
                f"the hint compares {tuple(mine.shape)} of {self.student!r} with {tuple(target.shape)} of "
                f"{self.teacher!r}, of other lengths; name modules whose outputs have as many places"
            )
        return L.hint(mapped, target)


class CorrelationHint(Term):
    """Correlation congruence: a linear map of each network's features, then `functional.correlation`.

    Args:
        student_width: Width of the student's pooled features.
        teacher_width: Of the teacher's.
        width: Of the common space.
        factor: The paper's factor of the loss.

    Reference:
        Peng et al. (2019), arXiv 1904.01802.
    """

    name = "cc"
    needs = "features"

    def __init__(
        self, student_width: Count, teacher_width: Count, width: Count = 128, factor: NotNegative = 0.02
    ) -> None:
        super().__init__()
        self.of_student = nn.Linear(student_width, width)
        self.of_teacher = nn.Linear(teacher_width, width)
        self.factor = factor

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Products of neighbouring errors over the global batch."""
        s = self.of_student(features_of(student).float())
        t = self.of_teacher(features_of(teacher).detach().float())
        return L.correlation(gather(s), gather(t), weight=self.factor)


def check_classes(item_labels: Tensor) -> None:
    """Refuse what are no classes of items.

    Raises:
        DistillError: If there are none, or they are no whole numbers of at least 0 in one row.
    """
    whole = item_labels.ndim == 1 and not item_labels.is_floating_point() and item_labels.dtype != torch.bool
    if not whole or not len(item_labels) or int(item_labels.min()) < 0:
        least = f" from {float(item_labels.min()):g}" if item_labels.numel() else ""
        raise DistillError(
            f"item_labels is {item_labels.dtype} {tuple(item_labels.shape)}{least}, but it must be the class of every "
            "item, whole numbers of at least 0, shape (items,)"
        )


class CRDHint(Term):
    """Contrastive distillation with a memory of both networks' embeddings, see `functional.crd`.

    Each row's embedding is told, among the other network's remembered embeddings, its own from `negatives` of items of
    other classes. These are drawn without lists of other classes: items lie sorted by class, so a uniform number below
    the count of the others is shifted over the row's own class. All processes draw and remember the same.

    Args:
        student_width: Width of the student's pooled features.
        teacher_width: Of the teacher's.
        item_labels: Class of every item of the training set, shape (items,).
        width: Of the embeddings.
        negatives: Drawn for every row.
        temperature: Of the scores.
        momentum: Share of the old entry that the memory keeps.
        seed: Of the memory's first content and of the draws.

    Reference:
        Tian, Krishnan and Isola (2020), arXiv 1910.10699, section 3.1; the memory as in its published code.
    """

    name = "crd"
    needs = "features"
    order: Tensor
    starts: Tensor
    counts: Tensor
    item_labels: Tensor
    memory: Tensor
    log_z: Tensor
    step: Tensor

    def __init__(
        self,
        student_width: Count,
        teacher_width: Count,
        item_labels: Tensor,
        width: Count = 128,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: ProperShare = 0.5,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        check_classes(item_labels)
        counts = item_labels.bincount()
        if int(counts.max()) == len(item_labels):
            raise DistillError(
                "all items are of one class, so there are no negatives of other classes; use another term"
            )
        self.of_student = nn.Linear(student_width, width)
        self.of_teacher = nn.Linear(teacher_width, width)
        self.negatives, self.temperature, self.momentum, self.seed = negatives, temperature, momentum, seed
        for name, value in (
            ("item_labels", item_labels),
            ("order", item_labels.argsort(stable=True)),
            ("counts", counts),
            ("starts", counts.cumsum(0) - counts),
        ):
            self.register_buffer(name, value, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        memory = torch.randn(2, len(item_labels), width, generator=generator)
        self.register_buffer("memory", F.normalize(memory, dim=-1))  # [0] of the student, [1] of the teacher
        self.register_buffer("log_z", torch.full((2,), math.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Student against the teacher's memory plus teacher against the student's; remembers when training."""
        if student.rows is None:
            raise DistillError("crd needs the position of every row in the training set, as `index` of the batch")
        index = student.rows
        fresh = (
            F.normalize(self.of_student(features_of(student).float()), dim=-1),
            F.normalize(self.of_teacher(features_of(teacher).detach().float()), dim=-1),
        )
        drawn = self.draw(index)
        loss = fresh[0].new_zeros(())
        for mine, remembered in ((0, 1), (1, 0)):
            memory = self.memory[remembered]
            positive = (fresh[mine] * memory[index]).sum(-1) / self.temperature
            negative = torch.einsum("bd,bkd->bk", fresh[mine], memory[drawn]) / self.temperature
            if self.log_z[mine].isnan():  # Z is fixed by the first batch: M times the mean score
                scores = gather(torch.cat([positive.detach()[:, None], negative.detach()], 1)).double()
                self.log_z[mine] = scores.logsumexp((0, 1)) - math.log(scores.numel()) + math.log(len(memory))
            loss = loss + L.crd(positive - self.log_z[mine], negative - self.log_z[mine], len(memory))
        if self.training:
            self._remember(index, fresh)
        return loss

    def draw(self, index: Tensor) -> Tensor:
        """Items of other classes, uniform, shape (batch, negatives); a function of seed and step."""
        size, rank = world()
        generator = torch.Generator(index.device).manual_seed(self.seed + 1_000_003 * int(self.step))
        drawn = torch.rand(
            len(index) * size, self.negatives, generator=generator, device=index.device, dtype=torch.double
        )
        own = self.item_labels[index]
        others = len(self.item_labels) - self.counts[own]
        place = (drawn[rank::size] * others[:, None]).long()
        return self.order[place + (place >= self.starts[own, None]) * self.counts[own, None]]

    @torch.no_grad()
    def _remember(self, index: Tensor, fresh: tuple[Tensor, Tensor]) -> None:
        index = gather(index)
        for bank, rows in zip(self.memory, fresh, strict=True):
            kept = self.momentum * bank[index] + (1 - self.momentum) * gather(rows.detach())
            bank[index] = F.normalize(kept, dim=-1)
        self.step += 1


class ReviewHint(Term):
    """ReviewKD: fuse the student's maps from coarse to fine, then `functional.hierarchical_context` at every level.

    Attention-based fusion (ABF): the coarser fused map is enlarged, two attention maps weigh it against the student's
    own map, and a 3x3 convolution brings the sum to the teacher's channels.

    Args:
        student_channels: Channels of the student's maps, from fine to coarse.
        teacher_channels: Of the teacher's, as many.
        width: Channels of the fused maps.

    Reference:
        Chen et al. (2021), arXiv 2104.09044, section 3.2 and 3.3.
    """

    name = "review"
    needs = "maps"

    def __init__(
        self, student_channels: tuple[Count, ...], teacher_channels: tuple[Count, ...], width: Count = 256
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels):
            raise DistillError(
                f"the student has {len(student_channels)} feature maps and the teacher {len(teacher_channels)}; "
                "review compares them one by one, so choose networks with as many stages"
            )
        pairs = list(zip(student_channels, teacher_channels, strict=True))
        self.narrow = nn.ModuleList(_convolution(s, width, 1) for s, _ in pairs)
        self.attention = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in pairs[:-1])
        self.widen = nn.ModuleList(_convolution(width, t, 3) for _, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Sum over levels."""
        fused: Tensor | None = None
        loss = student.logits.new_zeros((), dtype=torch.float32)
        for level in reversed(range(len(self.narrow))):
            own = self.narrow[level](student.maps[level].float())
            if fused is not None:
                above = F.interpolate(fused, size=own.shape[-2:], mode="nearest")
                weights = self.attention[level](torch.cat([own, above], 1)).sigmoid()
                own = own * weights[:, :1] + above * weights[:, 1:]
            fused = own
            target = teacher.maps[level].detach().float()
            mapped = _on_grid(self.widen[level](own), target)
            loss = loss + L.hierarchical_context(mapped, target)
        return loss


def _on_grid(maps: Tensor, target: Tensor) -> Tensor:
    """Maps averaged, or repeated, onto the grid of others."""
    return F.adaptive_avg_pool2d(maps, (target.shape[-2], target.shape[-1]))


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, GlobalBatchNorm2d(outputs))


class CurriculumTemperature(LogitTerm):
    """CTKD: `functional.kd` at a learnt temperature that climbs the loss, more steeply as epochs pass.

    Args:
        ramp_epochs: Epochs until the reversed gradient counts in full.
        least: Smallest temperature.
        span: Width of the range of temperatures.
        standardised: Compare z-scores of logits.

    Reference:
        Li et al. (2023), arXiv 2211.16231.
    """

    name = "ctkd"

    def __init__(
        self, ramp_epochs: Positive = 10.0, least: Positive = 1.0, span: Positive = 20.0, standardised: bool = False
    ) -> None:
        super().__init__(standardised)
        self.ramp_epochs, self.least, self.span = ramp_epochs, least, span
        self.parameter = nn.Parameter(torch.zeros(()))

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """KD whose gradient to the temperature is reversed."""
        strength = L.curriculum_strength(self.epoch / self.ramp_epochs)
        free = L.reverse_gradient(self.parameter, strength)
        temperature = L.bounded_temperature(free, least=self.least, span=self.span)
        return temperature**2 * L.kd(student / temperature, teacher / temperature)
