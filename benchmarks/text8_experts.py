"""The experts of `merge_text8`, made by plain transformers and torch: nothing of this project trains or saves them.

``python -m benchmarks.text8_experts`` fine-tunes one `AutoModelForSequenceClassification` a task, regime and seed as
any script would: cross-entropy, AdamW, a rate that rises and falls, embeddings as they are. In the regime `fixed` the
pooler and one random orthonormal classifier are never trained either, so that all task knowledge is in the encoder; in
`trained` both are. Folders hold what `save_pretrained` writes and nothing else; finished ones are kept, so that an
interrupted run goes on where it stopped.
"""

import shutil
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from recipes.data.models import resolve_model
from recipes.data.sources import load_task
from recipes.data.splits import Split, TextTask
from recipes.data.task_source import TaskSource

REGIMES = ("trained", "fixed")
SEEDS = (0, 1, 2)
TASKS = ("newsgroups", "reuters8", "election", "spam", "trec", "movie", "amazon", "nyt")
ROOT = Path("runs") / "text8" / "experts"
ROWS, EPOCHS, BATCH, LENGTH, RATE, WARMUP = 960, 3, 16, 48, 2e-4, 0.1


def expert(regime: str, seed: int, task: str) -> Path:
    """Folder of one expert."""
    return ROOT / f"{regime}-{seed}" / task


def make(regime: str, seed: int, task: str) -> float:
    """Fine-tune and save one expert.

    Returns:
        Its accuracy on validation; NaN where the folder was there already.
    """
    target = expert(regime, seed, task)
    if target.is_dir():
        return float("nan")
    data = load_task(TaskSource(name=task, max_train=ROWS, max_validation=150, max_test=300), seed)
    base = resolve_model("shipped:minilm")
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    torch.manual_seed(zlib.crc32(f"{task} {seed}".encode()))
    names = {"id2label": dict(enumerate(data.labels)), "label2id": {n: i for i, n in enumerate(data.labels)}}
    model = AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=False, **names)
    model.base_model.embeddings.requires_grad_(False)
    if regime == "fixed":
        model.base_model.pooler.requires_grad_(False)
        model.classifier.requires_grad_(False)
        nn.init.orthogonal_(model.classifier.weight)
        nn.init.zeros_(model.classifier.bias)
    train(model, tokenizer, data.train)
    score = accuracy(model, tokenizer, data)
    part = target.with_name(f".{task}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(target)
    return score


def batches(tokenizer: PreTrainedTokenizerBase, rows: Split, order: list[int]) -> "DataLoader[dict[str, Tensor]]":
    """Padded batches of rows with their labels."""

    def collate(picked: list[int]) -> dict[str, Tensor]:
        texts = [rows.texts[i] for i in picked]
        encoded = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([rows.labels[i] for i in picked])}

    return DataLoader(order, batch_size=BATCH, collate_fn=collate)  # type: ignore[arg-type]  # a list is a dataset


def by_length(tokenizer: PreTrainedTokenizerBase, rows: Split) -> list[int]:
    """A new random order of the rows in which those of one batch are about as long; saves padding."""
    lengths = [len(ids) for ids in tokenizer(rows.texts, truncation=True, max_length=LENGTH)["input_ids"]]
    order = torch.randperm(len(rows)).tolist()
    near = [sorted(order[at : at + 20 * BATCH], key=lengths.__getitem__) for at in range(0, len(order), 20 * BATCH)]
    groups = [one[at : at + BATCH] for one in near for at in range(0, len(one), BATCH)]
    return [row for group in torch.randperm(len(groups)).tolist() for row in groups[group]]


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Split) -> None:
    """AdamW on cross-entropy with a linear rate."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(rows) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    for _ in range(EPOCHS):
        for batch in batches(tokenizer, rows, by_length(tokenizer, rows)):
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TextTask) -> float:
    """Share of the validation rows that are answered rightly."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for batch in batches(tokenizer, data.validation, list(range(len(data.validation)))):
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(data.validation)


def main() -> None:
    """Make what is missing; arguments limit the regimes."""
    for regime in [one for one in REGIMES if one in sys.argv[1:] or not sys.argv[1:]]:
        for seed in SEEDS:
            for task in TASKS:
                print(f"{regime} {seed} {task}: validation accuracy {make(regime, seed, task):.3f}", flush=True)


if __name__ == "__main__":
    main()
