"""Certified truncated SVD against full SVD and torch.svd_lowrank: speed-up and excess residual at rank 64.

Every shape is factorised on three spectra of the kind task vectors have: a power law, Gaussian noise (flat, the
hardest for any sketch) and rank 32 plus 1 % noise. The full SVD is ``torch.linalg.svd(full_matrices=False)`` in
float32. A speed-up figure is the lowest median over spectra and thread counts (one thread, and all cores), so it holds
for each of them. ``max_excess_residual`` is the highest excess of the true residual, in float64, over that of the best
rank-64 approximation, over all shapes, spectra and sketch seeds. Takes about five minutes.
"""

import math
import os
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import interleaved_times, median_ratio, write_results
from twinmerge.functional import truncated_svd

RANK = 64
SEEDS = 3
REPEATS = 5
SHAPES = {"speedup_768x3072": (768, 3072), "speedup_3072x768": (3072, 768), "speedup_2048": (2048, 2048)}
SPECTRA = ("power law", "flat", "low rank + noise")


def make_matrix(shape: tuple[int, int], spectrum: str) -> Tensor:
    """A float32 matrix with the named spectrum and random singular vectors."""
    generator = torch.Generator().manual_seed(sum(shape))
    noise = torch.randn(shape, generator=generator)
    if spectrum == "flat":
        return noise
    if spectrum == "power law":
        U, S, Vh = torch.linalg.svd(noise, full_matrices=False)
        product: Tensor = (U * torch.arange(1.0, len(S) + 1) ** -0.5) @ Vh
        return product
    left, right = torch.randn(shape[0], 32, generator=generator), torch.randn(32, shape[1], generator=generator)
    return left @ right / math.sqrt(32) + 0.01 * noise


def excess(matrix: Tensor, product: Tensor, best: float) -> float:
    """Residual of an approximation over the best one, minus 1."""
    return float(torch.linalg.norm(matrix.double() - product.double())) / best - 1


def low_rank_product(matrix: Tensor, passes: int) -> Tensor:
    """The approximation by torch.svd_lowrank with the usual oversampling."""
    U, S, V = torch.svd_lowrank(matrix, q=RANK + 8, niter=passes)
    product: Tensor = (U[:, :RANK] * S[:RANK]) @ V[:, :RANK].T
    return product


def main() -> None:
    """Measure, print and write the figures."""
    torch.manual_seed(0)
    rows, figures, worst = [], {}, 0.0
    for figure, shape in SHAPES.items():
        speedups = []
        for spectrum in SPECTRA:
            matrix = make_matrix(shape, spectrum)
            best = float(torch.linalg.norm(torch.linalg.svdvals(matrix.double())[RANK:]))
            excesses = {
                "ours": max(
                    excess(matrix, truncated_svd(matrix, RANK, seed=seed).dense(), best) for seed in range(SEEDS)
                ),
                "svd_lowrank niter=2": max(excess(matrix, low_rank_product(matrix, 2), best) for _ in range(SEEDS)),
                "svd_lowrank niter=4": max(excess(matrix, low_rank_product(matrix, 4), best) for _ in range(SEEDS)),
            }
            worst = max(worst, excesses["ours"])
            for threads in sorted({1, len(os.sched_getaffinity(0))}):
                torch.set_num_threads(threads)
                times = interleaved_times(
                    {
                        "full": partial(torch.linalg.svd, matrix, full_matrices=False),
                        "ours": partial(truncated_svd, matrix, RANK),
                        "svd_lowrank niter=2": partial(torch.svd_lowrank, matrix, q=RANK + 8, niter=2),
                        "svd_lowrank niter=4": partial(torch.svd_lowrank, matrix, q=RANK + 8, niter=4),
                    },
                    repeats=REPEATS,
                )
                for method, value in excesses.items():
                    ratio = median_ratio(times["full"], times[method])
                    row = {
                        "shape": f"{shape[0]}x{shape[1]}",
                        "spectrum": spectrum,
                        "threads": threads,
                        "method": method,
                    }
                    rows.append({**row, "speedup": ratio, "excess_residual": value})
                    print(*row.values(), f"{ratio['value']:.1f}x", f"{value:.3%}", sep="  ", flush=True)
                speedups.append(median_ratio(times["full"], times["ours"]))
        figures[figure] = min(speedups, key=lambda ratio: ratio["value"])
    print(write_results("factorize", {**figures, "max_excess_residual": worst}, {"cases": rows}, SEEDS))


if __name__ == "__main__":
    main()
