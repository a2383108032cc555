"""Exclusive experts: the difference of every expert to the shared expert, compressed tensor by tensor.

Lu et al., "Twin-Merging", NeurIPS 2024, arXiv 2406.15479: v_t = theta_t - theta_shared, kept as SVD_r(v_t). Matrices
are truncated; vectors (norms, biases) stay dense, as they are small and matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gapbridge.arguments import ArgumentError, NotNegative, Seed, check_arguments, shown
from twinmerge.functional.factorize import spectrum, truncated_svd
from twinmerge.functional.lora import lora_low_rank
from twinmerge.functional.ranks import choose_ranks, stored_dense
from twinmerge.mixture import Difference

# A matrix is left to the shared expert when its squared change is below this share of the expert's and of its own.
NEGLIGIBLE = 1e-9
LoraTerms = Mapping[str, tuple[float, Tensor, Tensor]]
RankPolicy = int | Mapping[str, Any]  # a rank, or the arguments of `exclusive_experts` that say it


@dataclass
class Exclusive:
    """Compressed experts, with the certificate of every tensor.

    Attributes:
        experts: task -> parameter name -> (up, down), or a dense difference.
        ranks: task -> parameter name -> rank kept (0: left to the shared expert; the full rank when kept dense).
        residuals: task -> parameter name -> relative Frobenius residual of the truncation.
        left_out: task -> share of its squared difference that is left to the shared expert: of dropped parameters, and
            of matrices that barely changed.
    """

    experts: dict[str, dict[str, Difference]] = field(default_factory=dict)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    residuals: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)


POLICY = ("rank", "density", "energy", "budget", "tolerance", "seed")


def rank_policy(rank: RankPolicy) -> dict[str, Any]:
    """A rank policy by the names of `exclusive_experts`; a number alone is a fixed rank.

    Raises:
        ArgumentError: for another key, or a value of another kind.

    >>> rank_policy(8)
    {'rank': 8}
    >>> rank_policy({"rnk": 8})
    Traceback (most recent call last):
    gapbridge.arguments.ArgumentError: rank: no rank policy is called 'rnk'; choose one of rank, density, energy, \
budget, and tolerance and seed beside it.
    """
    policy = dict(rank) if isinstance(rank, Mapping) else {"rank": rank}
    if odd := next((key for key in policy if key not in POLICY), None):
        raise ArgumentError(
            "rank",
            f"no rank policy is called {shown(odd)}; choose one of {', '.join(POLICY[:4])}, and tolerance and seed "
            "beside it.",
        )
    try:
        check_arguments(exclusive_experts, policy)
    except ArgumentError as error:
        raise ArgumentError(f"rank.{error.name}" if isinstance(rank, Mapping) else "rank", error.message) from error
    return policy


def exclusive_experts(
    shared: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    rank: int | None = None,
    density: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    tolerance: NotNegative = 0.01,
    seed: Seed = 0,
    transposed: frozenset[str] = frozenset(),
    kernels: frozenset[str] = frozenset(),
    dropped: frozenset[str] = frozenset(),
) -> Exclusive:
    """Differences to the shared expert, truncated under exactly one rank policy.

    One difference is in memory at a time, and twice computed: its shape (or spectrum) decides the ranks first.

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
        kernels: three-dimensional weights that are convolution kernels, factored as (out, in * width); all other
            three-dimensional parameters are fused experts, one matrix per leading index.
        dropped: parameters whose differences are left to the shared expert.

    Returns:
        An `Exclusive`; parameters that no expert changes are absent, and matrices whose squared change is below
        a billionth of their expert's and of their own squared norm.

    Raises:
        ValueError: when not exactly one policy is given or its value is out of range, and for weights that cannot be
            factorised (NaN).
    """
    result = Exclusive({t: {} for t in experts}, {t: {} for t in experts}, {t: {} for t in experts})
    changed: dict[tuple[str, str], int] = {}  # (task, parameter) -> its number of matrices

    def matrices(task: str, name: str) -> Tensor:
        difference = _difference(experts[task][name], shared[name])
        if difference.dim() == 3 and name not in kernels:
            return difference
        flat = difference.flatten(1)
        return (flat.t() if name in transposed else flat)[None]

    for task, state in experts.items():
        names, result.left_out[task] = _kept(shared, state, dropped)
        for name in names:
            if shared[name].dim() < 2:
                result.experts[task][name] = _difference(state[name], shared[name])
            else:
                changed[task, name] = len(shared[name]) if shared[name].dim() == 3 and name not in kernels else 1
    if not any(result.left_out.values()) and not dropped:
        result.left_out.clear()
    keys = [(task, name, i) for (task, name), count in changed.items() for i in range(count)]
    shapes = {key: _shape(shared[key[1]], key[1] in transposed, key[1] in kernels) for key in keys}
    asked = energy is not None or budget is not None
    spectra = {(t, n, i): spectrum(m) for t, n in changed for i, m in enumerate(matrices(t, n))} if asked else None
    given = {"rank": rank, "density": density, "energy": energy, "budget": budget}
    ranks = choose_ranks(shapes, **given, spectra=spectra) if shapes else {}  # type: ignore[arg-type]
    for (task, name), count in changed.items():
        stack, kept = matrices(task, name), [ranks[task, name, i] for i in range(count)]
        dense = stored_dense(shapes[task, name, 0], max(kept))
        lows = []
        for i, matrix in enumerate(stack):
            label = name if stack.shape[0] == 1 else f"{name}#{i}"
            result.ranks[task][label] = min(shapes[task, name, 0]) if dense else kept[i]
            result.residuals[task][label] = 0.0 if dense else 1.0
            if kept[i] and not dense:
                low = truncated_svd(matrix, kept[i], tolerance=tolerance, seed=seed)
                result.residuals[task][label] = low.residual
                lows.append((i, low.up, low.down))
        if dense:
            whole = stack if len(stack) > 1 else stack[0].t() if name in transposed else stack[0]
            result.experts[task][name] = whole.reshape(shared[name].shape)
        elif lows:
            fused = shared[name].dim() == 3 and name not in kernels
            result.experts[task][name] = _padded(lows, stack) if fused else lows[0][1:]
    return result


def _kept(
    shared: Mapping[str, Tensor], state: Mapping[str, Tensor], dropped: frozenset[str]
) -> tuple[list[str], float]:
    """Parameters whose differences an expert keeps, and the share of its squared difference that it does not."""
    squares: dict[str, float] = {}
    for name, value in shared.items():
        if value.is_floating_point() and not torch.equal(state[name].to(value), value):
            squares[name] = float(_difference(state[name], value).double().square().sum())
    total = sum(squares.values())
    left = {n for n, q in squares.items() if n in dropped or (q <= NEGLIGIBLE * total and _barely(shared[n], q))}
    return [n for n in squares if n not in left], sum(squares[n] for n in left) / total if total else 0.0


def _barely(weight: Tensor, square: float) -> bool:
    """Whether a difference of this squared norm is small beside the matrix itself too."""
    return weight.dim() > 1 and square <= NEGLIGIBLE * float(weight.double().square().sum())


def _difference(expert: Tensor, shared: Tensor) -> Tensor:
    wide = torch.float64 if shared.dtype == torch.float64 else torch.float32
    return expert.to(shared.device, wide) - shared.to(wide)


def _shape(value: Tensor, transposed: bool, kernel: bool) -> tuple[int, int]:
    if value.dim() == 3 and not kernel:
        return value.shape[1], value.shape[2]
    m, n = value.shape[0], value[0].numel()
    return (n, m) if transposed else (m, n)


def _padded(lows: list[tuple[int, Tensor, Tensor]], stack: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of fused experts padded to one rank: (leading, m, r) and (leading, r, n)."""
    rank = max(up.shape[1] for _, up, _ in lows)
    ups = stack.new_zeros(stack.shape[0], stack.shape[1], rank)
    downs = stack.new_zeros(stack.shape[0], rank, stack.shape[2])
    for i, up, down in lows:
        ups[i, :, : up.shape[1]], downs[i, : down.shape[0]] = up, down
    return ups, downs


def exclusive_lora(experts: Mapping[str, LoraTerms], shared_scale: float, rank: int) -> Exclusive:
    """Exclusive experts of LoRA fine-tunes in the exact product form, no dense matrix made.

    With the shared expert theta_0 + c sum_j B_j A_j, expert t's difference to it is B_t A_t - c sum_j B_j A_j.

    Args:
        experts: task -> parameter name -> (scale, B, A), see `read_lora`.
        shared_scale: c, the coefficient of task arithmetic, or 1 / experts for the average.
        rank: kept, at least 1; layers whose stacked rank is smaller keep all of it.

    Raises:
        ValueError: for a rank below 1, or factors that are not finite or do not fit each other.
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}; keep at least 1 direction of every exclusive expert.")
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
