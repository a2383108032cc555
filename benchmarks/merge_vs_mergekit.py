"""Merging files beside mergekit: time, memory and tensors, linear, task arithmetic and TIES; and LoRA extraction.

Both sides merge three experts of the same random checkpoint from the same mergekit configuration, each run in a process
of its own on one thread, in rounds in which each runs once, in turns the one or the other first. `time_ratio_*` is
processor time of ours over mergekit's and `peak_ratio_*` the largest resident memory likewise, Python and torch
included; the worst over the sizes is the figure. Mapped pages of files count as memory. `max_difference_fp32` is over
all values of a float32 checkpoint whose differences are as large as its weights: smaller ones are rounded to few
magnitudes, and of those that are equal at a threshold mergekit keeps any. `extraction_speedup` is the full SVD that
extraction by mergekit makes of a matrix of the larger size against ours, at rank 16, `extraction_residual_ratio` what
ours leaves over what the SVD leaves. mergekit lies in an environment of its own: `bash benchmarks/mergekit_cpu/make.sh
FOLDER` and `GAPBRIDGE_MERGEKIT=FOLDER`. Takes hours for all sizes and rounds on a busy core; `--sizes 135M --rounds 1`
is quick. With `--folder` what is measured is kept there, and the same command goes on behind the last size, method and
round.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from safetensors import safe_open

from benchmarks.cells import Cells, family_in, kept_in
from benchmarks.checkpoints import GB_1_2, SMOLLM2, Llama, Used, measured
from benchmarks.common import interleaved_times, median_ratio, write_results
from benchmarks.mergekit_cpu import ENVIRONMENT, RUN_ALL
from twinmerge.functional import truncated_svd

EXPERTS = 3
SIZES = {"135M": SMOLLM2, "615M": GB_1_2}
PARAMETERS = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.2},
}
RANK = 16
MATRIX = (2048, 5632)
SMALL = Llama(256, 704, 4, 8, 4, 1000)  # for the comparison of all values in float32
OURS = "import sys; from twinmerge.big.command import main; sys.exit(main(sys.argv[1:]))"


def configuration(models: Sequence[Path], method: str, folder: Path, dtype: str) -> Path:
    """Write a mergekit configuration into a folder of its own."""
    base, *experts = models
    content = {
        "merge_method": method,
        "models": [{"model": str(where)} for where in experts],
        "parameters": PARAMETERS[method],
        "dtype": dtype,
        **({} if method == "linear" else {"base_model": str(base)}),
    }
    file = folder / method / "theirs.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def both(file: Path, turn: int = 0) -> dict[str, Used]:
    """Run mergekit and ours once each; leaves the folders `theirs` and `ours` beside the configuration.

    Args:
        file: The configuration.
        turn: In odd ones ours runs first, so that neither always finds the files read.
    """
    ours = file.with_name("ours")
    for out in (ours, file.with_name("theirs")):
        shutil.rmtree(out, ignore_errors=True)
    runs = {
        "theirs": partial(
            measured, [str(ENVIRONMENT / "bin/python"), str(RUN_ALL), str(file.parent)], {"PYTHONPATH": ""}
        ),
        "ours": partial(measured, [sys.executable, "-c", OURS, str(file), "--out", str(ours)]),
    }
    return {side: runs[side]() for side in sorted(runs, reverse=turn % 2 == 0)}


def difference(ours: Path, theirs: Path) -> float:
    """Largest difference of any value of two merged models, whose tensors must be the same."""
    found: dict[Path, dict[str, torch.Tensor]] = {}
    for folder in (ours, theirs):
        found[folder] = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                found[folder].update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    if found[ours].keys() != found[theirs].keys():
        raise ValueError("the two merged models have other tensors")
    return max(float((found[ours][n].double() - value.double()).abs().max()) for n, value in found[theirs].items())


def rounds_of(name: str, rounds: int, folder: Path, cells: Cells) -> list[dict[str, object]]:
    """Time and memory of every method on one size, round by round."""
    rows: list[dict[str, object]] = []
    for turn in range(rounds):
        for method in PARAMETERS:
            found = cells.of(f"{name} {method} {turn}", partial(_measured, name, method, folder / name, turn))
            rows.append({"size": name, "method": method, "round": turn, **found})
    shutil.rmtree(folder / name, ignore_errors=True)
    return rows


def _measured(name: str, method: str, folder: Path, turn: int) -> dict[str, object]:
    models = family_in(folder, SIZES[name], EXPERTS)
    used = both(configuration(models, method, folder, "bfloat16"), turn)
    shutil.rmtree(folder / method)
    return {
        f"{side}_{what}": value
        for side, one in used.items()
        for what, value in (("processor_seconds", one.processor), ("seconds", one.seconds), ("peak_mb", one.peak / 1e6))
    }


def largest_difference(method: str, folder: Path) -> dict[str, float]:
    """Largest difference of any value in float32."""
    file = configuration(family_in(folder, SMALL, EXPERTS, "F32", size=1.0), method, folder, "float32")
    both(file)
    return {"difference": difference(file.with_name("ours"), file.with_name("theirs"))}


def ratios(rows: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, float]]:
    """The worst of the sizes, each the median over the rounds."""
    found: dict[str, Mapping[str, float]] = {}
    for method in PARAMETERS:
        for figure, what in (("time_ratio", "processor_seconds"), ("peak_ratio", "peak_mb")):
            by_size = []
            for size in {row["size"] for row in rows}:
                mine = [row for row in rows if (row["size"], row["method"]) == (size, method)]
                pair = [[float(str(row[f"{side}_{what}"])) for row in mine] for side in ("ours", "theirs")]
                by_size.append(median_ratio(*pair))
            found[f"{figure}_{method}"] = max(by_size, key=lambda ratio: ratio["value"])
    return found


def extraction(repeats: int) -> dict[str, float | Mapping[str, float]]:
    """One matrix factorised by ours and by the full SVD."""
    matrix = torch.randn(MATRIX, generator=torch.Generator().manual_seed(0))
    matrix *= torch.arange(1.0, MATRIX[0] + 1)[:, None] ** -0.5
    torch.set_num_threads(1)
    ours = partial(truncated_svd, matrix, RANK, tolerance=1e-3)
    times = interleaved_times(
        {"full": partial(torch.linalg.svd, matrix, full_matrices=False), "ours": ours},
        repeats=repeats,
        warm_up=0,
    )
    exact = matrix.double()  # singular values of float32 are too small by more than what is compared here
    best = torch.linalg.norm(torch.linalg.svdvals(exact)[RANK:])
    left = torch.linalg.norm(exact - ours().dense().double())
    return {
        "extraction_speedup": median_ratio(times["full"], times["ours"]),
        "extraction_residual_ratio": float(left / best),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to keep what is measured, to go on when it was stopped")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with kept_in(options.folder) as (folder, cells):
        figures = cells.of(f"extraction {options.rounds}", partial(extraction, options.rounds))
        worst = max(
            cells.of(f"float32 {method}", partial(largest_difference, method, folder / "float32"))["difference"]
            for method in PARAMETERS
        )
        for size in options.sizes:
            rows += rounds_of(size, options.rounds, folder, cells)
    named = {**ratios(rows), **figures, "max_difference_fp32": worst}
    for name, value in named.items():
        print(f"{name}: {value}", flush=True)
    if set(options.sizes) == set(SIZES):
        print(write_results("merge_vs_mergekit", named, {"runs": rows}, options.rounds))


if __name__ == "__main__":
    main()
