"""What methods with data know of an expert: diagonal Fisher information, and Gram matrices of its layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Run = Callable[[], object]


def fisher_information(parameters: Mapping[str, Tensor], answers: Iterable[Callable[[], Tensor]]) -> dict[str, Tensor]:
    r"""Diagonal Fisher information, :math:`E_x E_{y \sim p(y|x)} (\nabla_\theta \log p(y|x))^2`, exact in y.

    Args:
        parameters: Of an expert by name; they need gradients.
        answers: For every input, what gives its logits, shape (labels,); of one number, the mean of a normal law of
            variance 1.

    Returns:
        Information by name, float32, of the parameters' shapes; zero for what no answer depends on.

    Raises:
        ValueError: When there is no input.

    Reference:
        Matena and Raffel (2022), arXiv 2111.09832, section 3.1.
    """
    found = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
    count = 0
    for answer in answers:
        logits = answer().float()
        logs = F.log_softmax(logits, -1) if len(logits) > 1 else logits
        shares = logs.detach().exp() if len(logits) > 1 else torch.ones_like(logits)
        for index, share in enumerate(shares):
            last = index == len(shares) - 1
            slopes = torch.autograd.grad(
                logs[index], list(parameters.values()), retain_graph=not last, allow_unused=True
            )
            for name, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    found[name].addcmul_(slope, slope, value=float(share))
        count += 1
    if not count:
        raise ValueError("there is no input to take Fisher information from: give at least one")
    return {name: value / count for name, value in found.items()}


def sampled_fisher_information(
    parameters: Mapping[str, Tensor], answers: Iterable[Callable[[], Tensor]], *, seed: int = 0
) -> dict[str, Tensor]:
    r"""Diagonal Fisher information of a model that says one of many tokens at every place of an input.

    :math:`E_x \sum_i E_{y_i \sim p(y_i|x_{<i})} (\nabla_\theta \log p(y_i|x_{<i}))^2`, of which every input gives an
    unbiased estimate: a token is drawn at every place, and the gradient of the sum of their log-probabilities is
    squared. Terms of two places vanish on average, as the draws are independent and every gradient has mean zero.

    Args:
        parameters: Of an expert by name; they need gradients.
        answers: For every input, what gives its logits, shape (places, tokens).
        seed: Of the draws.

    Returns:
        Information by name, float32, of the parameters' shapes; zero for what no answer depends on.

    Raises:
        ValueError: When there is no input.

    Reference:
        Matena and Raffel (2022), arXiv 2111.09832, section 3.1, where classes are too many to sum over.
    """
    found = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
    generator, count = torch.Generator().manual_seed(seed), 0
    for answer in answers:
        logs = F.log_softmax(answer().float(), -1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
        slopes = torch.autograd.grad(logs.gather(-1, drawn).sum(), list(parameters.values()), allow_unused=True)
        for name, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                found[name].addcmul_(slope, slope)
        count += 1
    if not count:
        raise ValueError("there is no input to take Fisher information from: give at least one")
    return {name: value / count for name, value in found.items()}


def input_grams(model: nn.Module, runs: Iterable[tuple[Run, Tensor | None]]) -> dict[str, Tensor]:
    r"""Gram matrices :math:`X^T X / n` of the inputs of every linear layer.

    Args:
        model: An expert.
        runs: What runs the model on a batch, and the mask of the batch's real tokens, shape (rows, tokens), 1 for those
            that count; None where all do.

    Returns:
        By name of the weight, float32, shape (in, in), divided by the number of inputs, so that tasks count alike.

    Raises:
        ValueError: When no linear layer was run.

    Reference:
        Jin et al. (2023), arXiv 2212.09849, section 4.1.
    """
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: Tensor | None = None

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach()
        if mask is not None and values.dim() > 2 and values.shape[:2] == mask.shape:
            values = values[mask.bool()]
        rows = values.reshape(-1, values.shape[-1]).float()
        found[name] = found.get(name, 0.0) + (rows.T @ rows).double()
        counts[name] = counts.get(name, 0) + len(rows)

    hooks = [
        module.register_forward_pre_hook(partial(look, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            for run, real in runs:
                mask = real
                run()
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("no linear layer was run: give a model with some, and at least one batch")
    return {name: (gram / max(1, counts[name])).float() for name, gram in found.items()}
