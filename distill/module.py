"""Distillation as a LightningModule: one frozen teacher, one student or several, any terms, any regime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from distill.arguments import check_given
from distill.batches import INPUTS, Batch, Task, as_batch, check_labels, device_of, read_labels
from distill.compact import stored_classes
from distill.cross_tokenizer import check_apart
from distill.ensemble import voices
from distill.errors import about
from distill.functional.vocabulary import Vocabulary
from distill.gathering import Window
from distill.hard import with_hard
from distill.labels import follow, given_names
from distill.language import LanguageLoss, known_tokens, next_tokens, read_apart
from distill.losses import DistillLoss, Terms
from distill.models import Model, Network, build, check_outputs, not_plain, terms_of
from distill.networks import Frozen, TextNetwork
from distill.optimizers import averaged, check_optimizer, checked_factors, make_optimizer, make_schedule, own_stream
from distill.regimes import method as published, regime as named_regime
from distill.sampling import Sampler, checked_samples
from distill.scores import Scores, classes_of, score_rows, warn_of
from distill.terms import Outputs
from gapbridge.arguments import Count, NotNegative, Positive, Share, Whole

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler

Losses = DistillLoss | LanguageLoss


class DistillModule(lightning.LightningModule):
    """Train students to do what a teacher does, on the very view of the data that the teacher sees.

    A batch is a mapping with `labels` and, by task, `images` in [0, 1] or `input_ids` and `attention_mask`; `index`,
    the position of every row in the training set, where a term needs it; `teacher_logits` where a cache stands in for
    the teacher. The teacher is no submodule: it is in no checkpoint, DDP does not wrap it, and it stays in eval mode.

    Logged, with `<student>/` after the stage where there are several: `train/loss` and each term times its weight as
    `train/<term>`; `gradient/<term>`, the norm of that term's gradient at the student's outputs, which tells what the
    weights amount to; `validation/accuracy`, `/loss` (cross-entropy), `/agreement` (share of rows with the teacher's
    answer), `/kl` (from the teacher to the student, at temperature 1), and `test/` alike;
    `ema_accuracy` with an average.

    Args:
        student: A model, the name of one (of timm, or a folder or Hub name of transformers), or several by name. They
            share the teacher's pass; their gradients, clipping and updates do not touch each other.
        teacher: A model, or the name of one; None where no term needs one or a cache stands in.
        terms: Names and options of the losses, or losses of one's own, see `DistillLoss`; by student where there are
            several. None takes those that `method` was published with for the regime.
        rate_factors: What the regime's learning rate is multiplied with, by student; 1 where a student is not named.
        method: Name of a published method, one that `distill.regimes.method` knows.
        regime: Name of the training regime, one of `distill.regimes.REGIMES`.
        changes: Values of the regime that are different here.
        task: images, texts (sequence classification) or language (causal language models).
        classes: Classes of images and texts.
        student_options: Options of timm's or transformers' constructor of the student, and mean, std and size for
            images.
        teacher_options: Options of timm's or transformers' constructor of the teacher, in the same way.
        teacher_dtype: Type of the teacher's weights.
        channels_last: Lay images out in memory with channels last, which is faster on many GPUs.
        compiled: Compile students and teacher with torch.compile, for speed.
        lora_rank: Rank of the LoRA adapters that are trained with the head instead of whole students;
            0 trains whole students.
        log_gradients_every: Fewest steps between two logs of each term's gradient norm; 0 logs none.
        item_labels: Class of every training row, for the terms that draw negatives by class.
        chunk: Tokens of a language model whose logits are held at once; 0 computes them all.
        vocabulary: What becomes of token ids that one language model has alone: mask, truncate or zero_mass.
        labels: Names of the classes of texts in the order of the data's labels: networks whose id2label has them in
            another order are read in this one, and a teacher of other classes is refused. None takes the first
            student's own, or else the teacher's.
        samples: For language models, by student, the shares of batches whose text the student itself has said (`own`)
            or the teacher has (`teacher`) in place of the data's; None reads the data alone.
        prompt_tokens: Tokens at the start of a text that samples go on from, where its labels do not mark a prompt.
        sampling_temperature: At which students sample; 0 takes the likeliest token.
    """

    _labels_checked = False
    _places: Sequence[dict[str, int]] = ()  # in the data, where the training goes on

    def __init__(
        self,
        student: Model | dict[str, Model] = "resnet18",
        teacher: Model | None = None,
        terms: dict[str, Any] | None = None,
        *,
        rate_factors: dict[str, Positive] | None = None,
        method: str = "kd",
        regime: str = "A2",
        changes: dict[str, object] | None = None,
        task: Task = "images",
        classes: Count = 1000,
        student_options: dict[str, object] | None = None,
        teacher_options: dict[str, object] | None = None,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32",
        channels_last: bool = False,
        compiled: bool = False,
        lora_rank: Whole = 0,
        log_gradients_every: Whole = 50,
        item_labels: list[int] | None = None,
        chunk: Whole = 256,
        vocabulary: Vocabulary = "mask",
        labels: list[str] | None = None,
        samples: dict[str, dict[str, Share]] | None = None,
        prompt_tokens: Count = 32,
        sampling_temperature: NotNegative = 1.0,
    ) -> None:
        check_given(DistillModule.__init__, locals())
        super().__init__()
        models = student if isinstance(student, Mapping) else {"student": student}
        self.save_hyperparameters(ignore=not_plain(models, teacher, terms))
        self.regime = named_regime(regime, changes)
        check_optimizer(self.regime)
        by_student = terms_of(models, terms, published(method, regime) if terms is None else None, student, method)
        self._rates = checked_factors(rate_factors, models)
        check_labels(torch.tensor(item_labels or [0]), classes)
        self._apart = check_apart(by_student)
        self._sampler = Sampler(checked_samples(samples, by_student, task), prompt_tokens, sampling_temperature)
        self.task, self.classes, self.several = task, classes, len(models) > 1
        drop = {"drop_path_rate": self.regime.drop_path, "drop_rate": self.regime.dropout}
        own = {k: v for k, v in drop.items() if v and task == "images"}
        shared = (task, classes, self.regime.image_size if task == "images" else 0, channels_last)
        made = {name: build(m, *shared, lora_rank, student_options or {}, own) for name, m in models.items()}
        self.students = nn.ModuleDict(made)
        voice = None if teacher is None else build(teacher, *shared, 0, teacher_options or {})
        self._teacher = None if voice is None else Frozen(voice, getattr(torch, teacher_dtype))
        if task == "texts":
            self._follow(labels)
        self.losses = nn.ModuleDict({name: self._loss(by_student[name], name, item_labels) for name in models})
        if task != "language":
            check_outputs(self.students, classes)
        if compiled:
            for network in (*self.students.values(), *(() if voice is None else (voice,))):
                network.compile()
        self.ema = averaged(self.students, self.regime)
        self.metrics = nn.ModuleDict({stage: Scores(models, self.ema is not None) for stage in ("validation", "test")})
        self.doubts: dict[str, str] = {}
        # Every process makes the hints' memories alike; sending them before each step would cost more than the step.
        self._ddp_params_and_buffers_to_ignore = [f"losses.{name}" for name, _ in self.losses.named_buffers()]
        self._windows = {name: Window() for name in ("", *self._sampler.samples)}  # samples differ in tokens

    def _follow(self, labels: list[str] | None) -> None:
        """Let all networks mean the same class by the same position."""
        teacher = [] if self._teacher is None else voices(self._teacher.network)
        students = [(name, voice) for name, network in self.students.items() for voice in voices(network)]
        told = [
            given_names(getattr(getattr(n.model, "config", None), "id2label", None))
            for n in (*(voice for _, voice in students), *teacher)
        ]
        names = labels or next((found for found in told if found and len(found) == self.classes), None)
        for name, network in students if names else ():
            follow(cast(TextNetwork, network), names or [], f"student {name}", learns=True)
        for network in teacher if names else ():
            follow(cast(TextNetwork, network), names or [], "the teacher", learns=False)

    def _loss(self, terms: Terms, name: str, item_labels: list[int] | None) -> Losses:
        """The losses of a student, with the regime's hard loss where the terms do not say another."""
        if self.task == "language" and self.hparams["chunk"]:
            return LanguageLoss(terms, self.hparams["vocabulary"], self.hparams["chunk"])
        sizes: dict[str, object] = {} if item_labels is None else {"item_labels": torch.tensor(item_labels)}
        networks = {"student": self.students[name], **({"teacher": self._teacher.network} if self._teacher else {})}
        for role, network in networks.items():
            sizes |= {f"{role}_{key}": value for key, value in cast(Network, network).sizes().items()}
            if (width := getattr(network, "layer_width", None)) is not None:
                sizes[f"{role}_layers"] = partial(width, self.regime.image_size)
        return DistillLoss(with_hard(terms, self.regime), sizes)

    def forward(self, batch: object) -> Tensor:
        """Logits of the first student, shape (rows, classes)."""
        return cast(Tensor, next(iter(self.students.values()))(as_batch(batch, self.task)).logits)

    def teacher(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs | None:
        """What the teacher, or the cache in its place, says about a batch; None without either."""
        if "teacher_logits" in batch:
            return Outputs(batch["teacher_logits"].float())
        if (compact := stored_classes(batch)) is not None:
            compact = known_tokens(compact, batch) if self.task == "language" else compact
            return Outputs(batch[INPUTS[self.task]].new_empty(0), compact=compact)
        if self._apart and self._teacher is not None:
            return read_apart(self._teacher, batch, needs) if "paired" in batch else None
        return None if self._teacher is None else self._teacher(batch, needs)

    def training_step(self, given: object, batch_index: int) -> Tensor:
        """The sum of all students' losses."""
        batch = as_batch(given, self.task)
        labels = self._labels(batch)
        needs = {name: frozenset(cast(Losses, loss).needs) for name, loss in self.losses.items()}
        taught = {name: needs[name] for name, loss in self.losses.items() if cast(Losses, loss).needs_teacher}
        stream = (torch.initial_seed(), self.global_rank, self.current_epoch, batch_index)
        sources = {name: self._sampler.source(name, stream[0], *stream[2:]) for name in self.students}
        together = [asked for name, asked in taught.items() if sources[name] == "data"]
        teacher = self.teacher(batch, frozenset[str]().union(*together)) if together else None
        epoch, device, step = self._epochs(batch_index), device_of(batch), self.global_step + 1
        written = step % max(1, self.trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]  # what is logged at other steps goes nowhere
        every, windows = self.hparams["log_gradients_every"], self.trainer.accumulate_grad_batches
        pulls = written and every > 0 and batch_index % windows == 0 and self._pulls(step, every)
        weights: dict[str, Tensor | float] = {}
        total = torch.zeros((), device=device)
        for name, student in self.students.items():
            read, wanted, told = batch, labels, teacher
            if sources[name] != "data":
                speaks = None if self._teacher is None else self._teacher.network
                read = self._sampler.rows(sources[name], student, batch, speaks, stream)
                wanted = self._labels(read)
                told = self.teacher(read, taught[name]) if name in taught else None
            rows = len(batch[INPUTS[self.task]]) if wanted is None else len(wanted)
            window = name if name in self._windows else ""
            if window not in weights:
                even = self.task != "language"
                weights[window] = self._windows[window].weight(rows, windows, device, even=even)
            # What one drops does not hang on how many went before it.
            with own_stream(device, *stream), about(name, len(self.students) > 1):
                outputs = student(read, needs[name])
                if not rows and not isinstance(self.losses[name], LanguageLoss):  # texts with nothing to predict
                    total = total + 0.0 * outputs.logits.sum()
                    continue
                losses = self.losses[name](outputs, told, wanted, epoch)
            if pulls:
                self._log_gradients(name, outputs, self._terms_apart(name, losses, outputs, told, wanted))
            loss = torch.stack(list(losses.values())).sum()
            if written:
                values = {self._key("train", name, k): v.detach() for k, v in {"loss": loss, **losses}.items()}
                self.log_dict(values, batch_size=rows)
            total = total + weights[window] * loss
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make of the sum over batches the mean over their rows."""
        factors = {name: w.close(self.trainer.accumulate_grad_batches) for name, w in self._windows.items()}
        for name in self.students:
            factor = factors.get(name, factors[""])
            trained = [*self.students[name].parameters(), *self.losses[name].parameters()]
            gradients = [p.grad for p in trained if p.grad is not None]
            if gradients and (isinstance(factor, Tensor) or factor != 1):
                torch._foreach_mul_(gradients, factor)

    def _terms_apart(self, name: str, losses: dict[str, Tensor], *arguments: object) -> dict[str, Tensor]:
        """The losses as terms that can be differentiated one by one."""
        loss = self.losses[name]
        return cast(dict[str, Tensor], loss(*arguments, apart=True)) if isinstance(loss, LanguageLoss) else losses

    def _pulls(self, step: int, every: int) -> bool:
        """A function of the step alone, so that a resumed training logs gradients where an unbroken one does."""
        often: int = max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]  # Lightning sets it later
        return (step - often) % (math.ceil(every / often) * often) == 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _log_gradients(self, name: str, outputs: Outputs, losses: Mapping[str, Tensor]) -> None:
        """Norm of each term's gradient at the student's outputs, before any step rescales it."""
        tensors = [
            z
            for z in (outputs.logits, outputs.features, *outputs.maps, *outputs.layers.values())
            if z is not None and z.requires_grad
        ]
        for term, loss in losses.items():
            parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
            squares = [part.float().square().sum() for part in parts if part is not None]
            self.log(self._key("gradient", name, term), torch.stack(squares).sum().sqrt(), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was warned of, which a training that goes on does not find again."""
        checkpoint["doubts"] = dict(self.doubts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data until training starts."""
        self.doubts |= checkpoint.get("doubts", {})
        loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        self._places = loop.get("combined_loader", [])

    def on_train_start(self) -> None:
        """Go to that place: Lightning forgets to, once the length of the training was asked for."""
        go_on = getattr(self.trainer.train_dataloader, "load_state_dict", None)
        if self._places and go_on is not None:
            go_on(self._places[0])
        self._places = ()

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Update, and average the students' weights, before any callback sees or saves them."""
        super().optimizer_step(*arguments, **named)
        if self.ema is not None:
            self.ema.update(self.students)

    def validation_step(self, batch: object, batch_index: int) -> None:
        """Accumulate the figures of a batch."""
        self._evaluate("validation", batch)

    def test_step(self, batch: object, batch_index: int) -> None:
        """Accumulate the figures of a batch."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Doubt a teacher that knows no more than chance at once, and one that is no better than a student at the end."""  # noqa: E501
        doubts = cast(Scores, self.metrics["validation"]).doubts("validation")
        if not self.trainer.sanity_checking:
            last = self.trainer.should_stop or self.current_epoch + 1 == self.trainer.max_epochs
            warn_of("validation", {k: d for k, d in doubts.items() if last or k == "chance"}, self.doubts)

    def on_test_epoch_end(self) -> None:
        """Doubt a teacher that is no better than chance or a student."""
        warn_of("test", cast(Scores, self.metrics["test"]).doubts("test"), self.doubts)

    def _evaluate(self, stage: str, given: object) -> None:
        batch = as_batch(given, self.task)
        labels, scores = self._labels(batch), cast(Scores, self.metrics[stage])
        teacher = None if self._apart else self.teacher(batch)  # of other tokens nothing is compared token by token
        told = None if teacher is None or teacher.compact is not None else teacher.logits
        if told is not None and labels is not None and (self.task == "language" or told.shape[-1] == self.classes):
            scores.teach(told, labels)
            self.log(f"{stage}/teacher_accuracy", scores.teacher, on_epoch=True, batch_size=len(labels))
        for name, student in self.students.items():
            logits = student(batch).logits.float()
            if not len(logits):
                continue
            alike = told is not None and (self.task == "language" or told.shape == logits.shape)
            rows = score_rows(logits, labels, told if alike else None)
            if self.ema is not None and labels is not None:
                averaged = self.ema.module[name](batch).logits
                rows["ema_accuracy"] = (averaged.argmax(-1) == classes_of(labels)).float()
            metrics = scores.student(name)
            for figure, values in rows.items():
                cast(MeanMetric, metrics[figure]).update(values)
                self.log(
                    self._key(stage, name, figure),
                    cast(MeanMetric, metrics[figure]),
                    on_epoch=True,
                    batch_size=len(logits),
                )

    def _labels(self, batch: Batch) -> Tensor | None:
        if self.task == "language":
            return next_tokens(batch)[0]
        labels = batch.get("labels")
        if labels is None:
            return None
        labels = read_labels(labels, len(batch[INPUTS[self.task]]))
        if not self._labels_checked:  # once: it waits for the device
            self._labels_checked = True
            check_labels(labels, self.classes)
        return labels

    def _key(self, stage: str, student: str, figure: str) -> str:
        return f"{stage}/{student}/{figure}" if self.several else f"{stage}/{figure}"

    def _epochs(self, batch_index: int) -> float:
        """Epochs that have passed; where the schedule counts updates, the same share of the regime's epochs."""
        if self.regime.schedule_on == "update":
            return float(self.regime.epochs * self.global_step / self._length)
        batches = self.trainer.num_training_batches
        return float(self.current_epoch + (batch_index / batches if math.isfinite(batches) else 0.0))

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, object]]]:  # type: ignore[override]
        """The regime's optimizer, one a student with its hints' own parameters, and its schedule."""
        parts = {name: {"network": self.students[name], "losses": self.losses[name]} for name in self.students}
        trained = {name: nn.ModuleDict(part) for name, part in parts.items()}
        optimizer = make_optimizer(self.regime, trained, self._rates)
        per_epoch = self.regime.schedule_on == "epoch"
        # A run of other length than the regime's keeps the shape of the schedule.
        self._length = self.regime.epochs if per_epoch else int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(self.regime, optimizer, self._length)
        return [optimizer], [{"scheduler": schedule, "interval": "epoch" if per_epoch else "step"}]

    def lr_scheduler_step(self, scheduler: Scheduler, metric: object) -> None:  # type: ignore[override]
        """Tell timm's schedule where training is."""
        if self.regime.schedule_on == "epoch":
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip every student by itself, by the Trainer's limit or else the regime's."""
        limit = self.regime.clip if gradient_clip_val is None else gradient_clip_val
        if not limit:
            return
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, limit, "value")
            return
        for name in self.students:
            nn.utils.clip_grad_norm_([*self.students[name].parameters(), *self.losses[name].parameters()], limit)
