"""Exclusive experts: the difference of every expert to the shared expert, compressed tensor by tensor.

Lu et al., "Twin-Merging", NeurIPS 2024, arXiv 2406.15479: v_t = theta_t - theta_shared, kept as SVD_r(v_t). Matrices are
truncated; vectors (norms, biases) stay dense, as they are small and matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinmerge.functional.factorize import spectrum, truncated_svd
from twinmerge.functional.lora import lora_low_rank
from twinmerge.functional.ranks import choose_ranks, stored_dense

LoraTerms = Mapping[str, tuple[float, Tensor, Tensor]]


@dataclass
class Exclusive:
    """Compressed experts, with the certificate of every tensor.

    Attributes:
        experts: task -> parameter name -> (up, down), or a dense difference.
        ranks: task -> parameter name -> rank kept (0: left to the shared expert; the full rank when kept dense).
        residuals: task -> parameter name -> relative Frobenius residual of the truncation.
    """

    experts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    residuals: dict[str, dict[str, float]] = field(default_factory=dict)


def exclusive_experts(
    shared: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    rank: int | None = None,
    density: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
    transposed: frozenset[str] = frozenset(),
) -> Exclusive:
    """Differences to the shared expert, truncated under exactly one rank policy.

    Args:
        shared: the shared expert's parameters.
        experts: task -> parameters, same names and shapes.
        rank: singular directions kept in every matrix.
        density: fraction of min(m, n) kept, in (0, 1]; the paper's default is 0.1.
        energy: fraction of each difference's squared norm kept, in (0, 1].
        budget: bytes for all factors together, spent where they remove most squared error.
        tolerance: accepted excess residual of the randomised factorisation, see `truncated_svd`.
        seed: of its sketches.
        transposed: weights stored as (in, out), such as those of GPT-2's Conv1D; their factors are made for (out, in).

    Returns:
        An `Exclusive`; parameters that no expert changes are absent.
    """
    result = Exclusive({t: {} for t in experts}, {t: {} for t in experts}, {t: {} for t in experts})
    matrices: dict[tuple[str, str], Tensor] = {}
    for task, state in experts.items():
        for name, value in shared.items():
            if not value.is_floating_point() or torch.equal(state[name], value):
                continue
            difference = (
                state[name].double() - value.double()
                if value.dtype == torch.float64
                else (state[name].float() - value.float())
            )
            if value.dim() < 2:
                result.experts[task][name] = difference
            elif value.dim() == 3:  # fused experts: one matrix per leading index
                for i, part in enumerate(difference):
                    matrices[task, f"{name}#{i}"] = part
            else:
                flat = difference.flatten(1)
                matrices[task, name] = flat.t() if name in transposed else flat
    shapes = {key: (m.shape[0], m.shape[1]) for key, m in matrices.items()}
    spectra = {k: spectrum(m) for k, m in matrices.items()} if energy is not None or budget is not None else None
    ranks = (
        choose_ranks(shapes, rank=rank, density=density, energy=energy, budget=budget, spectra=spectra)
        if shapes
        else {}
    )
    fused: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for (task, name), matrix in matrices.items():
        kept, shape = ranks[task, name], shapes[task, name]
        parameter, _, index = name.partition("#")
        result.ranks[task][name] = kept
        result.residuals[task][name] = 1.0
        if not kept:
            continue
        if stored_dense(shape, kept) and not index:
            result.ranks[task][name], result.residuals[task][name] = min(shape), 0.0
            dense = matrix.t() if name in transposed else matrix
            result.experts[task][name] = dense.reshape(shared[name].shape)
            continue
        low = truncated_svd(matrix, kept, tolerance=tolerance, seed=seed)
        result.residuals[task][name] = low.residual
        if index:
            fused.setdefault((task, parameter), []).append((low.up, low.down))
        else:
            result.experts[task][name] = (low.up, low.down)
    for (task, parameter), parts in fused.items():
        result.experts[task][parameter] = torch.stack([up @ down for up, down in parts])
    return result


def exclusive_lora(experts: Mapping[str, LoraTerms], shared_scale: float, rank: int) -> Exclusive:
    """Exclusive experts of LoRA fine-tunes in the exact product form, no dense matrix made.

    With the shared expert theta_0 + c sum_j B_j A_j, expert t's difference to it is B_t A_t - c sum_j B_j A_j.

    Args:
        experts: task -> parameter name -> (scale, B, A), see `read_lora`.
        shared_scale: c, the coefficient of task arithmetic, or 1 / experts for the average.
        rank: kept, at least 1; layers whose stacked rank is smaller keep all of it.
    """
    result = Exclusive({t: {} for t in experts}, {t: {} for t in experts}, {t: {} for t in experts})
    for name in sorted({n for terms in experts.values() for n in terms}):
        for task in experts:
            terms = [
                (scale * ((1.0 if other == task else 0.0) - shared_scale), B, A)
                for other, expert in experts.items()
                if name in expert
                for scale, B, A in (expert[name],)
            ]
            low = lora_low_rank(terms, min(rank, terms[0][1].shape[0], terms[0][2].shape[1]))
            result.experts[task][name] = (low.up, low.down)
            result.ranks[task][name], result.residuals[task][name] = low.down.shape[0], low.residual
    return result
