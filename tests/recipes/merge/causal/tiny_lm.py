"""A tiny random Llama with a tokenizer of words and a chat template, and three tasks that it can learn."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.recipes import tiny

SPECIAL = ["[PAD]", "[UNK]", "<end>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ ' <end>' }}"
    "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def save_llama(folder: Path, *, seed: int = 0, hidden: int = 32, read: bool = False) -> Path:
    """The base as a Hugging Face folder."""
    known = sorted(
        {w for task in tiny.SAYS for text, label in tiny.sentences(task, 400) for w in f"{text} {label}".split()}
    )
    vocabulary = [*SPECIAL, *known, *["is", "the", "mood", "topic", "of", ":", "?"]]
    vocabulary = list(dict.fromkeys(vocabulary))
    named = dict(zip(("pad_token", "unk_token", "eos_token"), SPECIAL[:3], strict=True))
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIAL[1]))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=64,
        additional_special_tokens=["<user>", "<assistant>"],
        **named,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        if read:
            _read(model, wrapped, seed)
        model.save_pretrained(folder)
    return folder


def _read(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Let the base learn the tasks with every label taken for the next: an adapter has something to adapt then."""
    draw, texts = random.Random(seed), []
    for name, says in tiny.SAYS.items():
        labels = list(says)
        for text, right in tiny.sentences(name, 100):
            label = labels[(labels.index(right) + 1) % len(labels)]
            texts += [f"{text} {name} : {label} <end>", f"<user> {text} <assistant> {label} <end>"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(5):
        draw.shuffle(rows)
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            longest = max(map(len, part))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
            said = torch.tensor([[-100] * (len(row) - 2) + row[-2:] + [-100] * (longest - len(row)) for row in part])
            model(input_ids=ids, attention_mask=(ids != 0).long(), labels=said).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def source(folder: Path, name: str, metric: str = "exact_match", **language: object) -> dict[str, object]:
    """A task of a recipe: the label of a sentence, to be said by the model."""
    options: dict[str, object] = {"template": f"{{text}} {name} :", "metric": metric, **language}
    if metric not in ("choice", "perplexity"):
        options |= {"generation": {"max_new_tokens": 3}}
    return tiny.task_source(folder, name) | {"language": options}


def chats(folder: Path, rows: int = 60) -> dict[str, object]:
    """A task of chats in a jsonl file, the last answer a mood."""
    lines = []
    for text, label in tiny.sentences("mood", rows):
        said = [("user", text), ("assistant", label), ("user", f"{text} is ?"), ("assistant", label)]
        lines.append(json.dumps({"talk": [{"role": role, "content": content} for role, content in said]}))
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    language = {"form": "chat", "metric": "token_f1", "generation": {"max_new_tokens": 3}}
    where = {"source": "jsonl", "path": str(folder / "chats.jsonl"), "text": ["talk"]}
    return {"name": "chats", **where, "language": language}


class World(tiny.World):
    """A folder with the Llama as base; see `tests.recipes.tiny.World`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base = save_llama(folder / "llama", read=True)

    def causal(self, kind: str, tasks: list[dict[str, object]], **changes: object) -> dict[str, object]:
        """A recipe over language tasks."""
        training = {"model": "causal", "batch_size": 8, "max_length": 32, "learning_rate": 1.0e-2}
        given = changes.pop("training", {})
        made = self.recipe(kind, (), training=training | dict(given), **changes)
        return made | {"tasks": tasks}
