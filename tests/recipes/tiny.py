"""A tiny base model with a real tokenizer, three small csv tasks with learnable labels, and the recipes over them."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import yaml
from lightning.pytorch import Callback
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertLMHeadModel, BertModel, PreTrainedTokenizerFast

from recipes.run import main
from tests.nursery import Nursery

ROOT = Path(__file__).parents[2]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SUBJECTS = [
    "the cook",
    "my brother",
    "a young nurse",
    "the old captain",
    "our teacher",
    "a tired driver",
    "the quiet girl",
]
PLACES = ["at home", "in the harbour", "by the river", "on the hill", "near the station", "behind the school"]
TIMES = ["today", "yesterday", "last night", "every morning", "this week", "at noon"]
# task -> label -> what its sentences say; the verbs and objects tell the tasks and their labels apart
SAYS = {
    "mood": {
        "glad": "was happy to sing,laughed with joy,enjoyed a lovely song,smiled at the bright music",
        "sad": "was sorry to leave,cried with grief,endured a bitter loss,wept at the dark news",
    },
    "topic": {
        "food": "ate warm bread,cooked rice and beans,drank sweet tea,baked a large cake",
        "sport": "kicked a ball,won a long race,jumped over the bar,threw the spear",
        "trade": "sold cheap shoes,bought ten shares,paid a high price,counted silver coins",
    },
}
AMOUNTS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def sentences(task: str, rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and labels; `count` is a regression whose label is the number in the sentence."""
    draw = random.Random(f"{task}-{seed}")
    made: dict[str, str] = {}
    labels = list(SAYS.get(task, {}))
    while len(made) < rows:
        who, where, when = draw.choice(SUBJECTS), draw.choice(PLACES), draw.choice(TIMES)
        if labels:
            label = labels[len(made) % len(labels)]
            text = f"{who} {draw.choice(SAYS[task][label].split(','))} {where} {when}"
        else:
            number = draw.randrange(len(AMOUNTS))
            text, label = f"{who} saw {AMOUNTS[number]} ships pass {where} {when}", f"{number / 2}"
        made.setdefault(text, label)
    return list(made.items())


def write_csv(path: Path, task: str, rows: int = 150, seed: int = 0) -> Path:
    """One csv task."""
    lines = [f"{text},{label}" for text, label in sentences(task, rows, seed)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


def save_base(folder: Path, *, words: int = 0, seed: int = 0, hidden: int = 32, causal: bool = False) -> Path:
    """A random BERT with a word tokenizer of the tasks' own words, as a Hugging Face folder."""
    known = sorted({w for task in (*SAYS, "count") for text, _ in sentences(task, 400) for w in text.split()})
    vocabulary = [*SPECIAL, *known, *(f"word{i}" for i in range(words))]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIAL[1]))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=64, **named)
    wrapped.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        hidden_dropout_prob=0.05,
        is_decoder=causal,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (BertLMHeadModel if causal else BertModel)(config).save_pretrained(folder)
    return folder


def task_source(folder: Path, name: str, **changes: object) -> dict[str, object]:
    """How a recipe names one of the tasks."""
    made: dict[str, object] = {"name": name, "source": "csv", "path": str(folder / f"{name}.csv")}
    if name == "count":
        made |= {"kind": "regression", "metric": "pearson_spearman"}
    return made | changes


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


class World:
    """A folder with the base, the three tasks and a cache; recipes are run in it.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = save_base(folder / "base")
        for name in (*SAYS, "count"):
            write_csv(folder / f"{name}.csv", name)

    def recipe(self, kind: str, tasks: tuple[str, ...] = ("mood", "topic"), **changes: object) -> dict[str, object]:
        """A recipe over the base and tasks; a mapping among the changes is merged into the default's."""
        made: dict[str, object] = {
            "recipe": kind,
            "name": "tiny",
            "base": str(self.base),
            "tasks": [task_source(self.folder, name) for name in tasks],
            "training": {"batch_size": 8, "max_length": 24, "learning_rate": 2.0e-3},
            "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "gradient_clip_val": 1.0},
        }
        if kind == "merge":
            made |= {
                "exclusive": {"rank": 4},
                "router": {"items": 100, "epochs": 4, "batch_size": 32, "learning_rate": 5.0e-3},
                "baselines": {"scales": [0.5]},
            }
        for key, value in changes.items():
            before = made.get(key)
            made[key] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
        return made

    @contextlib.contextmanager
    def inside(self, cache: str = "cache") -> Iterator[None]:
        """In the folder of this world, with its cache."""
        there = mock.patch.dict(os.environ, {"GAPBRIDGE_CACHE": str(self.folder / cache)})
        with contextlib.chdir(self.folder), there:
            yield

    def run(self, recipe: dict[str, object], out: str, *words: str, cache: str = "cache") -> Outcome:
        """Run the command in this process; the run folder is `out` of this world."""
        said, complained = io.StringIO(), io.StringIO()
        with self.inside(cache), contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            code = main([self._written(recipe, out), "--out", out, *words])
        return Outcome(code, said.getvalue(), complained.getvalue())

    def spawn(
        self, recipe: dict[str, object], out: str, *words: str, cache: str = "cache", patience: float = 250
    ) -> Outcome:
        """Run the command in a process of its own, which has some seconds to end."""
        done = subprocess.run(
            [sys.executable, "-m", "recipes.run", self._written(recipe, out), "--out", out, *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GAPBRIDGE_CACHE": str(self.folder / cache)},
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fork(self, nursery: Nursery, recipe: dict[str, object], out: str, *words: str, cache: str = "cache") -> Outcome:
        """Run the command in a process of its own that has imported already what is heavy."""
        command = ("-m", "recipes.run", self._written(recipe, out), "--out", out, *words)
        [done] = nursery.run(command, folder=self.folder, GAPBRIDGE_CACHE=str(self.folder / cache))
        return Outcome(done.returncode, done.stdout, done.stderr)

    def _written(self, recipe: dict[str, object], out: str) -> str:
        (self.folder / f"{out}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return f"{out}.yaml"

    def files(self) -> set[str]:
        """Everything in this world but the recipes and lock files."""
        found = (f.relative_to(self.folder) for f in self.folder.rglob("*"))
        return {str(f) for f in found if f.suffix != ".yaml" or len(f.parts) > 1}


def numbers(result: Path) -> dict[str, object]:
    """A result.json without what differs from run to run: the times."""
    content = json.loads(result.read_text(encoding="utf-8"))
    for row in content.get("rows", {}).values():
        row.pop("ms_per_input", None)
    return content


class KillOnce(Callback):
    """Sends this process a signal in the middle of a training.

    Args:
        fuse: File with the number of the signal and the name of the task; removed when the signal is sent. No file, no
            signal.
        step: Global step after which it happens.
    """

    def __init__(self, fuse: str, step: int) -> None:
        self.fuse, self.step = Path(fuse), step

    def on_train_batch_end(self, trainer, *_) -> None:
        if not self.fuse.exists() or trainer.global_step < self.step:
            return
        number, task = self.fuse.read_text().split()
        if Path(trainer.checkpoint_callback.dirpath).name == task:
            self.fuse.unlink()
            os.kill(os.getpid(), signal.Signals(int(number)))
