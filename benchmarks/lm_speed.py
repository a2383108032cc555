"""Routed against plain generation of a language model: SmolLM2-135M, four experts of rank 8, float32, greedy.

The routed side computes its mixtures from the prompts, which is one more pass of the shared expert over them, and then
generates under them; the plain side is the shared expert by transformers. Prompts of 16 tokens, 32 new tokens, in
batches of 8 and of 1; both in the same rounds. The experts are random: speed does not depend on what they say.
"""

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
    for batch in (8, 1):
        ids = torch.randint(100, 40000, (batch, PROMPT))
        times = interleaved_times(
            {"routed": lambda ids=ids: generated(twin, ids), "plain": lambda ids=ids: generated(plain, ids)},
            repeats=ROUNDS,
        )
        figures[f"routed_over_plain_b{batch}"] = median_ratio(times["routed"], times["plain"])
        rows += [{"batch": batch, "routed_s": r, "plain_s": p} for r, p in zip(*times.values(), strict=True)]
    print(write_results("lm_speed", figures, {"rounds": rows}, seeds=1))
    print(figures)


def generated(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Greedy tokens of one length."""
    with torch.inference_mode():
        return torch.as_tensor(
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
            )
        )


if __name__ == "__main__":
    main()
