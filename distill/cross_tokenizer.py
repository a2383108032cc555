"""ULD as a term: a teacher that reads other tokens, compared where both have read the same text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distill import functional as L
from distill.errors import DistillError
from distill.terms import Outputs, Term
from gapbridge.arguments import Positive


class ULD(Term):
    """Universal logit distillation across tokenizers, see `distill.functional.uld`.

    It compares how sure both are of their next token and not of which, so that it stands beside `hard`. Where the
    published code sets the t-th token of one beside the t-th of the other, rows here are the places where both have
    read the same text.

    Args:
        temperature: Above 0.
    """

    name = "uld"

    def __init__(self, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Mean over the student's tokens, of which those without a common place count nothing.

        So it is a mean over the same rows as that of the labels, and batches and processes add up to the whole.

        Raises:
            DistillError: If nothing says which rows belong together.
        """
        pairs = pairs_of(teacher)
        share = len(pairs) / max(len(student.logits), 1)
        return share * L.uld(student.logits[pairs], teacher.logits, temperature=self.temperature)


def pairs_of(teacher: Outputs) -> Tensor:
    """The student's rows that the rows of a teacher of another tokenizer belong to.

    Raises:
        DistillError: If nothing says which.
    """
    if teacher.pairs is None:
        raise DistillError(
            "uld compares rows of two tokenizers, but the batch says of no row where both have read the same text; "
            "give teacher_input_ids, teacher_attention_mask, teacher_labels and paired, as distill.answered does"
        )
    return teacher.pairs


def check_apart(terms: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether the teacher reads other tokens than the students.

    Args:
        terms: Losses by student.

    Raises:
        DistillError: If some students compare tokens with it and others learn from it by uld: it reads one of the two.
    """
    soft = {name: set(own) - {"hard"} for name, own in terms.items() if set(own) - {"hard"}}
    apart = [name for name, own in soft.items() if own == {"uld"}]
    if apart and (odd := next((name for name in soft if name not in apart), None)):
        raise DistillError(
            f"{apart[0]} learns by uld from a teacher that reads tokens of its own, and {odd} by "
            f"{', '.join(sorted(soft[odd]))} from one that reads the student's; train them in two runs"
        )
    return bool(apart)
