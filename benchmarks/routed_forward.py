"""One routed batch against merging each sample's weights: throughput, and overhead over the plain shared model.

Encoders of MiniLM's size and with four of BERT's 768-wide layers, eight experts at rank 16 and at the paper's density
0.1, batches of 32 inputs of 1 and of 32 tokens. The rival merges dense differences for every sample, with one fused
product a tensor, and runs it alone: what published code does, without its copies. Mixture weights are given, so that
both sides skip the router. Every figure is that of the worst configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import BertConfig, BertModel

from benchmarks.common import Figure, interleaved_times, median_ratio, write_results
from twinmerge.functional.ranks import rank_from_density
from twinmerge.modeling_twin import attach

BATCH, EXPERTS = 32, 8
SIZES = {"384-wide": (384, 6, 1536), "768-wide": (768, 4, 3072)}


def main() -> None:
    """Measure every configuration and write the results."""
    policies = ("rank 16", "density 0.1")
    rows = [measure(size, policy, tokens) for size in SIZES for policy in policies for tokens in (1, 32)]
    figures: dict[str, Figure] = {
        f"speedup_{tokens}tok": min((r["speedup"] for r in rows if r["tokens"] == tokens), key=lambda s: s["value"])
        for tokens in (1, 32)
    }
    figures["overhead_vs_flop_bound"] = max((r["overhead_vs_bound"] for r in rows), key=lambda o: o["value"])
    flat = [{k: v["value"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
    write_results("routed_forward", figures, {"configurations": flat}, seeds=1)
    for row in flat:
        print(row)


def measure(size: str, policy: str, tokens: int) -> dict[str, Any]:
    """One configuration: speed-up over the dense merge, and overhead over the shared model against its FLOP bound."""
    torch.manual_seed(0)
    width, layers, inner = SIZES[size]
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=12, vocab_size=1000
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    experts = [exclusive(model, policy) for _ in range(EXPERTS)]
    shared = copy.deepcopy(model)
    twin = attach(model, [str(i) for i in range(EXPERTS)], experts).eval()
    ids = torch.randint(1000, (BATCH, tokens))
    weights = torch.rand(BATCH, EXPERTS).softmax(-1)
    dense = dense_merge(shared, experts, ids, weights)

    def plain() -> Tensor:
        return shared(input_ids=ids)[0]

    def routed() -> Tensor:
        return twin(input_ids=ids, router_weights=weights)[0]

    with torch.inference_mode():
        error = float((routed() - dense()).abs().max())
        if error > 1e-3:
            raise RuntimeError(f"the routed forward is {error} away from the dense merge")
        times = interleaved_times({"dense": dense, "routed": routed, "plain": plain}, repeats=5)
        close = interleaved_times({"routed": routed, "plain": plain}, repeats=25, warm_up=3)
    bound = flop_ratio(width, inner, tokens, experts)
    overhead = median_ratio(close["routed"], close["plain"])
    return {
        "size": size,
        "policy": policy,
        "tokens": tokens,
        "speedup": median_ratio(times["dense"], times["routed"]),
        "overhead": overhead,
        "flop_bound": bound,
        "overhead_vs_bound": {k: v / bound for k, v in overhead.items()},
        "max_error": error,
    }


def exclusive(model: BertModel, policy: str) -> dict[str, Any]:
    """Random factors for every matrix of the encoder's layers, and differences for its vectors."""
    made: dict[str, Any] = {}
    for name, value in model.named_parameters():
        if not name.startswith("encoder."):
            continue
        if value.dim() == 1:
            made[name] = 0.01 * torch.randn_like(value)
        else:
            m, n = value.shape
            rank = 16 if policy == "rank 16" else rank_from_density((m, n), 0.1)
            made[name] = (0.01 * torch.randn(m, rank), torch.randn(rank, n) / n**0.5)
    return made


def dense_merge(model: BertModel, experts: list[dict[str, Any]], ids: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    """The per-sample rival: dense differences in memory, merged and run one sample at a time."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def difference(entry: Any) -> Tensor:
        return (entry[0] @ entry[1] if isinstance(entry, tuple) else entry).flatten()

    stacks = {name: torch.stack([difference(e[name]) for e in experts]) for name in experts[0]}

    def run() -> Tensor:
        outputs = []
        for i in range(len(ids)):
            merged = dict(parameters)
            for name, stack in stacks.items():
                base = parameters[name]
                merged[name] = torch.addmv(base.flatten(), stack.t(), weights[i]).view(base.shape)
            outputs.append(functional_call(model, merged, args=(), kwargs={"input_ids": ids[i : i + 1]})[0])
        return torch.cat(outputs)

    return run


def flop_ratio(width: int, inner: int, tokens: int, experts: list[dict[str, Any]]) -> float:
    """FLOPs of a routed layer over a plain one: matrices, their factors and attention; the rest counts nothing."""
    plain = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    extra = 0
    for name, pair in experts[0].items():
        if name.startswith("encoder.layer.0.") and isinstance(pair, tuple):
            (m, rank), n = pair[0].shape, pair[1].shape[1]
            stacked = rank * EXPERTS
            materialised = tokens * (m + n) > m * n
            extra += 2 * stacked * m * n if materialised else 2 * tokens * stacked * (m + n)
    return (plain + extra) / plain


if __name__ == "__main__":
    main()
