"""Random Llama-shaped checkpoints on disk, and programs measured from outside: what benchmarks of merging share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from twinmerge.big.writing import Entry, Writer, shards_of

_POOL = 2**23 + 8191  # random numbers that all tensors are cut from


@dataclass(frozen=True)
class Llama:
    """Sizes of a model of Llama's shape."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors."""
        narrow = self.hidden // self.heads * self.key_value_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            start = f"model.layers.{layer}"
            found |= {
                f"{start}.input_layernorm.weight": (self.hidden,),
                f"{start}.mlp.down_proj.weight": (self.hidden, self.inner),
                f"{start}.mlp.gate_proj.weight": (self.inner, self.hidden),
                f"{start}.mlp.up_proj.weight": (self.inner, self.hidden),
                f"{start}.post_attention_layernorm.weight": (self.hidden,),
                f"{start}.self_attn.k_proj.weight": (narrow, self.hidden),
                f"{start}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                f"{start}.self_attn.q_proj.weight": (self.hidden, self.hidden),
                f"{start}.self_attn.v_proj.weight": (narrow, self.hidden),
            }
        found["model.norm.weight"] = (self.hidden,)
        return found if self.tied else {**found, "lm_head.weight": (self.vocabulary, self.hidden)}

    def entries(self, dtype: str = "BF16") -> dict[str, Entry]:
        """Its tensors as the header of a file has them."""
        return {name: (dtype, shape) for name, shape in self.shapes().items()}

    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        }


SMOLLM2 = Llama(576, 1536, 30, 9, 3, 49152, tied=True)  # 135M parameters
GB_1_2 = Llama(2048, 5632, 11, 32, 4, 32000)  # 1.2 GB in bfloat16
SHALLOW = Llama(2048, 5632, 2, 32, 4, 32000)  # the tensors of the two below, in two layers
GB_3 = Llama(2048, 5632, 31, 32, 4, 32000)  # 3 GB in bfloat16
LLAMA_7B = Llama(4096, 11008, 32, 32, 32, 32000)
LLAMA_70B = Llama(8192, 28672, 80, 64, 8, 32000)


def write_family(
    folder: Path, model: Llama, experts: int, dtype: str = "BF16", shard: int = 10**9, *, size: float = 0.02
) -> list[Path]:
    """A random base and fine-tunes of it, whose differences are `size` times as large as it; the base comes first."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(_POOL, generator=generator)
    made = []
    for index in range(experts + 1):
        where = folder / ("base" if index == 0 else f"expert{index}")
        where.mkdir(parents=True)
        (where / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")
        writer = Writer(where, shards_of(model.entries(dtype), shard))
        for number, (name, shape) in enumerate(model.shapes().items()):
            _fill(writer, name, prod(shape), noise, number, index, size)
        writer.close()
        made.append(where)
    return made


def _fill(writer: Writer, name: str, count: int, noise: torch.Tensor, number: int, expert: int, share: float) -> None:
    """Random values of a tensor: a stretch of the noise, for an expert with a share of another one added."""
    step = 2**20
    for start in range(0, count, step):
        size = min(step, count - start)
        at = (start + 1_000_003 * number) % (_POOL - step)
        values = noise[at : at + size]
        if expert:
            other = (start + 1_000_003 * number + 777_767 * expert) % (_POOL - step)
            values = values + share * noise[other : other + size]
        writer.write(name, start, values)


@dataclass(frozen=True)
class Used:
    """What a program used.

    Attributes:
        seconds: On the clock.
        processor: Seconds of processor time, its own and the system's.
        peak: Largest resident memory in bytes.
    """

    seconds: float
    processor: float
    peak: int


# A process begins with the memory of the one that started it, as far as the system counts: so a small one starts it.
_STARTER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=2)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Used:
    """Run a program to its end on one thread.

    Raises:
        RuntimeError: When it fails, with the end of what it said.
    """
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
    words = [sys.executable, "-S", "-c", _STARTER, *command]
    done = subprocess.run(words, env=given, capture_output=True, text=True, check=True)
    code, seconds, processor, peak = done.stdout.split()[-4:]
    if int(code):
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {done.stderr[-2000:]}")
    return Used(float(seconds), float(processor), int(peak) * 1024)
