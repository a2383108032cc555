"""Distillation as a LightningModule: one frozen teacher, one student or several, any terms, any regime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from distill.errors import DistillError
from distill.functional.vocabulary import Vocabulary, align_vocabularies
from distill.gathering import share_of
from distill.language import LanguageLoss, LanguageNetwork, next_tokens
from distill.losses import DistillLoss
from distill.networks import Batch, Frozen, ImageNetwork, Task, TextNetwork, image_model, statistics, with_lora
from distill.order import ViewLoader
from distill.regimes import method as published, regime as named_regime
from distill.terms import Outputs
from gapbridge.arguments import Count, Whole, check_arguments

Model = nn.Module | str
Network = ImageNetwork | TextNetwork | LanguageNetwork
FIGURES = ("accuracy", "loss", "agreement", "kl")


class DistillModule(lightning.LightningModule):  # type: ignore[misc]
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
        terms: Names and options of the losses, see `DistillLoss`; by student where there are several. None takes those
            that `method` was published with for the regime.
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
    """

    def __init__(
        self,
        student: Model | dict[str, Model] = "resnet18",
        teacher: Model | None = None,
        terms: dict[str, dict[str, Any]] | None = None,
        *,
        method: str = "kd",
        regime: str = "A2",
        changes: dict[str, Any] | None = None,
        task: Task = "images",
        classes: Count = 1000,
        student_options: dict[str, Any] | None = None,
        teacher_options: dict[str, Any] | None = None,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32",
        channels_last: bool = False,
        compiled: bool = False,
        lora_rank: Whole = 0,
        log_gradients_every: Whole = 50,
        item_labels: list[int] | None = None,
        chunk: Whole = 256,
        vocabulary: Vocabulary = "mask",
    ) -> None:
        check_arguments(type(self).__init__, locals())
        super().__init__()
        models = student if isinstance(student, Mapping) else {"student": student}
        held = [k for k, v in (("student", list(models.values())), ("teacher", [teacher])) if _modules(v)]
        self.save_hyperparameters(ignore=held)
        self.regime = named_regime(regime, changes)
        wanted: Any = terms or published(method, regime)
        by_student: dict[str, Any] = wanted if isinstance(student, Mapping) and terms else dict.fromkeys(models, wanted)
        if set(by_student) != set(models):
            raise DistillError(
                f"terms are given for {', '.join(by_student)}, but the students are {', '.join(models)}; name each"
            )
        self.task, self.classes, self.several = task, classes, len(models) > 1
        size = self.regime.image_size if task == "images" else 0
        drop = {"drop_path_rate": self.regime.drop_path, "drop_rate": self.regime.dropout}
        given = {k: v for k, v in drop.items() if v and task == "images"} | (student_options or {})
        self.students = nn.ModuleDict(
            {name: build(model, task, classes, size, channels_last, lora_rank, given) for name, model in models.items()}
        )
        self._teacher: Frozen | None = None
        if teacher is not None:
            network = build(teacher, task, classes, size, channels_last, 0, teacher_options or {})
            self._teacher = Frozen(network, getattr(torch, teacher_dtype))
        self.losses = nn.ModuleDict({name: self._loss(by_student[name], name, item_labels) for name in models})
        if compiled:
            for network in (*self.students.values(), *((self._teacher.network,) if self._teacher else ())):
                network.compile()
        self.ema: Any = None
        if self.regime.ema:
            from timm.utils import ModelEmaV3

            self.ema = ModelEmaV3(self.students, decay=self.regime.ema)
        figures = (*FIGURES, *(("ema_accuracy",) if self.ema else ()))
        self.metrics = nn.ModuleDict(
            {
                f"{stage} {name}": nn.ModuleDict({figure: MeanMetric() for figure in figures})
                for stage in ("validation", "test")
                for name in models
            }
        )
        # Every process makes the hints' memories alike; sending them before each step would cost more than the step.
        self._ddp_params_and_buffers_to_ignore = [f"losses.{name}" for name, _ in self.losses.named_buffers()]
        self._labels_checked = False
        self._pulled = -math.inf
        self._places: list[Any] = []

    def _loss(
        self, terms: dict[str, dict[str, Any]], name: str, item_labels: list[int] | None
    ) -> DistillLoss | LanguageLoss:
        """The losses of a student, with the regime's hard loss where the terms do not say another."""
        if self.task == "language" and self.hparams["chunk"]:
            return LanguageLoss(terms, self.hparams["vocabulary"], self.hparams["chunk"])
        hard = {"kind": self.regime.hard, "reduction": self.regime.hard_reduction, "smoothing": self.regime.smoothing}
        merged = {term: {**hard, **options} if term == "hard" else options for term, options in terms.items()}
        sizes: dict[str, Any] = {} if item_labels is None else {"item_labels": torch.tensor(item_labels)}
        networks = {"student": self.students[name], **({"teacher": self._teacher.network} if self._teacher else {})}
        for role, network in networks.items():
            sizes |= {f"{role}_{key}": value for key, value in cast(Any, network).sizes().items()}
        return DistillLoss(merged, sizes)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the first student, shape (rows, classes)."""
        return cast(Tensor, next(iter(self.students.values()))(batch).logits)

    def teacher(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs | None:
        """What the teacher, or the cache in its place, says about a batch; None without either."""
        if "teacher_logits" in batch:
            return Outputs(batch["teacher_logits"].float())
        return None if self._teacher is None else self._teacher(batch, needs)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The sum of all students' losses."""
        labels = self._labels(batch)
        needs = {name: frozenset(cast(Any, loss).needs) for name, loss in self.losses.items()}
        asked = frozenset[str]().union(*(n for name, n in needs.items() if cast(Any, self.losses[name]).needs_teacher))
        teacher = self.teacher(batch, asked) if asked else None
        epoch = self._epochs(batch_index)
        step = self.global_step + 1
        written = step % max(1, self.trainer.log_every_n_steps) == 0  # what is logged at other steps goes nowhere
        every = self.hparams["log_gradients_every"]
        pulls = written and every > 0 and step - self._pulled >= every
        self._pulled = step if pulls else self._pulled
        total = torch.zeros((), device=labels.device)
        share = share_of(len(labels), labels.device) if self.task == "language" else 1.0  # texts differ in tokens
        for name, student in self.students.items():
            outputs = student(batch, needs[name])
            losses = self.losses[name](outputs, teacher, labels, epoch)
            if pulls:
                self._log_gradients(name, outputs, self._apart(name, losses, outputs, teacher, labels))
            loss = torch.stack(list(losses.values())).sum()
            if written:
                values = {self._key("train", name, k): v.detach() for k, v in {"loss": loss, **losses}.items()}
                self.log_dict(values, batch_size=len(labels))
            total = total + share * loss
        return total

    def _apart(self, name: str, losses: dict[str, Tensor], *arguments: Any) -> dict[str, Tensor]:
        """The losses as terms that can be differentiated one by one."""
        loss = self.losses[name]
        return cast(dict[str, Tensor], loss(*arguments, apart=True)) if isinstance(loss, LanguageLoss) else losses

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _log_gradients(self, name: str, outputs: Outputs, losses: Mapping[str, Tensor]) -> None:
        """Norm of each term's gradient at the student's outputs, before any step rescales it."""
        tensors = [z for z in (outputs.logits, outputs.features, *outputs.maps) if z is not None and z.requires_grad]
        for term, loss in losses.items():
            parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
            squares = [part.float().square().sum() for part in parts if part is not None]
            self.log(self._key("gradient", name, term), torch.stack(squares).sum().sqrt(), batch_size=1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data until training starts."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        self._places = loop.get("combined_loader", [])

    def on_train_start(self) -> None:
        """Go to that place: Lightning forgets to, once the length of the training was asked for."""
        if self._places and isinstance(self.trainer.train_dataloader, ViewLoader):
            self.trainer.train_dataloader.load_state_dict(self._places[0])
        self._places = []

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Update, and average the students' weights, before any callback sees or saves them."""
        super().optimizer_step(*arguments, **named)
        if self.ema is not None:
            self.ema.update(self.students)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Accumulate the figures of a batch."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Accumulate the figures of a batch."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        labels, teacher = self._labels(batch), self.teacher(batch)
        for name, student in self.students.items():
            logits = student(batch).logits.float()
            rows = {
                "accuracy": (logits.argmax(-1) == labels).float(),
                "loss": F.cross_entropy(logits, labels, reduction="none"),
            }
            if teacher is not None and (self.task == "language" or teacher.logits.shape == logits.shape):
                rows["agreement"] = (logits.argmax(-1) == teacher.logits.argmax(-1)).float()
                log_p, log_q = (F.log_softmax(z, -1) for z in align_vocabularies(logits, teacher.logits))
                rows["kl"] = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
            if self.ema is not None:
                averaged = self.ema.module[name](batch).logits
                rows["ema_accuracy"] = (averaged.argmax(-1) == labels).float()
            metrics = cast(Any, self.metrics[f"{stage} {name}"])
            for figure, values in rows.items():
                metrics[figure].update(values)
                self.log(self._key(stage, name, figure), metrics[figure], on_epoch=True, batch_size=len(labels))

    def _labels(self, batch: Batch) -> Tensor:
        labels = next_tokens(batch)[0] if self.task == "language" else batch["labels"]
        if not self._labels_checked and self.task != "language":  # once: it waits for the device
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

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule of the regime, over the students and the hints' own parameters."""
        from timm.optim import create_optimizer_v2, param_groups_weight_decay
        from timm.scheduler import create_scheduler_v2

        regime = self.regime
        trained = nn.ModuleDict({"students": self.students, "losses": self.losses})
        if regime.decay == "matrices":
            spared = [
                f"students.{name}.model.{parameter}"
                for name, student in self.students.items()
                for parameter in getattr(cast(Any, student).model, "no_weight_decay", set)()
            ]
            groups: Any = param_groups_weight_decay(trained, regime.weight_decay, no_weight_decay_list=spared)
        else:
            groups = [p for p in trained.parameters() if p.requires_grad]
        optimizer = create_optimizer_v2(
            groups, regime.optimizer, regime.learning_rate, regime.weight_decay, regime.momentum
        )
        per_epoch = regime.schedule_on == "epoch"
        # A run of other length than the regime's keeps the shape of the schedule.
        length = regime.epochs if per_epoch else int(self.trainer.estimated_stepping_batches)
        scale = length / regime.epochs
        self._length = length
        schedule, _ = create_scheduler_v2(
            optimizer,
            regime.schedule,
            num_epochs=length,
            decay_milestones=[round(m * scale) for m in regime.milestones],
            decay_rate=regime.decay_rate,
            min_lr=regime.min_lr,
            warmup_lr=regime.warmup_lr,
            warmup_epochs=round(regime.warmup_epochs * scale),
            step_on_epochs=per_epoch,
            updates_per_epoch=1,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "epoch" if per_epoch else "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Tell timm's schedule where training is."""
        if self.regime.schedule_on == "epoch":
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
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


def build(
    model: Model, task: Task, classes: int, size: int, channels_last: bool, lora_rank: int, options: Mapping[str, Any]
) -> Network:
    """A network behind the common call.

    Args:
        model: A network, a model or the name of one.
        task: As of `DistillModule`.
        classes: Outputs of a model that is named.
        size: Side of the images, 0 where there are none.
        channels_last: Lay images out channels last.
        lora_rank: Of adapters; 0 is none.
        options: For the constructor of a named model; mean, std and size for any image model.

    Raises:
        DistillError: If the model cannot be built.
    """
    if isinstance(model, ImageNetwork | TextNetwork | LanguageNetwork):
        return model
    rest = dict(options)
    if task == "images":
        mean, std, own = rest.pop("mean", None), rest.pop("std", None), int(rest.pop("size", 0))
        made = image_model(model, classes, own or size, **rest) if isinstance(model, str) else model
        numbers = statistics(made, mean, std)
        if lora_rank:
            made = with_lora(made, lora_rank, (getattr(made, "pretrained_cfg", None) or {}).get("classifier", ""))
        return ImageNetwork(made, **numbers, size=own, channels_last=channels_last)
    if isinstance(model, str):
        import transformers

        kinds = {"texts": "AutoModelForSequenceClassification", "language": "AutoModelForCausalLM"}
        if task == "texts":
            rest.setdefault("num_labels", classes)
        try:
            model = cast(nn.Module, getattr(transformers, kinds[task]).from_pretrained(model, **rest))
        except (OSError, ValueError) as error:
            raise DistillError(f"{model!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    if lora_rank:
        model = with_lora(model, lora_rank, "classifier" if task == "texts" else "lm_head")
    return TextNetwork(model) if task == "texts" else LanguageNetwork(model)


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no classes.

    Args:
        labels: Class indices (batch,) or distributions (batch, classes).
        classes: Number of classes.

    Raises:
        DistillError: With the range found.

    Example:
        >>> check_labels(torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
        distill.errors.DistillError: labels go from 0 to 3, but there are 3 classes, 0 to 2; set classes to 4 or more
    """
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise DistillError(f"labels are distributions over {labels.shape[1]} classes, but there are {classes}")
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DistillError(
            f"labels go from {low} to {high}, but there are {classes} classes, 0 to {classes - 1}; set classes to "
            f"{high + 1} or more"
        )


def _modules(models: list[Any]) -> bool:
    return any(isinstance(model, nn.Module) for model in models)
