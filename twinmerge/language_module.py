"""Fine-tuning a causal language model as a LightningModule, with scores per token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from twinmerge.modeling_twin import TwinMixin
from twinmerge.module import FinetuneModule


class LanguageModule(FinetuneModule):
    """Fine-tune one causal language model, or a PEFT model over it, on batches whose labels say what is learned.

    Logged: `train/loss`; `validation/loss` and `test/loss`, the mean over all learned tokens of all batches (in nats);
    `validation/perplexity`, its exponential; `validation/token_accuracy`, the share of learned tokens that are the
    likeliest given those before them; and the two of `test/`.

    Under Lightning's `ModelParallelStrategy` every process holds a part of each parameter (FSDP2 over the strategy's
    data-parallel processes); `whole_state` gathers them again.

    Args:
        model: a causal language model; what requires gradients is trained.
        learning_rate: peak, above 0.
        weight_decay: of AdamW, on matrices only.
        warmup: fraction of all steps, in [0, 1).
        frozen: parameters whose name contains one of these stay as they are.

    Raises:
        ValueError: for a twin, whose router would see the answers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        frozen: tuple[str, ...] = (),
    ) -> None:
        if isinstance(model, TwinMixin):
            raise ValueError("a twin would route on the answers it is to learn; train its experts, and merge again.")
        super().__init__(model, learning_rate=learning_rate, weight_decay=weight_decay, warmup=warmup, frozen=frozen)
        self._sharded = False
        adapted: Any = model
        stock = adapted.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps = "logits_to_keep" in inspect.signature(stock.forward).parameters
        self.metrics = nn.ModuleDict(
            {
                stage: nn.ModuleDict({name: MeanMetric() for name in ("loss", "token_accuracy")})
                for stage in ("validation", "test")
            }
        )

    def configure_model(self) -> None:
        """Deal the parameters out to the processes of a `ModelParallelStrategy`; nothing under any other strategy.

        Raises:
            ValueError: for a strategy that also splits single matrices, which needs a plan of the model's own.
        """
        mesh = self.device_mesh
        if mesh is None or self._sharded:
            return
        if mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"tensor_parallel_size is {mesh['tensor_parallel'].size()}, and matrices are not split; give "
                "ModelParallelStrategy tensor_parallel_size 1 and data_parallel_size the number of processes."
            )
        from torch.distributed.fsdp import fully_shard

        # The blocks that transformers keeps in one piece are gathered one at a time, the rest with the whole model.
        blocks = {name for module in self.model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        for module in [m for m in self.model.modules() if type(m).__name__ in blocks]:
            fully_shard(module, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])
        self._sharded = True

    def whole_state(self) -> dict[str, Tensor] | None:
        """The model's parameters gathered on the first process, empty on others; None when none is dealt out.

        All processes call it together.
        """
        if not self._sharded:
            return None
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = cast("dict[str, Tensor]", get_model_state_dict(self.model, options=whole))
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):  # what is tied is saved once
            if name in state:
                state[name] = state[first.setdefault(id(parameter), name)]
        return state

    def forward(self, batch: Mapping[str, Tensor], **kwargs: Any) -> Tensor:
        """Logits of a batch: shape (batch, tokens, vocabulary)."""
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}
        logits: Tensor = self.model(**inputs, use_cache=False, **kwargs).logits
        return logits

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the batch's learned tokens, and the logits before each of them, as float32."""
        labels = batch["labels"][:, 1:]
        places = (labels != -100).any(0).nonzero()[:, 0]  # the head is the dearest matrix: not for prompts
        kept = {"logits_to_keep": places} if self._keeps else {}
        logits = self(batch, **kept)
        logits = logits if self._keeps else logits[:, places]
        learned = labels[:, places] != -100
        return F.cross_entropy(logits[learned].float(), labels[:, places][learned]), logits[learned].float()

    def _evaluate(self, stage: str, batch: Mapping[str, Tensor]) -> None:
        loss, logits = self.loss(batch)
        labels = batch["labels"][:, 1:]
        learned = labels[labels != -100]
        metrics: Any = self.metrics[stage]
        metrics["loss"].update(loss.detach(), len(learned))
        metrics["token_accuracy"].update((logits.argmax(-1) == learned).float())

    def _log_score(self, stage: str) -> None:
        metrics: Any = self.metrics[stage]
        if not metrics["loss"].update_called:
            return
        values = {name: metric.compute() for name, metric in metrics.items()}
        values["perplexity"] = torch.exp(values["loss"])
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, prog_bar=True)
        for metric in metrics.values():
            metric.reset()
