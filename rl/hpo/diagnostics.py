"""How good a gradient is: size, noise, signal and agreement of its parts, from micro-batches of one rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def micro_gradients(parts: Tensor, parameters: Sequence[Tensor], chunks: int) -> Tensor:
    """Gradients of the means of ``chunks`` interleaved shares of a batch.

    Args:
        parts: One number an episode, live, (batch,).
        parameters: To differentiate by; there may be none.
        chunks: At least 2; share k holds the episodes k, k + chunks, and so on.

    Returns:
        (chunks, total size of the parameters), float32 or wider.
    """
    if not parameters:
        return parts.new_zeros(chunks, 0)
    rows = []
    for k in range(chunks):
        found = torch.autograd.grad(parts[k::chunks].mean(), parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
            )
        )
    return torch.stack(rows)


def signal_and_noise(gradients: Tensor) -> tuple[Tensor, Tensor]:
    r"""Unbiased squared norm of the true gradient, and the variance of the mean gradient.

    .. math:: n^2 = \frac{1}{K (K - 1)} \sum_k |g_k - \bar g|^2, \qquad s^2 = |\bar g|^2 - n^2

    Args:
        gradients: Of K micro-batches, (K, size).

    Returns:
        s² (negative when nothing but noise was seen) and n².

    Example:
        >>> signal_and_noise(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        (tensor(3.), tensor(1.))
    """
    count = len(gradients)
    mean = gradients.mean(0)
    noise = (gradients - mean).square().sum() / (count * (count - 1))
    return mean.square().sum() - noise, noise


def gradient_report(
    pathwise: Tensor,
    score: Tensor,
    continuous: Sequence[Tensor],
    discrete: Sequence[Tensor],
    *,
    chunks: int = 4,
    reduce: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """Size and noise of the pathwise, the cross and the score-function part.

    Args:
        pathwise: Pathwise part of the surrogate by episode, (batch,).
        score: Score part by episode, on live states, (batch,).
        continuous: Parameters of the continuous policy.
        discrete: Parameters of the discrete policy.
        chunks: Micro-batches.
        reduce: Mean over processes of a tensor.

    Returns:
        By name: the norm of each part's mean gradient, the variance of that mean, the cosine of pathwise and cross,
        and the signal and noise of the cross term, see :func:`signal_and_noise`.
    """
    found = {
        "pathwise": reduce(micro_gradients(pathwise, continuous, chunks)),
        "cross": reduce(micro_gradients(score, continuous, chunks)),
        "score": reduce(micro_gradients(score, discrete, chunks)),
    }
    report: dict[str, Tensor] = {}
    for name, gradients in found.items():
        signal, noise = signal_and_noise(gradients)
        report |= {f"{name}_norm": gradients.mean(0).norm(), f"{name}_variance": noise, f"{name}_signal": signal}
    report["cosine"] = torch.cosine_similarity(found["pathwise"].mean(0), found["cross"].mean(0), dim=0)
    return report
