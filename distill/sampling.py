"""Whose tokens a language student reads: the data's, its own samples or the teacher's, mixed by seed and step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.batches import Batch, device_of
from distill.draws import Draws
from distill.ensemble import voices
from distill.errors import DistillError
from distill.losses import Terms
from distill.optimizers import seed_of
from gapbridge.arguments import Share, accepts, shown

SOURCES = ("own", "teacher")
_MIXTURE = 11  # purpose of draws, beside those of views


def check_samples(samples: Mapping[str, Mapping[str, float]], terms: Mapping[str, Terms], task: str) -> None:
    """Refuse shares of samples that no training could be made of.

    Args:
        samples: Shares by student, `own` and `teacher`.
        terms: Losses by student.
        task: As of `DistillModule`.

    Raises:
        DistillError: With the first that is wrong.
    """
    if samples and task != "language":
        raise DistillError(f"samples are of language models, but the task is {task}; leave samples out")
    for name, shares in samples.items():
        if name not in terms:
            raise DistillError(f"samples are given for {name!r}, but the students are {', '.join(terms)}; name one")
        if unknown := sorted(set(shares) - set(SOURCES)):
            raise DistillError(f"samples of {name} has no {unknown[0]!r}; accepted are own and teacher")
        if odd := next((key for key, value in shares.items() if not accepts(Share, value)), None):
            raise DistillError(f"the share {odd} of {name} is {shown(shares[odd])}, but it must be from 0 to 1")
        if sum(shares.values()) > 1:
            raise DistillError(
                f"the shares of {name} add up to {sum(shares.values()):g}, but own and teacher are shares of all "
                "batches, at most 1 together; the rest is the data's"
            )
        losses = set(terms[name])
        if shares.get("own") and "hard" in losses:
            raise DistillError(
                f"{name} learns labels (hard) and its own samples, whose labels are what it says already; leave hard "
                "out, or own"
            )
        if "uld" in losses and any(shares.values()):
            raise DistillError(
                f"{name} learns by uld from a teacher of another tokenizer, which cannot read its samples nor be read; "
                "leave samples out"
            )


def checked_samples(
    samples: Mapping[str, Mapping[str, float]] | None, terms: Mapping[str, Terms], task: str
) -> Mapping[str, Mapping[str, float]]:
    """The shares, after `check_samples`; none where there are none."""
    check_samples(samples or {}, terms, task)
    return samples or {}


class Sampler:
    """Batches of samples in place of the data's.

    Args:
        samples: Of `check_samples`.
        prompt: Tokens of a text that are given, where its labels do not mark a prompt by -100.
        temperature: Of own samples; 0 takes the likeliest token.
    """

    def __init__(self, samples: Mapping[str, Mapping[str, float]], prompt: int, temperature: float) -> None:
        self.samples = {name: dict(shares) for name, shares in samples.items() if any(shares.values())}
        self.prompt, self.temperature = prompt, temperature

    def source(self, name: str, seed: int, epoch: int, batch_index: int) -> str:
        """Whose tokens a student reads in a batch: `own`, `teacher` or `data`, on all processes alike."""
        shares = self.samples.get(name)
        if shares is None:
            return "data"
        place = Draws(seed, _MIXTURE, epoch, batch_index).uniform()
        own = shares.get("own", 0.0)
        return "own" if place < own else "teacher" if place < own + shares.get("teacher", 0.0) else "data"

    def rows(
        self, source: str, student: nn.Module, batch: Batch, teacher: nn.Module | None, place: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """A batch of samples, with the prompts of a batch of the data.

        Args:
            source: `own` or `teacher`.
            student: The language network that speaks.
            batch: Of the data; with `teacher_samples` where the teacher's are asked for.
            teacher: The network that has to read what is said; None where none has.
            place: Numbers that name the place in the training, which the samples are a function of.

        Raises:
            DistillError: If the batch has no samples of the teacher.
        """
        if source == "teacher":
            if "teacher_samples" not in batch:
                raise DistillError(
                    "samples of the teacher are asked for, but the batch has no teacher_samples; give them, as "
                    "distill.answered.AnsweredTokens does"
                )
            ids = batch["teacher_samples"]
            return {
                "input_ids": ids.clamp(min=0),
                "attention_mask": (ids >= 0).long(),
                "labels": _told(ids, self.prompt),
            }
        prompts, counts = prompts_of(batch, self.prompt)
        common = min(known_ids(network) for network in (student, teacher) if network is not None)
        made = continued(student, prompts, counts, self.temperature, seed_of(*place), common)
        return padded(prompts, made, device_of(batch))


def _told(ids: Tensor, prompt: int) -> Tensor:
    """Labels of stored samples: what follows the prompt; -100 fills the places after the end."""
    labels = ids.masked_fill(ids < 0, -100)
    labels[:, :prompt] = -100
    return labels


def prompts_of(batch: Batch, prompt: int) -> tuple[list[Tensor], list[int]]:
    """Where the texts of a batch begin to be told, and how long they are.

    Args:
        batch: With `input_ids` and `labels`; without `attention_mask` all tokens count.
        prompt: Tokens to give of a text whose labels mark no prompt by -100; a shorter text gives all but its last.

    Returns:
        For every row its prompt, shape (tokens,), and how many tokens follow it; 0 where nothing is labelled.
    """
    ids, told = batch["input_ids"], batch["labels"] != -100
    kept = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(told)
    prompts, counts = [], []
    for row, labelled, real in zip(ids, told, kept, strict=True):
        places = labelled.nonzero().squeeze(-1).tolist()
        if not places:
            prompts.append(row[real])
            counts.append(0)
            continue
        first, last = places[0], places[-1]
        if not bool(real[:first].any()):  # the first token has no prompt before it
            first = min(first + prompt, last)
        prompts.append(row[:first][real[:first]])
        counts.append(last - first + 1)
    return prompts, counts


@torch.no_grad()
def continued(
    network: nn.Module, prompts: list[Tensor], counts: list[int], temperature: float, seed: int, common: int
) -> list[Tensor]:
    """Continuations of prompts, drawn token by token from a model in eval mode; its modes are as before afterwards.

    Prompts of one length are continued together and nothing is padded, so that every architecture reads them as it
    would alone.

    Args:
        network: A `LanguageNetwork`.
        prompts: Tokens, each of shape (tokens,) with at least one.
        counts: Tokens to draw for each; less where the model ends its text.
        temperature: Of the softmax that is drawn from; 0 takes the likeliest token.
        seed: Of the draws.
        common: Ids below it may be drawn: those that every model that reads the text knows.

    Returns:
        For every prompt what follows it, its end included.
    """
    model = cast(nn.Module, network.model)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    made: list[Tensor] = [prompt[:0] for prompt in prompts]
    ends = _ends(model)
    groups: dict[int, list[int]] = {}
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count and len(prompt):
            groups.setdefault(len(prompt), []).append(index)
    try:
        for length, group in sorted(groups.items()):
            ids = torch.stack([prompts[index] for index in group])
            draw = torch.Generator(ids.device).manual_seed(seed_of(seed, length))
            drawn = _draw(model, ids, max(counts[index] for index in group), temperature, draw, common, ends)
            for index, row in zip(group, drawn, strict=True):
                said = row[: counts[index]]
                ended = torch.isin(said, ends.to(said.device)).nonzero()
                made[index] = said[: int(ended[0]) + 1] if len(ended) else said
    finally:
        for module, mode in modes:
            module.training = mode
    return made


def _draw(
    model: nn.Module, ids: Tensor, count: int, temperature: float, draw: torch.Generator, common: int, ends: Tensor
) -> Tensor:
    """Tokens after equally long prompts, shape (rows, at most count); what follows a row's end means nothing."""
    made: list[Tensor] = []
    adapted = getattr(model, "get_base_model", None)
    known = inspect.signature((model if adapted is None else adapted()).forward).parameters
    last: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}  # a prompt's own would cost most
    live = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    ends, past, current = ends.to(ids.device), None, ids
    for _ in range(count):
        said = model(input_ids=current, past_key_values=past, use_cache=True, **last)
        past = getattr(said, "past_key_values", None)
        logits = said.logits[:, -1, :common].float()
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw).squeeze(-1)
        else:
            token = logits.argmax(-1)
        made.append(token)
        live = live & ~torch.isin(token, ends)
        if len(ends) and not bool(live.any()):
            break
        # A model that keeps no such cache reads everything again.
        current = token[:, None] if past is not None else torch.cat([ids, torch.stack(made, 1)], 1)
    return torch.stack(made, 1)


def padded(prompts: list[Tensor], made: list[Tensor], device: torch.device) -> dict[str, Tensor]:
    """Prompts and what follows them as a batch, filled up on the right, whose labels are what follows."""
    longest = max(len(a) + len(b) for a, b in zip(prompts, made, strict=True))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, said) in enumerate(zip(prompts, made, strict=True)):
        start, end = len(prompt), len(prompt) + len(said)
        ids[row, :start], ids[row, start:end] = prompt, said
        labels[row, start:end] = said
        mask[row, :end] = 1
    even = all(len(a) + len(b) == longest for a, b in zip(prompts, made, strict=True))
    return {"input_ids": ids, "labels": labels, **({} if even else {"attention_mask": mask})}


def known_ids(network: nn.Module) -> int:
    """How many token ids a language network reads and says."""
    models: list[Any] = [voice.model for voice in voices(network)]
    layers = [layer for model in models for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    return min(int(layer.weight.shape[0]) for layer in layers if layer is not None)


def _ends(model: nn.Module) -> Tensor:
    """Ids at which a model ends its text."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return torch.tensor(ends if isinstance(ends, list) else [ends])
    return torch.empty(0, dtype=torch.long)
