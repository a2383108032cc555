"""Language-model distillation from hidden states and heads that never holds tokens x vocabulary in memory."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.functional.checks import (
    NOTHING,
    Divergence,
    check_covered,
    check_rows,
    check_temperature,
    comparable,
)
from distill.functional.jsd import check_beta, jsd_gradient, jsd_rows, shares
from distill.functional.vocabulary import Vocabulary, align_vocabularies, check_alignment

_BLOCK = 2**20  # elements of logits whose intermediate results stay in a CPU's cache


class LanguageHead(NamedTuple):
    r"""What turns hidden states into logits: :math:`u = s (h W^\top + b)`, then :math:`c \tanh(u / c)` under a cap.

    Attributes:
        weight: W, shape (vocabulary, width).
        bias: b, shape (vocabulary,), or None.
        scale: s, as in models that scale their logits.
        soft_cap: c above 0, as in Gemma 2, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, shape (tokens, vocabulary), in float32 or wider.

        Args:
            hidden: Shape (tokens, width).
        """
        dtype = _working_type(hidden, self.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.finish(_product(hidden, self.weight.T, dtype))

    def finish(self, products: Tensor) -> Tensor:
        """Logits from the products of hidden states with the weight."""
        logits = products if self.bias is None else products + self.bias
        logits = logits if self.scale == 1 else self.scale * logits
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def slope(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient by the products, from the gradient by the logits and the logits."""
        if self.soft_cap is not None:
            gradient = gradient * (1 - (logits / self.soft_cap) ** 2)
        return gradient if self.scale == 1 else self.scale * gradient


class ChunkedLoss(NamedTuple):
    """The loss with a gradient, and its two parts without one.

    Attributes:
        loss: `alpha * hard + (1 - alpha) * soft`.
        hard: Cross-entropy to the labels; 0 where alpha is 0.
        soft: Divergence from the teacher, times the squared temperature.
    """

    loss: Tensor
    hard: Tensor
    soft: Tensor


class _Terms(NamedTuple):
    """The plain values that say which loss it is, and in what pieces it is made."""

    alpha: float
    beta: float
    temperature: float
    vocabulary: Vocabulary
    chunk: int
    plain: bool  # nothing is NaN or masked


def chunked_kd(
    student_hidden: Tensor,
    student_head: LanguageHead,
    teacher_hidden: Tensor,
    teacher_head: LanguageHead,
    labels: Tensor | None = None,
    *,
    alpha: float = 0.5,
    beta: float = 0.0,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    vocabulary: Vocabulary = "mask",
    chunk: int = 256,
) -> ChunkedLoss:
    r"""Cross-entropy and generalised Jensen-Shannon divergence of tokens, with all gradients made in the forward pass.

    :math:`\frac{1}{\sum_i w_i} \sum_i w_i [\alpha \, CE_i + (1 - \alpha) T^2 JSD_\beta(p_s, p_t)_i]`: the maths is that
    of :func:`~distill.functional.jsd.generalised_jsd` on aligned logits, so beta 0 is the forward KL and beta 1 the
    reverse. Products are summed and returned in float32 whatever the type of the input (float64 stays float64), also
    under autocast. Memory grows with `chunk` x vocabulary and with the head, not with tokens x vocabulary; ignored
    tokens cost nothing.

    Args:
        student_hidden: Shape (tokens, student width); gets a gradient.
        student_head: Its weight and bias get gradients where they require them.
        teacher_hidden: Shape (tokens, teacher width); never gets a gradient, nor does its head.
        teacher_head: Of the same vocabulary, or one aligned by `vocabulary`.
        labels: Next token of every position, shape (tokens,), already shifted; needed where alpha is above 0.
        alpha: Share of the cross-entropy, from 0 to 1.
        beta: From 0 (forward KL) to 1 (reverse KL).
        temperature: Of the divergence, above 0; the cross-entropy stays at 1.
        weight: Weight of every token, shape (tokens,), at least 0; None is all 1.
        ignore_index: Label of tokens that count in neither part.
        vocabulary: As in :func:`~distill.functional.vocabulary.align_vocabularies`.
        chunk: Tokens whose logits are held at once.

    Returns:
        A :class:`ChunkedLoss`; zeros, with gradients of zero, where no token counts.

    Raises:
        ValueError: If shapes, types, labels or a number do not fit, or the loss is infinite or NaN: ids that a head
            masks by a bias of -inf count as in :func:`~distill.functional.checks.comparable`.

    Example:
        >>> import torch
        >>> hidden, head = torch.eye(2), LanguageHead(torch.zeros(3, 2))
        >>> chunked_kd(hidden, head, hidden, head, torch.tensor([0, -100])).hard  # log 3
        tensor(1.0986)

    Reference:
        Agarwal et al. (2024), arXiv 2306.13649, section 2, for the divergence; Hsu et al. (2024), "Liger kernel",
        arXiv 2410.10989, section 3, for gradients made chunk by chunk in the forward pass.
    """
    check_temperature(temperature)
    check_beta(beta)
    _check(student_hidden, student_head, "student")
    _check(teacher_hidden, teacher_head, "teacher")
    check_alignment(len(student_head.weight), len(teacher_head.weight), vocabulary, beta)
    _check_numbers(alpha, chunk, labels)
    if vocabulary == "truncate":
        common = min(len(student_head.weight), len(teacher_head.weight))
        student_head, teacher_head = _cut(student_head, common), _cut(teacher_head, common)

    tokens = len(student_hidden)
    _check_lengths(tokens, teacher_hidden, labels, weight)
    dtype = _working_type(student_hidden, student_head.weight)
    share = torch.ones(tokens, dtype=dtype, device=student_hidden.device) if weight is None else weight.to(dtype)
    labels = torch.zeros_like(share, dtype=torch.long) if labels is None else labels
    share = shares(share.masked_fill(labels == ignore_index, 0), tokens)
    kept = share.nonzero().squeeze(-1)
    labels = labels[kept]
    if len(kept) and not 0 <= int(labels.min()) <= int(labels.max()) < len(student_head.weight):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the student's head has the ids 0 to "
            f"{len(student_head.weight) - 1}; mark tokens to ignore by {ignore_index}"
        )
    with torch.no_grad():
        teacher_hidden = teacher_hidden[kept]
    student_hidden = student_hidden[kept]
    plain = _finite(student_hidden, teacher_hidden, student_head, teacher_head)
    values = _ChunkedKD.apply(
        student_hidden,
        student_head.weight,
        student_head.bias,
        student_head,
        teacher_hidden,
        teacher_head,
        labels,
        share[kept],
        _Terms(alpha, beta, temperature, vocabulary, chunk, plain),
        torch.is_grad_enabled(),
    )
    if plain and not bool(torch.stack(values[1:]).isfinite().all()):
        raise ValueError(
            "the cross-entropy or the divergence is not finite, though hidden states and heads are: the logits "
            "overflow float32; a training that diverged makes such weights"
        )
    return ChunkedLoss(*values)


def _check_lengths(tokens: int, teacher_hidden: Tensor, labels: Tensor | None, weight: Tensor | None) -> None:
    if any(len(rows) != tokens for rows in (teacher_hidden, labels, weight) if rows is not None):
        raise ValueError(
            f"the student has {tokens} tokens, but {len(teacher_hidden)} come from the teacher, with "
            f"{'no' if labels is None else len(labels)} labels and {'no' if weight is None else len(weight)} weights"
        )


def _check_numbers(alpha: float, chunk: int, labels: Tensor | None) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but the share of the cross-entropy must be from 0 to 1")
    if chunk < 1:
        raise ValueError(f"the chunk is {chunk} tokens; it needs at least 1, as in 256")
    if alpha > 0 and labels is None:
        raise ValueError(f"alpha is {alpha}, but there are no labels; give labels, or alpha=0 for the teacher alone")


class _ChunkedKD(torch.autograd.Function):
    """The loss over the kept tokens; its backward only scales what the forward has found."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        student: LanguageHead,  # its weight and bias stand before it as well: autograd sees no tensor inside a tuple
        teacher_hidden: Tensor,
        teacher: LanguageHead,
        labels: Tensor,
        share: Tensor,
        terms: _Terms,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = share.dtype
        hard, soft = torch.zeros_like(share), torch.zeros_like(share)
        d_hidden, d_weight, d_bias = (
            torch.zeros_like(tensor, dtype=dtype) if grad_enabled and needed and tensor is not None else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        wide = weight.to(dtype)
        # A GPU multiplies half precision into float32 by itself; a CPU is given float32 once instead of every chunk.
        factor = weight if weight.is_cuda else wide
        teacher_factor = teacher.weight if weight.is_cuda else teacher.weight.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), terms.chunk):
                chunk = slice(start, start + terms.chunk)
                products = _product(hidden[chunk], factor.T, dtype)
                teacher_products = _product(teacher_hidden[chunk], teacher_factor.T, dtype)
                height = len(products) if weight.is_cuda else max(1, _BLOCK // len(weight))
                for first in range(0, len(products), height):
                    z, t = products[first : first + height], teacher_products[first : first + height]
                    rows = slice(start + first, start + first + len(z))
                    logits = student.finish(z)
                    hard[rows], soft[rows], gradient = _block(logits, teacher.finish(t), labels[rows], terms)
                    gradient *= share[rows, None]
                    z.copy_(student.slope(gradient, logits))  # the products are not needed any more
                if d_hidden is not None:
                    d_hidden[chunk] = products @ wide
                if d_weight is not None:
                    d_weight.addmm_(products.T, hidden[chunk].to(dtype))
                if d_bias is not None:
                    d_bias += products.sum(0)
        pairs = ((d_hidden, hidden), (d_weight, weight), (d_bias, bias))
        ctx.save_for_backward(*(g if g is None or t is None else g.to(t.dtype) for g, t in pairs))
        hard, soft = (hard * share).sum(), (soft * share).sum()
        ctx.mark_non_differentiable(hard, soft)
        return terms.alpha * hard + (1 - terms.alpha) * soft, hard, soft

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors), *[None] * 7


def _block(logits: Tensor, teacher: Tensor, labels: Tensor, terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Both losses of every row, and the gradient of their balance by the student's logits."""
    temperature = terms.temperature
    student, teacher = align_vocabularies(logits, teacher, vocabulary=terms.vocabulary, beta=terms.beta)
    if not terms.plain:
        student, teacher = _masked(logits, student, teacher, labels, terms)
        logits = logits.clamp(min=NOTHING)
    log_student, log_teacher = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    soft = temperature**2 * jsd_rows(log_student, log_teacher, terms.beta)
    of_soft = jsd_gradient(log_student, log_teacher, terms.beta)[:, : logits.shape[1]]
    of_soft *= (1 - terms.alpha) * temperature  # T^2, and 1 / T from the softened logits
    if terms.alpha == 0:
        return torch.zeros_like(soft), soft, F.pad(of_soft, (0, logits.shape[1] - of_soft.shape[1]))
    log_probabilities = F.log_softmax(logits, -1)
    hard = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    gradient = log_probabilities.exp_().mul_(terms.alpha)
    gradient[torch.arange(len(labels), device=labels.device), labels] -= terms.alpha
    gradient[:, : of_soft.shape[1]] += of_soft
    return hard, soft, gradient


def _finite(
    student_hidden: Tensor, teacher_hidden: Tensor, student_head: LanguageHead, teacher_head: LanguageHead
) -> bool:
    """Whether all numbers of the counted tokens and of both heads are finite, by their sums."""
    parts = [student_hidden, teacher_hidden, *student_head[:2], *teacher_head[:2]]
    sums = [part.detach().sum(dtype=torch.float32) for part in parts if part is not None]
    return bool(torch.stack(sums).isfinite().all())


def _masked(logits: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Aligned logits without infinities, after the refusals that a head with masked ids, of bias -inf, calls for."""
    if terms.alpha > 0:
        check_rows(logits, "student")
        check_covered(logits, F.one_hot(labels, logits.shape[1]), "student", "label's")
    if terms.alpha == 1:  # the teacher has no share in the loss
        return student.nan_to_num(0, 0, NOTHING), student.nan_to_num(0, 0, NOTHING)
    divergence: Divergence = "forward" if terms.beta == 0 else "reverse" if terms.beta == 1 else "bounded"
    return comparable(student, teacher, terms.temperature, divergence)


def _product(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix product that is summed and returned in the working type."""
    if first.is_cuda and first.dtype == second.dtype and first.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(first, second, out_dtype=dtype)
    return first.to(dtype) @ second.to(dtype)


def _working_type(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where an input has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _cut(head: LanguageHead, ids: int) -> LanguageHead:
    """The head of the first ids alone."""
    return head._replace(weight=head.weight[:ids], bias=None if head.bias is None else head.bias[:ids])


def _check(hidden: Tensor, head: LanguageHead, name: str) -> None:
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"the {name}'s hidden states have shape {tuple(hidden.shape)} and its head's weight {tuple(weight.shape)}, "
            "but they must be (tokens, width) and (vocabulary, width): flatten batches of sequences"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"the {name}'s bias has shape {tuple(bias.shape)}, but its head {len(weight)} ids")
    if head.soft_cap is not None and not head.soft_cap > 0:
        raise ValueError(f"the {name}'s soft cap is {head.soft_cap}; give a number above 0, or None for no cap")
    if not (hidden.is_floating_point() and weight.is_floating_point()):
        raise ValueError(f"the {name}'s hidden states and weight must be floating, got {hidden.dtype}, {weight.dtype}")
