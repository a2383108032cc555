"""Routed against plain generation of a language model: SmolLM2-135M, four experts of rank 8, float32, greedy.

The routed side computes its mixtures from the prompts, which is one more pass of the shared expert over them, and then
generates under them; the plain side is the shared expert by transformers. Prompts of 16 tokens, 32 new tokens, in
batches of 8 and of 1; both in the same rounds, and the figure is the median of the rounds' own ratios, so that other
work on the machine weighs on both alike. The ratio of the processor's seconds stands beside that of the clock's, since
a busy machine moves it less. The experts are random: speed does not depend on what they say.
"""

import time
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import Figure, interleaved_times, median_ratio, write_results
from recipes.data.smollm2 import smollm2
from twinmerge import Router, attach

RANK, EXPERTS, PROMPT, NEW, ROUNDS = 8, 4, 16, 32, 3


def main() -> None:
    """Measure both batches and write the results."""
    torch.manual_seed(0)
    folder = smollm2()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name}
    experts = [
        {
            n: (0.01 * torch.randn(p.shape[0], RANK), torch.randn(RANK, p.shape[1]) / p.shape[1] ** 0.5)
            for n, p in matrices.items()
        }
        for _ in range(EXPERTS)
    ]
    twin = attach(
        model, [f"task{i}" for i in range(EXPERTS)], experts, Router(model.config.hidden_size, EXPERTS)
    ).eval()
    figures: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    for batch in (1, 8):
        ids = torch.randint(100, 40000, (batch, PROMPT))
        cpu: dict[str, list[float]] = {"routed": [], "plain": []}
        times = interleaved_times(
            {
                "routed": partial(generated, twin, ids, cpu["routed"]),
                "plain": partial(generated, plain, ids, cpu["plain"]),
            },
            repeats=ROUNDS,
        )
        worked = {name: seconds[-ROUNDS:] for name, seconds in cpu.items()}  # the first of all warms up
        figures[f"routed_over_plain_b{batch}"] = median_ratio(times["routed"], times["plain"])
        figures[f"routed_over_plain_cpu_b{batch}"] = median_ratio(worked["routed"], worked["plain"])
        setting = {"batch": batch, "threads": torch.get_num_threads()}
        columns = {"routed_s": times["routed"], "plain_s": times["plain"]}
        columns |= {"routed_cpu_s": worked["routed"], "plain_cpu_s": worked["plain"]}
        rows += [{**setting, **{name: column[turn] for name, column in columns.items()}} for turn in range(ROUNDS)]
        print(figures, flush=True)
    print(write_results("lm_speed", figures, {"rounds": rows}, seeds=1))


def generated(model: Any, ids: torch.Tensor, seconds: list[float]) -> None:
    """Generate greedily to one length, and note the processor's seconds."""
    start = time.process_time()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
    seconds.append(time.process_time() - start)


if __name__ == "__main__":
    main()
