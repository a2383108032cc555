"""Chunked language-model distillation against the eager loss: wall time, peak memory and the error of its gradients.

The loss is half cross-entropy, half forward KL at temperature 2, of 2 048 tokens with hidden states of width 512 and
random heads of 49 152 and 151 936 ids, in float32. The eager side is the product with each head, `F.cross_entropy` and
`distill.functional.kd`, with torch's own backward. Times are those of loss and backward; ``time_vs_eager`` is the
higher of the two medians over interleaved rounds. The error is that of the worse gradient (hidden states, head) against
the closed form in float64 with numpy, which shares no code with either, as a relative norm; numpy's is summed over
blocks of tokens. The peak is what the process's peak resident memory grows by during loss and backward, above the
inputs, at 2 048 tokens in a fresh process; the table has 4 096 tokens beside it, and what logits alone would take.
``peak_growth`` is the greater ratio of those two peaks: 1 means that tokens x vocabulary does not count. Takes about
fifteen minutes on one core.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Figure, interleaved_times, median_ratio, write_results
from distill.functional import LanguageHead, chunked_kd, kd

TOKENS, WIDTH, TEMPERATURE = 2048, 512, 2.0
VOCABULARIES = (49_152, 151_936)
ROUNDS = {49_152: 7, 151_936: 3}

Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_problem(vocabulary: int, tokens: int) -> Problem:
    """Student's hidden states and head, the teacher's, and labels."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden, teacher_hidden = (torch.randn(tokens, WIDTH, generator=generator) for _ in range(2))
    head, teacher_head = (torch.randn(vocabulary, WIDTH, generator=generator).mul_(0.05) for _ in range(2))
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, labels


def chunked(problem: Problem) -> None:
    """Loss and backward, ours."""
    hidden, head, teacher_hidden, teacher_head, labels = problem
    hidden.grad = head.grad = None
    student, teacher = LanguageHead(head), LanguageHead(teacher_head)
    loss = chunked_kd(hidden, student, teacher_hidden, teacher, labels, temperature=TEMPERATURE).loss
    torch.autograd.backward(loss)


def eager(problem: Problem) -> None:
    """Loss and backward over whole logits."""
    hidden, head, teacher_hidden, teacher_head, labels = problem
    hidden.grad = head.grad = None
    logits, teacher = hidden @ head.T, teacher_hidden @ teacher_head.T
    loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * kd(logits, teacher, temperature=TEMPERATURE)
    torch.autograd.backward(loss)


def exact_gradients(problem: Problem, rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Gradients in float64 by hidden states and head, from the closed form."""
    hidden, head, teacher_hidden, teacher_head = (tensor.detach().double().numpy() for tensor in problem[:4])
    labels = problem[4].numpy()

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    by_hidden, by_head = np.zeros_like(hidden), np.zeros_like(head)
    for start in range(0, len(hidden), rows):
        block = slice(start, start + rows)
        logits, teacher = hidden[block] @ head.T, teacher_hidden[block] @ teacher_head.T
        by_logits = 0.5 * TEMPERATURE * (softmax(logits / TEMPERATURE) - softmax(teacher / TEMPERATURE))
        by_logits += 0.5 * softmax(logits)
        by_logits[np.arange(len(logits)), labels[block]] -= 0.5
        by_logits /= len(hidden)
        by_hidden[block] = by_logits @ head
        by_head += by_logits.T @ hidden[block]
    return by_hidden, by_head


def gradient_error(vocabulary: int) -> float:
    """Relative error of the worse gradient."""
    problem = make_problem(vocabulary, TOKENS)
    chunked(problem)
    errors = []
    for ours, exact in zip((problem[0].grad, problem[1].grad), exact_gradients(problem), strict=True):
        assert ours is not None
        errors.append(float(np.linalg.norm(ours.double().numpy() - exact) / np.linalg.norm(exact)))
    return max(errors)


def peak_megabytes(vocabulary: int, tokens: int) -> float:
    """Peak resident memory that loss and backward add, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.chunked_kd", str(vocabulary), str(tokens)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_peak(vocabulary: int, tokens: int) -> None:
    """Print what the peak grows by, for `peak_megabytes`."""
    problem = make_problem(vocabulary, tokens)
    before = high_water()
    chunked(problem)
    print(json.dumps(high_water() - before))


def high_water() -> float:
    """Most resident memory that this process ever had, in MB; that of getrusage begins with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1024


def main() -> None:
    """Measure, print and write the figures."""
    if len(sys.argv) > 1:
        measure_peak(*map(int, sys.argv[1:]))
        return
    figures: dict[str, Figure] = {}
    rows, ratios, errors, growths = [], [], [], []
    for vocabulary in VOCABULARIES:
        peak, twice = (peak_megabytes(vocabulary, tokens) for tokens in (TOKENS, 2 * TOKENS))
        errors.append(gradient_error(vocabulary))
        problem = make_problem(vocabulary, TOKENS)
        sides = {"chunked": partial(chunked, problem), "eager": partial(eager, problem)}
        times = interleaved_times(sides, repeats=ROUNDS[vocabulary])
        ratios.append(median_ratio(times["chunked"], times["eager"]))
        growths.append(twice / peak)
        figures[f"peak_mb_{vocabulary}"] = peak
        rows.append(
            {
                "vocabulary": vocabulary,
                "time_vs_eager": ratios[-1]["value"],
                "time_low": ratios[-1]["low"],
                "time_high": ratios[-1]["high"],
                "rounds": ROUNDS[vocabulary],
                "threads": torch.get_num_threads(),
                "max_rel_grad_error": errors[-1],
                "peak_mb": peak,
                "peak_mb_twice_the_tokens": twice,
                "head_gradient_mb": vocabulary * WIDTH * 4 / 2**20,
                "logits_of_one_model_mb": TOKENS * vocabulary * 4 / 2**20,
            }
        )
        print(rows[-1], flush=True)
    figures["time_vs_eager"] = max(ratios, key=lambda ratio: ratio["value"])
    figures["max_rel_grad_error"] = max(errors)
    figures["peak_growth"] = max(growths)
    print(write_results("chunked_kd", figures, {"vocabularies": rows}, seeds=1))


if __name__ == "__main__":
    main()
