"""A language teacher that answers once: its continuations and its largest logits kept on disk, and texts read apart.

Each function here gives what `TokenData.answers` takes: from the number of a block and its tokens to further fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from distill.cache import Identity, TeacherCache, checksums
from distill.cached_views import weights_digest
from distill.compact import as_fields
from distill.errors import DistillError
from distill.form import Form
from distill.functional.sparse import TopClasses, top_classes
from distill.networks import Frozen
from distill.optimizers import seed_of
from distill.sampling import continued, known_ids
from distill.tokens import Answers, Fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD = 64  # blocks of a file: what an interrupted filling loses at most
_SPOKEN, _READ = 16, 4  # blocks that the teacher goes on with, or reads, at once
Rows = dict[str, Tensor]


def sampled_by(
    teacher: Frozen, blocks: Tensor, folder: Path, *, name: str, prompt: int, temperature: float, seed: int, common: int
) -> Answers:
    """Let a teacher go on with the beginning of every block, once, and keep what it says.

    Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947) trains a student on these texts as if they were
    the data. The published one searches for the likeliest text with a beam; here texts are drawn, or made of the
    likeliest tokens at temperature 0.

    Args:
        teacher: Of language.
        blocks: Tokens, shape (blocks, length).
        folder: Of the cache; one that was begun goes on.
        name: Of the teacher, for the manifest.
        prompt: Tokens of a block that it goes on from.
        temperature: Of its samples.
        seed: Of its samples.
        common: Ids below it may be said: those that the students know too.

    Returns:
        The field `teacher_samples`, shape (length,), with -1 after the end.
    """
    length = blocks.shape[1]
    if not 1 <= prompt < length:
        raise DistillError(f"the prompt is {prompt} tokens of a block of {length}; give 1 to {length - 1}")
    said = f"goes on from {prompt} tokens at temperature {temperature:g} with ids below {common}"
    cache = _begin(folder, teacher, name, blocks, Form("tokens"), said, seed)
    network = teacher.network
    device = next(network.parameters()).device

    def answer(ids: Tensor, start: int) -> Rows:
        counts = [length - prompt] * len(ids)
        made = continued(network, list(ids[:, :prompt]), counts, temperature, seed_of(seed, start), common)
        rows = torch.full_like(ids, -1)
        rows[:, :prompt] = ids[:, :prompt]
        for row, more in zip(rows, made, strict=True):
            row[prompt : prompt + len(more)] = more
        return {"tokens": rows}

    _fill(cache, blocks, answer, device, _SPOKEN)

    def field(block: int, tokens: Tensor) -> Fields:
        return {"teacher_samples": cache.read(0, [block], tokens[None])["tokens"][0]}

    return field


def top_of(teacher: Frozen, blocks: Tensor, folder: Path, *, name: str, form: Form, seed: int, common: int) -> Answers:
    """Let a teacher say what follows every token of every block, once, and keep its largest logits.

    Args:
        teacher: Of language.
        blocks: Tokens, shape (blocks, length).
        folder: Of the cache; one that was begun goes on.
        name: Of the teacher, for the manifest.
        form: Of kind `top`.
        seed: For the manifest.
        common: Ids below it are compared: those that the students know too.

    Returns:
        The fields of :func:`~distill.compact.as_fields`, of all tokens but the last.
    """
    common = min(common, known_ids(teacher.network))
    if form.kept >= common:
        raise DistillError(f"the cache keeps {form.kept} of {common} token ids; keep fewer, or ask the teacher anew")
    cache = _begin(folder, teacher, name, blocks, form, f"{_reads(blocks)} with ids below {common}", seed)
    device = next(teacher.network.parameters()).device

    def answer(some: Tensor, start: int) -> Rows:
        logits = teacher({"input_ids": some, "labels": some}).logits[:, :common]
        top = top_classes(logits, form.kept, form.temperatures)
        return {key: part.unflatten(0, (len(some), -1)) for key, part in top._asdict().items()}

    _fill(cache, blocks, answer, device, _READ)
    return kept_in(cache)


def kept_in(cache: TeacherCache) -> Answers:
    """Fields of a whole cache of kind `top` whose rows are blocks."""

    def field(block: int, tokens: Tensor) -> Fields:
        rows = cache.read(0, [block], tokens[None])
        return as_fields(TopClasses(**rows), cache.form.temperatures)[0]

    return field


def served_by(
    ask: Callable[[Tensor], TopClasses], blocks: Tensor, folder: Path, *, name: str, kept: int, seed: int, common: int
) -> Answers:
    """Ask a server once what follows every token of every block, and keep the largest log-probabilities.

    Args:
        ask: Of `distill.served.Server`, from tokens (blocks, length) to classes of (blocks, length - 1, kept).
        blocks: Tokens, shape (blocks, length).
        folder: Of the cache; one that was begun goes on.
        name: Of the server and its model, for the manifest: what the model is worth there cannot be seen.
        kept: Largest log-probabilities of a token.
        seed: For the manifest.
        common: Ids below it are known to all students.

    Raises:
        DistillError: If the server's model says a token that a student does not know.
    """
    cache = _create(folder, blocks, Form("top", kept=kept), name, "served", "served", _reads(blocks), seed)

    def answer(some: Tensor, start: int) -> Rows:
        top = ask(some)
        if int(top.ids.max()) >= common:
            raise DistillError(
                f"{name} says the token {int(top.ids.max())}, but a student knows the ids 0 to {common - 1}; serve a "
                "model of the student's tokenizer"
            )
        return top._asdict()

    _fill(cache, blocks, answer, torch.device("cpu"), _READ)
    return kept_in(cache)


def _reads(blocks: Tensor) -> str:
    return f"reads blocks of {blocks.shape[1]} tokens"


def two_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Answers:
    """What a teacher with a tokenizer of its own reads of a block, and where both have read the same text.

    Args:
        teacher: Its tokenizer, a fast one, which says where in a text a token ends.
        student: The blocks'.

    Returns:
        The fields of :func:`~distill.language.read_apart`, as long as twice a block; what the teacher would read after
        that is left out.

    Raises:
        DistillError: If the teacher's tokenizer does not say where its tokens end.
    """
    if not getattr(teacher, "is_fast", False):
        raise DistillError(
            "the teacher's tokenizer does not say where in a text its tokens end; give a model with a tokenizer.json"
        )

    def field(block: int, tokens: Tensor) -> Fields:
        text = str(student.decode(tokens.tolist(), clean_up_tokenization_spaces=False))
        read = teacher(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        room = 2 * len(tokens)
        ids: list[int] = list(cast("list[int]", read["input_ids"]))[:room]
        ends = {end: place for place, (_, end) in enumerate(cast("list[tuple[int, int]]", read["offset_mapping"]))}
        mine = _text_ends(student, tokens.tolist(), text)
        both = [(mine[end], ends[end]) for end in sorted(mine.keys() & ends.keys())]
        both = [(a + 1, b + 1) for a, b in both if a + 1 < len(tokens) and b + 1 < len(ids)]
        filled = torch.tensor(ids + [0] * (room - len(ids)))
        labels, paired = torch.full_like(filled, -100), torch.zeros_like(tokens, dtype=torch.bool)
        for a, b in both:
            paired[a], labels[b] = True, filled[b]
        mask = (torch.arange(room) < len(ids)).long()
        found = {"input_ids": filled, "attention_mask": mask, "labels": labels}
        return {**{f"teacher_{key}": value for key, value in found.items()}, "paired": paired}

    return field


def _text_ends(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> dict[int, int]:
    """For every number of characters that some first tokens make, the last of these; characters cut in two apart."""
    ends = {}
    for place in range(len(ids)):
        read = str(tokenizer.decode(ids[: place + 1], clean_up_tokenization_spaces=False))
        if text.startswith(read):
            ends[len(read)] = place
    return ends


def _begin(folder: Path, teacher: Frozen, name: str, blocks: Tensor, form: Form, reads: str, seed: int) -> TeacherCache:
    """A cache of this very teacher's answers."""
    dtype = str(teacher.dtype).removeprefix("torch.")
    return _create(folder, blocks, form, name, weights_digest(teacher.network), dtype, reads, seed)


def _create(
    folder: Path, blocks: Tensor, form: Form, name: str, weights: str, dtype: str, reads: str, seed: int
) -> TeacherCache:
    data = hashlib.sha256(blocks.contiguous().numpy().tobytes()).hexdigest()
    identity = Identity(name, weights, dtype, blocks.shape[1], (), (), reads, data, len(blocks), seed)
    return TeacherCache.create(folder, identity, form, views=1, shard=SHARD)


def _fill(
    cache: TeacherCache, blocks: Tensor, answer: Callable[[Tensor, int], Rows], device: torch.device, together: int
) -> None:
    """Write the shards that are missing; what stands in one does not depend on which were there."""
    for shard in cache.missing():
        parts: list[Rows] = []
        for start in range(shard.start, shard.stop, together):
            some = blocks[start : min(start + together, shard.stop)]
            rows = {key: value.cpu() for key, value in answer(some.to(device), start).items()}
            parts.append({**rows, "pixels": checksums(some)})
        cache.write(shard, {key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    cache.finish()
