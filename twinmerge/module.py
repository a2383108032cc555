"""Fine-tuning as a LightningModule: any encoder with a task head, any sequence classifier, any causal language model.

An expert made here is an ordinary Hugging Face folder (or a PEFT folder for LoRA); a merged twin is fine-tuned by the
same module: ``Trainer.fit(FinetuneModule(twinmerge.load(folder), question="spam"), datamodule)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning
import torch
import torchmetrics
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from transformers import PreTrainedModel

from gapbridge.arguments import NotNegative, Positive, ProperShare, Seed, Whole, check_arguments
from twinmerge.artefact import load
from twinmerge.errors import CheckpointError
from twinmerge.layouts import probe_inputs
from twinmerge.modeling_twin import Head, TwinMixin
from twinmerge.routed_layers import ADDED, with_statistics
from twinmerge.states import states_of
from twinmerge.twin_parts import head_loss, pool

Metric = Literal["accuracy", "f1", "mcc", "accuracy_f1", "pearson_spearman"]
METRICS = get_args(Metric)


def task_metric(name: str, labels: int) -> torchmetrics.MetricCollection:
    """The torchmetrics behind a task's score; the score is their mean.

    Args:
        name: `accuracy`, `f1` (macro), `mcc` (Matthews), `accuracy_f1` or `pearson_spearman`.
        labels: classes; 1 for regression.

    Raises:
        ValueError: for another name, or a metric of classes for a regression.

    >>> list(task_metric("accuracy_f1", 3))
    ['accuracy', 'f1']
    """
    if name not in METRICS:
        raise ValueError(f"metric '{name}' is unknown; choose one of {', '.join(METRICS)}.")
    if labels == 1 and name != "pearson_spearman":
        raise ValueError(f"metric '{name}' counts classes and the task has one output; choose pearson_spearman.")
    if name == "pearson_spearman":
        return torchmetrics.MetricCollection({"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()})
    made = {
        "accuracy": MulticlassAccuracy(labels, average="micro"),
        "f1": MulticlassF1Score(labels, average="macro"),
        "mcc": MulticlassMatthewsCorrCoef(labels),
    }
    return torchmetrics.MetricCollection({part: made[part] for part in name.split("_")})


def fixed_head(width: int, labels: int, seed: int) -> Head:
    """A random orthonormal head on the layer-normed mean feature, never trained: all task knowledge must go elsewhere.

    Args:
        width: hidden size of the encoder, at least `labels`.
        labels: outputs.
        seed: same seed, same head.
    """
    head = Head(width, labels, pooling="mean", layer_norm=True)
    with torch.no_grad():
        nn.init.orthogonal_(head.out_proj.weight, generator=torch.Generator().manual_seed(seed))
        head.out_proj.bias.zero_()
    return head.requires_grad_(False)


def _from_folder(where: str) -> nn.Module:
    """A twin by its folder, or what `AutoModel` makes of a folder or Hub name."""
    if (Path(where) / "twin.json").is_file():
        return cast(nn.Module, load(where, dtype=torch.float32))
    from transformers import AutoModel

    try:
        return cast(nn.Module, AutoModel.from_pretrained(where, dtype=torch.float32, trust_remote_code=False))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"model {where!r} is no folder of a model, and cannot be fetched ({reason}).") from error


def _freeze(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Hold parameters whose name contains one of these; refuse words that are in none."""
    held = [parameter for name, parameter in model.named_parameters() if any(part in name for part in frozen)]
    if frozen and not held:
        raise ValueError(
            f"frozen is {', '.join(frozen)}, which is in no parameter's name of {type(model).__name__}; name parts of "
            "what named_parameters() gives."
        )
    for parameter in held:
        parameter.requires_grad_(False)


def _inner(model: nn.Module) -> nn.Module:
    """The model itself under PEFT's adapters."""
    base = getattr(model, "get_base_model", None)
    return model if base is None else cast(nn.Module, base())


def width_of(model: nn.Module, pooling: str) -> int | None:
    """Features that a head on this pooling reads: of images as a tiny batch shows, else as the configuration says."""
    stock = _inner(model)
    if (
        getattr(stock, "main_input_name", "") == "pixel_values"
        and (inputs := probe_inputs(cast(PreTrainedModel, stock))) is not None
    ):
        mode = stock.training
        with torch.no_grad():
            states = states_of(stock, stock.eval()(**inputs))
        stock.train(mode)
        return int(pool(pooling, states, None).shape[-1])
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return None if width is None else int(width)


def _new_head(model: nn.Module, labels: int, heads: str, pooling: str, seed: int) -> Head:
    """A head for the hidden states of an encoder."""
    width = width_of(model, pooling)
    if width is None:
        raise ValueError(
            f"labels is {labels}, but a {type(model).__name__} has no config.hidden_size to make a head for; give a "
            "model of transformers, or 0 where the model has a loss of its own."
        )
    if heads == "fixed":
        return fixed_head(width, labels, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head(width, labels, pooling)


class FinetuneModule(lightning.LightningModule):
    """Fine-tune one model on one task, in full or by LoRA, with AdamW, linear warm-up and linear decay.

    Logged: `train/loss`, `validation/loss`, `validation/<metric>` and `validation/score` (their mean); `test/` alike.
    An encoder's unused pooler and a twin's other heads get no gradient: on several processes freeze them (`frozen`) or
    use the strategy `ddp_find_unused_parameters_true`.

    Args:
        model: a model, or a folder or Hub name for `AutoModel`, taken in float32, or the folder of a twin; a twin that
            is given as a model keeps what `train_only` left trainable.
        labels: outputs of the task's head; 1 for regression; 0 when the model computes its own loss from `labels`
            (sequence classifiers, causal language models).
        heads: `trained`, or `fixed` for a random orthonormal head that stays as it is.
        pooling: which states the head reads, see `twinmerge.twin_parts.pool`: `mean`, `first` or `last` token,
            `patches`, `first_patches` or `pooled`.
        statistics: of batch norms: `frozen`, as short fine-tunes need them, or `trained`.
        question: for a twin: the head to train and evaluate; the router still chooses the mixture from the input.
        parts: of a twin, what is trained, any of `router`, `shared`, `experts`, `heads`; none named leaves it as it is.
        metric: one of `METRICS`.
        learning_rate: peak, above 0.
        weight_decay: of AdamW, on matrices only.
        warmup: fraction of all steps, in [0, 1).
        frozen: parameters whose name contains one of these stay as they are.
        lora_rank: 0 trains the parameters themselves; otherwise a PEFT adapter of that rank on all linear layers.
        seed: of the head's initial values.
    """

    def __init__(
        self,
        model: nn.Module | str = "sentence-transformers/all-MiniLM-L6-v2",
        labels: Whole = 0,
        *,
        heads: Literal["trained", "fixed"] = "trained",
        pooling: Literal["mean", "first", "last", "patches", "first_patches", "pooled"] = "mean",
        statistics: Literal["frozen", "trained"] = "frozen",
        question: str = "",
        parts: tuple[str, ...] = (),
        metric: Metric = "accuracy",
        learning_rate: Positive = 2e-4,
        weight_decay: NotNegative = 0.01,
        warmup: ProperShare = 0.1,
        frozen: tuple[str, ...] = (),
        lora_rank: Whole = 0,
        seed: Seed = 0,
    ) -> None:
        check_arguments(FinetuneModule.__init__, locals())
        super().__init__()
        self.save_hyperparameters(ignore=[] if isinstance(model, str) else ["model"])
        if isinstance(model, str):
            model = _from_folder(model)
        twin = model if isinstance(model, TwinMixin) else None
        if question and (twin is None or question not in twin.heads):
            known = "it is no twin" if twin is None else ", ".join(twin.heads)
            raise ValueError(f"question '{question}' is no head of the model ({known}); name one of a twin's heads.")
        if twin is not None and lora_rank:
            raise ValueError(f"lora_rank is {lora_rank}, but a twin has low-rank experts of its own to train; give 0.")
        if parts:
            if twin is None:
                raise ValueError(f"parts are {', '.join(parts)}, but the model is no twin; use frozen for others.")
            twin.train_only(*parts)
        _freeze(model, frozen)
        if not labels and twin is None and "labels" not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"labels is 0, but a {type(model).__name__} computes no loss of its own from labels; give their number."
            )
        if lora_rank:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear")
            model = get_peft_model(cast("PreTrainedModel", model), config)
        self.model = model.train()
        self.head: Head | None = None
        if labels and not question:
            self.head = _new_head(model, labels, heads, pooling, seed)
        outputs = labels or int(getattr(cast("PreTrainedModel", model).config, "num_labels", 2))
        if twin is not None and question:
            outputs = cast(Head, twin.heads[question]).out_proj.out_features
        self.outputs = outputs
        self.metrics = nn.ModuleDict(
            {stage: task_metric(metric, outputs).clone(prefix=f"{stage}/") for stage in ("validation", "test")}
        )

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch (input_ids, attention_mask, ...): shape (batch, labels), or the model's own."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        if self.hparams["question"]:
            answer = cast(TwinMixin, self.model).classify(**inputs, head=self.hparams["question"])
            return answer.logits[..., : self.outputs]
        outputs = self.model(**inputs)
        if self.head is None:
            return cast(Tensor, outputs.logits)
        return cast(Tensor, self.head(states_of(_inner(self.model), outputs), batch.get("attention_mask")))

    def train(self, mode: bool = True) -> FinetuneModule:
        """Training mode, in which frozen running statistics are used and not moved."""
        super().train(mode)
        if mode and self.hparams["statistics"] == "frozen":
            for module in with_statistics(self.model):
                module.eval()
        return self

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and logits: that of the head (see `head_loss`), or the model's own loss."""
        question = self.hparams["question"]
        head = cast(Head, cast(TwinMixin, self.model).heads[question]) if question else self.head
        if head is None:
            outputs = self.model(**batch)
            return outputs.loss, outputs.logits
        logits = self(batch)
        return head_loss(head, logits, batch["labels"]), logits

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """One batch's loss."""
        loss, _ = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int) -> None:
        """Accumulate the validation loss and metrics."""
        self._evaluate("validation", batch)

    def test_step(self, batch: Mapping[str, Tensor], batch_index: int) -> None:
        """Accumulate the test loss and metrics."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Mapping[str, Tensor]) -> None:
        loss, logits = self.loss(batch)
        self.log(f"{stage}/loss", loss, batch_size=len(batch["labels"]), sync_dist=True)
        labels = batch["labels"]
        if logits.dim() == 2 and labels.dim() == 1:  # language models are judged by their loss alone
            guesses = (logits[:, 0].float(), labels.float()) if self.outputs == 1 else (logits, labels)
            cast(MetricCollection, self.metrics[stage]).update(*guesses)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's validation metrics and score."""
        self._log_score("validation")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and score."""
        self._log_score("test")

    def _log_score(self, stage: str) -> None:
        metrics = cast(MetricCollection, self.metrics[stage])
        if not next(iter(metrics.values())).update_called:
            return
        values = {name: value.float() for name, value in metrics.compute().items()}  # a Matthews 0 is an integer
        self.log_dict({**values, f"{stage}/score": torch.stack(list(values.values())).mean()}, prog_bar=True)
        metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a twin's frozen experts out: a checkpoint is for resuming, and they lie in the twin folder."""
        for name in self._frozen_experts():
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the frozen experts from the twin that this module was made with."""
        own = self.state_dict()
        checkpoint["state_dict"] = {**{name: own[name] for name in self._frozen_experts()}, **checkpoint["state_dict"]}

    def _frozen_experts(self) -> list[str]:
        if not isinstance(self.model, TwinMixin):
            return []
        parameters = self.named_parameters(remove_duplicate=False)
        return [n for n, p in parameters if not p.requires_grad and not ADDED.isdisjoint(n.split("."))]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with weight decay on matrices, warm-up then linear decay to zero over all steps."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.hparams["weight_decay"]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["learning_rate"])
        steps = int(self.trainer.estimated_stepping_batches)
        rise = max(1, round(self.hparams["warmup"] * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
