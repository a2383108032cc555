"""SmolLM2-135M into itself with a fifth of its layers taken out: KL both ways, JSD, own samples, sequences, labels.

The text is Python's standard library, which every machine has. Six of thirty layers, evenly spaced, are taken out. What
is left is first brought back to speech by forward KL, as GKD begins with a fine-tuned student, since own samples of
nonsense teach nothing; all methods go on from there with as many updates. One run of the recipe a seed trains all
students side by side on one teacher pass, as a user would (`python -m recipes.run`); it is a cell, kept under
``runs/benchmarks``, and one that was stopped goes on from its checkpoint. ``perplexity_<method>`` is that of test
blocks, which begin anywhere in a file, and ``accuracy_<method>`` the share of right next tokens. ``choice_<method>`` is
the task: of four texts, which one goes on from a given beginning, by the student's log-probability; a guess is right in
a quarter. The comparison can tell where the beginning has recovered much of what was cut off (``perplexity_cut`` and
``perplexity_start``) and is still worse than the
teacher; both are printed before it starts. ``on_policy_over_plain_loop`` is the time of the module's update on own
samples over that of the same loop by hand, which generates by transformers, computes whole logits and differentiates
them; ``peak_memory_gb`` is the resident memory of a process that makes such updates, and ``peak_over_plain_loop`` that
over the loop's. An hour of one free core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.cells import kept_in
from benchmarks.common import Figure, median_ratio, write_results
from distill import DistillModule, TokenData
from recipes.data.smollm2 import smollm2
from recipes.distill.shorter import shorter, spread
from recipes.running.intervals import interval
from recipes.running.quiet import hush_libraries, silent_trainer

SEEDS, LAYERS, LENGTH, PROMPT, BATCH, BLOCKS, TEST = 3, 24, 48, 24, 4, 192, 64
START, START_SEED, RATE = 400, 1000, 3.0e-4  # blocks and seed of the beginning; learning rate
ROUNDS, STEPS = 7, 2
METHODS = {
    "ce": {"hard": {}},
    "forward_kl": {"kd": {}},
    "reverse_kl": {"jsd": {"beta": 1.0}},
    "jsd": {"jsd": {"beta": 0.5}},
    "reverse_kl_on_policy": {"jsd": {"beta": 1.0}},
    "jsd_on_policy": {"jsd": {"beta": 0.5}},
    "sequence": {"hard": {}},
}
SAMPLES = {"reverse_kl_on_policy": {"own": 1.0}, "jsd_on_policy": {"own": 0.5}, "sequence": {"teacher": 1.0}}


def main() -> None:
    """Make what is missing and write the results; `--blocks` and `--seeds` make a small trial, which writes nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/distill_lm"))
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    hush_libraries()
    with kept_in(given.folder) as (folder, cells):
        start = cells.of("start", lambda: begun(folder, min(START, 5 * given.blocks)))
        if not start["teacher"] < start["start"] < start["cut"] / 2:
            raise SystemExit(f"the comparison cannot tell: perplexities of cut, start and teacher are {start}")
        scores = [
            cells.of(f"seed{seed}", lambda s=seed: trained(folder, s, given.blocks)) for seed in range(given.seeds)
        ]
        speed = cells.of("speed", timed)
        memory = {
            side: cells.of(f"memory_{side}", lambda s=side: {"gb": peak_of(s)})["gb"] for side in ("ours", "plain")
        }
    figures: dict[str, Figure] = {"on_policy_over_plain_loop": median_ratio(speed["ours"], speed["plain"])}
    figures |= {"peak_memory_gb": memory["ours"], "peak_over_plain_loop": memory["ours"] / memory["plain"]}
    for name in METHODS:
        for figure in ("perplexity", "accuracy", "choice"):
            figures[f"{figure}_{name}"] = interval([row[name][figure] for row in scores])
    figures |= {f"perplexity_{name}": value for name, value in start.items()}
    figures |= {f"{figure}_teacher": scores[0]["teacher"][figure] for figure in ("accuracy", "choice")}
    rows = [{"seed": i, "method": name, **found} for i, row in enumerate(scores) for name, found in row.items()]
    for name, value in figures.items():
        print(name, value)
    if (given.blocks, given.seeds) == (BLOCKS, SEEDS):
        print(write_results("distill_lm", figures, {"students": rows, "updates": [dict(speed)]}, seeds=SEEDS))


def begun(folder: Path, blocks: int) -> dict[str, float]:
    """Make the student that all methods begin with; perplexities of it, of what it was cut to, and of the teacher."""
    cut = folder / "cut"
    if not (cut / "tokenizer_config.json").exists():
        student().save_pretrained(cut)
        AutoTokenizer.from_pretrained(smollm2()).save_pretrained(cut)
    made = recipe(START_SEED, blocks, {"kd": {"kd": {}}})
    made["student"] = {"model": str(cut.resolve()), "options": {"dtype": "float32"}}
    finished(folder / "start", made)
    places = {"cut": cut, "start": folder / "start/students/kd/model", "teacher": smollm2()}
    return {name: perplexity(model_of(place), test_blocks()) for name, place in places.items()}


def recipe(seed: int, blocks: int, methods: dict[str, Any]) -> dict[str, Any]:
    """The YAML of a run, but for its student."""
    return {
        "recipe": "distill",
        "name": f"lm{seed}",
        "seed": seed,
        "teacher": {"model": "shipped:smollm2", "options": {"dtype": "float32"}},
        "data": {"source": "files", "path": "python", "length": LENGTH, "rows": blocks, "test_rows": TEST},
        "regime": "A2",
        "changes": {
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": "adamw",
            "learning_rate": RATE,
            "weight_decay": 0.01,
            "schedule_on": "update",
            "warmup_epochs": 0.1,
        },
        "methods": methods,
        "prompt_tokens": PROMPT,
        "log_gradients_every": 0,
        "trainer": {
            "gradient_clip_val": 1.0,
            "accelerator": "cpu",
            "devices": 1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
        },
    }


def trained(folder: Path, seed: int, blocks: int) -> dict[str, Any]:
    """Figures of every method of a seed, and of the teacher."""
    place = folder / f"seed{seed}"
    made = recipe(seed, blocks, METHODS) | {"samples": SAMPLES}
    made["student"] = {"model": str((folder / "start/students/kd/model").resolve()), "options": {"dtype": "float32"}}
    found = finished(place, made)
    models = {name: place / "students" / name / "model" for name in METHODS} | {"teacher": smollm2()}
    return {
        name: {
            "perplexity": float(np.exp(found[name]["loss"])),
            "accuracy": found[name]["accuracy"],
            "choice": chosen(model_of(model), test_blocks()),
        }
        for name, model in models.items()
    }


def test_blocks() -> Tensor:
    """The blocks that the recipe tests on, shape (TEST, LENGTH)."""
    data = TokenData(python_files(), str(smollm2()), length=LENGTH, batch_size=BATCH, evaluation_blocks=TEST)
    data.setup()
    return data.splits["test"].tokens


@torch.no_grad()
def perplexity(model: Any, tokens: Tensor) -> float:
    """Of the next tokens of all blocks."""
    logs = torch.cat([model(input_ids=part).logits[:, :-1].log_softmax(-1) for part in tokens.split(BATCH)])
    return float(logs.gather(-1, tokens[:, 1:, None]).mean().neg().exp())


def finished(place: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Rows of a run's result, after making it, or going on with it, where it is not whole."""
    from recipes.run import main as run

    file = place.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    if not (place / "result.json").exists():
        more = ["--resume"] if (place / "recipe.yaml").exists() else []
        if run([str(file), "--out", str(place), *more]):
            raise RuntimeError(f"the run {place} failed; see what it said above")
    found: dict[str, Any] = json.loads((place / "result.json").read_text(encoding="utf-8"))["rows"]
    return found


def python_files() -> list[Path]:
    """The files that the recipe reads under `path: python`."""
    import sysconfig

    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def model_of(folder: Path, **options: Any) -> Any:
    """A causal language model in float32 and eval mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **options).eval()


@torch.no_grad()
def chosen(model: Any, tokens: Tensor) -> float:
    """Share of texts whose own end is likelier than the ends of the three texts after it."""
    right = 0
    for row in range(len(tokens)):
        others = [(row + step) % len(tokens) for step in range(4)]
        texts = torch.stack([torch.cat([tokens[row, :PROMPT], tokens[other, PROMPT:]]) for other in others])
        logs = model(input_ids=texts).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        right += int(logs.gather(-1, texts[:, PROMPT:, None]).sum((1, 2)).argmax() == 0)
    return right / len(tokens)


def timed() -> dict[str, Any]:
    """Seconds of an update of both sides, in rounds, of which the first warms up."""
    sides = {"ours": ours(), "plain": plain()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        for name, update in sides.items():
            seconds = update(turn)
            times[name] += [seconds] if turn else []
    return times


def texts(turn: int) -> list[Tensor]:
    """Batches of a round; the first update, which may prepare something, is not timed."""
    draw = torch.Generator().manual_seed(turn)
    return [torch.randint(100, 40000, (BATCH, LENGTH), generator=draw) for _ in range(1 + STEPS)]


def student() -> Any:
    """The teacher without some of its layers."""
    teacher = model_of(smollm2())
    return shorter(teacher, spread(teacher.config.num_hidden_layers, LAYERS))


def endless() -> Any:
    """The student that never ends a text, so that both sides say as much."""
    made = student()
    made.config.eos_token_id = made.generation_config.eos_token_id = None
    return made


class Watch(lightning.Callback):
    """Looks at the clock after every update."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """One more update is done."""
        self.ends.append(time.perf_counter())


def ours() -> Callable[[int], float]:
    """Updates by `DistillModule` under a Trainer."""
    module = DistillModule(
        endless(),
        model_of(smollm2()),
        {"jsd": {"beta": 0.5}},
        task="language",
        samples={"student": {"own": 1.0}},
        prompt_tokens=PROMPT,
        changes={"optimizer": "adamw", "learning_rate": 1e-4, "batch_size": BATCH, "epochs": 1, "warmup_epochs": 0},
        log_gradients_every=0,
    )

    def update(turn: int) -> float:
        rows, watch = [{"input_ids": ids, "labels": ids} for ids in texts(turn)], Watch()
        fit = silent_trainer(max_epochs=1, limit_val_batches=0, callbacks=[watch])
        fit.fit(module, train_dataloaders=DataLoader(rows, batch_size=None))
        return (watch.ends[-1] - watch.ends[0]) / STEPS

    return update


def plain() -> Callable[[int], float]:
    """Updates as one would write them by hand."""
    speaker, teacher = endless(), model_of(smollm2())
    optimizer = torch.optim.AdamW(speaker.parameters(), 1e-4, weight_decay=0.02)
    new, mask = LENGTH - PROMPT, torch.ones(BATCH, PROMPT, dtype=torch.long)

    def update(turn: int) -> float:
        ends: list[float] = []
        for ids in texts(turn):
            speaker.eval()
            said = speaker.generate(
                ids[:, :PROMPT], attention_mask=mask, max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0
            )
            speaker.train()
            with torch.no_grad():
                log_t = teacher(said).logits[:, PROMPT - 1 : -1].log_softmax(-1)
            log_s = speaker(said).logits[:, PROMPT - 1 : -1].log_softmax(-1)
            log_m = torch.logaddexp(log_t, log_s) - np.log(2)
            parts = [
                F.kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1).mean() for log_p in (log_t, log_s)
            ]
            loss = 0.5 * (parts[0] + parts[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append(time.perf_counter())
        return (ends[-1] - ends[0]) / STEPS

    return update


def peak_of(side: str) -> float:
    """Peak of the resident memory of a new process while it makes a side's updates, in GB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_peak, (side,)))


def _peak(side: str) -> float:
    torch.set_num_threads(1)
    hush_libraries()
    update = {"ours": ours, "plain": plain}[side]()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # from here on: reading the models takes more
    update(0)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1e6


if __name__ == "__main__":
    main()
