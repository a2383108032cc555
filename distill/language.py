"""Causal language models: what they say about every next token, and a loss that never holds tokens x vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from distill.arguments import check_given
from distill.batches import Batch
from distill.cross_tokenizer import pairs_of
from distill.errors import DistillError
from distill.functional.chunked import ChunkedLoss, LanguageHead, chunked_kd
from distill.functional.pieces import in_pieces
from distill.functional.sparse import TopClasses, top_kd
from distill.functional.uld import uld
from distill.functional.vocabulary import Vocabulary
from distill.losses import KD, Terms, check_terms
from distill.terms import Compact, Outputs
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


def read_apart(teacher: Callable[[Batch, frozenset[str]], Outputs], batch: Batch, needs: frozenset[str]) -> Outputs:
    """What a teacher of another tokenizer says, at the places where both have read the same text.

    Args:
        teacher: Of language.
        batch: With `teacher_input_ids` and `teacher_attention_mask`; `teacher_labels`, -100 but for the tokens after
            common places; and `paired`, shape (batch, length), true for the student's tokens after such places.
        needs: As of `LanguageNetwork`.

    Returns:
        Its rows, and in `pairs` the student's row of each.
    """
    read = {key: batch[f"teacher_{key}"] for key in ("input_ids", "attention_mask", "labels")}
    pairs = batch["paired"][:, 1:][next_tokens(batch)[1]].nonzero().squeeze(-1)
    made = teacher(read, needs)
    rows = len(made.logits) if made.features is None else len(made.features)
    if rows != len(pairs):
        raise DistillError(
            f"the batch pairs {len(pairs)} of the student's tokens with {rows} of the teacher's; mark as many in "
            "paired as teacher_labels has after the first token"
        )
    return made._replace(pairs=pairs)


def known_tokens(compact: Compact, batch: Batch) -> Compact:
    """What a cache keeps of the tokens to predict, from what it keeps of every token of a batch but the last."""
    mask = next_tokens(batch)[1]
    if not isinstance(compact.classes, TopClasses) or compact.classes.ids.shape[:2] != mask.shape:
        raise DistillError(
            f"a cache of language keeps the largest logits of {tuple(mask.shape)} tokens, got "
            f"{type(compact.classes).__name__} of {tuple(compact.classes.ids.shape)}; write the cache for these texts"
        )
    return compact._replace(classes=TopClasses(*(part[mask] for part in compact.classes)))


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

    Under `jsd` with beta 1 on a student's own samples this is the single-step part of MiniLLM's gradient (Gu et al.
    2024, arXiv 2306.08543, equation 5), the reverse KL of every next token after the student's own words, exact over
    the vocabulary. What MiniLLM adds is not here: the gradient through the choice of earlier words (a policy gradient
    of the later rewards), samples mixed with the teacher's, the normalisation by length, and a language-modelling loss
    on other text. With any beta, and own samples in a share of the batches, it is GKD (Agarwal et al. 2024, arXiv
    2306.13649, algorithm 1).

    Args:
        terms: `hard` with a weight, and one of `kd`, `jsd` and `uld` with weight, temperature and, for jsd, beta. A
            teacher of whom a cache keeps the largest logits teaches `kd`, one of another tokenizer `uld`.
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
        if len(soft) > 1 or set(soft) - {"kd", "jsd", "uld"} or own:
            raise DistillError(
                f"in chunks a language model learns from hard and one of kd, jsd and uld, got {', '.join(terms)}; set "
                "chunk to 0 for other losses"
            )
        self.hard = float(terms["hard"].get("weight", 1.0)) if "hard" in terms else 0.0
        self.name = soft[0] if soft else ""
        options = terms[self.name] if soft else {}
        self.soft = float(options.get("weight", 1.0)) if soft else 0.0
        self.temperature = float(options.get("temperature", 1.0))
        self.chunk = chunk
        self.options: dict[str, Any] = {
            "temperature": self.temperature,
            "beta": options.get("beta", 0.5) if self.name == "jsd" else 0.0,
            "vocabulary": vocabulary,
            "chunk": chunk,
        }
        self.needs_teacher = bool(soft)

    def forward(
        self, student: Outputs, teacher: Outputs | None, labels: Tensor, epoch: float = 0.0, apart: bool = False
    ) -> dict[str, Tensor]:
        """Each term times its weight, by name; only their sum has the right gradient, unless they are made apart."""
        if self.soft and teacher is None:
            raise DistillError(f"the term {self.name} needs a teacher, got none")
        teacher = teacher or student  # with no share in the loss
        if self.soft and (apart or self.name == "uld" or teacher.compact is not None):
            made = {"hard": self._chunked(student, student, labels, 1.0).loss} if self.hard or apart else {}
            made[self.name] = self._alone(student, teacher, labels)
            return {name: (self.hard if name == "hard" else self.soft) * part for name, part in made.items()}
        total = self.hard + self.soft
        made_together = self._chunked(student, teacher, labels, self.hard / total)
        loss = total * made_together.loss
        parts = {
            "hard": self.hard * made_together.hard,
            **({self.name: self.soft * made_together.soft} if self.soft else {}),
        }
        return {**parts, "hard": parts["hard"] + loss - loss.detach()}

    def _alone(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """The divergence with a gradient of its own."""
        hidden, head = cast(Tensor, student.features), cast(LanguageHead, student.head)
        if teacher.compact is not None:
            classes, known = teacher.compact
            if self.name != "kd" or not isinstance(classes, TopClasses):
                raise DistillError(
                    f"{self.name} compares all of the teacher's outputs, but the cache keeps some classes; use kd"
                )
            KD(temperature=self.temperature).check_known(known)
            column = known.index(self.temperature)

            def some(logits: Tensor, piece: slice) -> Tensor:
                part = TopClasses(*(rows[piece] for rows in classes))
                return top_kd(logits, part, column=column, temperature=self.temperature)

            return in_pieces(hidden, head, some, chunk=self.chunk)
        if self.name != "uld":
            return self._chunked(student, teacher, labels, 0.0).loss
        pairs = pairs_of(teacher)
        theirs, other = cast(Tensor, teacher.features).detach(), cast(LanguageHead, teacher.head)

        def sorted_rows(logits: Tensor, piece: slice) -> Tensor:
            with torch.no_grad():
                said = other.logits(theirs[piece])
            return uld(logits, said, temperature=self.temperature)

        share = len(pairs) / max(len(hidden), 1)  # a mean over all tokens, as that of the labels is
        return share * in_pieces(hidden[pairs], head, sorted_rows, chunk=self.chunk)

    def _chunked(self, student: Outputs, teacher: Outputs, labels: Tensor, alpha: float) -> ChunkedLoss:
        heads = cast(LanguageHead, student.head), cast(LanguageHead, teacher.head)
        hidden, other = cast(Tensor, student.features), cast(Tensor, teacher.features).detach()
        return chunked_kd(hidden, heads[0], other, heads[1], labels, alpha=alpha, **self.options)
