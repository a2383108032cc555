"""Causal language models: what they say about every next token, and a loss that never holds tokens x vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from distill.arguments import check_given
from distill.batches import Batch
from distill.errors import DistillError
from distill.functional.chunked import ChunkedLoss, LanguageHead, chunked_kd
from distill.functional.vocabulary import Vocabulary
from distill.losses import Terms, check_terms
from distill.terms import Outputs
from gapbridge.arguments import Count

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens to predict and where they are: labels shifted by one, without those that are -100.

    Returns:
        Labels (tokens,) and a mask (batch, length - 1).
    """
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    return labels[mask], mask


class LanguageNetwork(nn.Module):
    """A transformers causal language model, with or without PEFT adapters.

    Args:
        model: From `AutoModelForCausalLM`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._proven = False

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """One row for every token of `next_tokens`: logits, or under `states` the hidden state and the head instead."""
        mask = next_tokens(batch)[1]
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask") if k in batch}
        if "states" not in needs:
            return Outputs(self.model(**inputs).logits[:, :-1][mask])
        adapted = getattr(self.model, "get_base_model", None)
        inner = cast("PreTrainedModel", self.model if adapted is None else adapted())
        hidden = inner.base_model(**inputs)[0]
        head = language_head(inner)
        if not self._proven:
            self._prove(inner, head, inputs)
        hidden = hidden[:, :-1][mask]
        return Outputs(hidden[:, :0], hidden, head=head)

    @torch.no_grad()
    def _prove(self, inner: PreTrainedModel, head: LanguageHead, inputs: dict[str, Tensor]) -> None:
        """Make sure, once, that hidden states and head are all there is to the model's logits."""
        training = inner.training
        inner.eval()
        try:
            one = {name: value[:1, :8] for name, value in inputs.items()}
            whole, made = inner(**one).logits.float(), head.logits(inner.base_model(**one)[0].flatten(0, 1))
        finally:
            inner.train(training)
        if not torch.allclose(whole.flatten(0, 1), made.float(), rtol=0.05, atol=0.05 * float(whole.abs().max())):
            raise DistillError(
                f"the logits of {type(inner).__name__} are not its last hidden state times its head; set chunk to 0, "
                "which computes them whole"
            )
        self._proven = True

    def sizes(self) -> dict[str, object]:
        """Nothing: no hint is defined for language models."""
        return {}


def language_head(model: PreTrainedModel) -> LanguageHead:
    """The head of a transformers language model, with the scale and cap that its configuration names."""
    layer = cast("nn.Linear", model.get_output_embeddings())
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return LanguageHead(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


class LanguageLoss(nn.Module):
    """Cross-entropy and a divergence of next tokens, in chunks, see `distill.functional.chunked_kd`.

    Args:
        terms: `hard` with a weight, and `kd` or `jsd` with weight, temperature and beta.
        vocabulary: What becomes of token ids that one model has alone: mask, truncate or zero_mass.
        chunk: Tokens whose logits are held at once.
    """

    needs = frozenset({"states"})

    def __init__(self, terms: Terms, vocabulary: Vocabulary = "mask", chunk: Count = 256) -> None:
        check_given(LanguageLoss.__init__, locals())
        super().__init__()
        check_terms(terms)
        soft = [name for name in terms if name != "hard"]
        own = [name for name, given in terms.items() if not isinstance(given, Mapping) or "loss" in given]
        if len(soft) > 1 or set(soft) - {"kd", "jsd"} or own:
            raise DistillError(
                f"in chunks a language model learns from hard and one of kd and jsd, got {', '.join(terms)}; set chunk "
                "to 0 for other losses"
            )
        self.hard = float(terms["hard"].get("weight", 1.0)) if "hard" in terms else 0.0
        self.name = soft[0] if soft else ""
        options = terms[self.name] if soft else {}
        self.soft = float(options.get("weight", 1.0)) if soft else 0.0
        self.options: dict[str, Any] = {
            "temperature": options.get("temperature", 1.0),
            "beta": options.get("beta", 0.5) if self.name == "jsd" else 0.0,
            "vocabulary": vocabulary,
            "chunk": chunk,
        }
        self.needs_teacher = bool(soft)

    def forward(
        self, student: Outputs, teacher: Outputs | None, labels: Tensor, epoch: float = 0.0, apart: bool = False
    ) -> dict[str, Tensor]:
        """Each term times its weight, by name; only their sum has the right gradient, unless they are made apart."""
        teacher = teacher or student  # with no share in the loss
        if self.soft and apart:
            made = {
                "hard": self._chunked(student, teacher, labels, 1.0),
                self.name: self._chunked(student, teacher, labels, 0.0),
            }
            return {name: (self.hard if name == "hard" else self.soft) * part.loss for name, part in made.items()}
        total = self.hard + self.soft
        made_together = self._chunked(student, teacher, labels, self.hard / total)
        loss = total * made_together.loss
        parts = {
            "hard": self.hard * made_together.hard,
            **({self.name: self.soft * made_together.soft} if self.soft else {}),
        }
        return {**parts, "hard": parts["hard"] + loss - loss.detach()}

    def _chunked(self, student: Outputs, teacher: Outputs, labels: Tensor, alpha: float) -> ChunkedLoss:
        heads = cast(LanguageHead, student.head), cast(LanguageHead, teacher.head)
        hidden, other = cast(Tensor, student.features), cast(Tensor, teacher.features).detach()
        return chunked_kd(hidden, heads[0], other, heads[1], labels, alpha=alpha, **self.options)
