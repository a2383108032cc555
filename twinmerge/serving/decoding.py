"""One batch of prompts, each with its own mixture, length and way of sampling, decoded by the twin's own generate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from twinmerge.serving.mixtures import PARTS
from twinmerge.twin_mixin import TwinMixin


@dataclass
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is kept, in (0, 1].
        top_k: likeliest tokens that are kept; 0 keeps all.
        seed: of the draws; None for another one each time.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def generator(self) -> torch.Generator:
        """The source of the draws of one answer."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token from logits of shape (vocabulary,)."""
        wide = logits.float().cpu() / self.temperature
        if 0 < self.top_k < len(wide):
            wide = wide.masked_fill(wide < wide.topk(self.top_k).values[-1], float("-inf"))
        if self.top_p < 1:
            ordered = wide.sort(descending=True)
            share = ordered.values.softmax(-1)
            beyond = share.cumsum(-1) - share >= self.top_p  # the token that reaches the share is kept
            wide[ordered.indices[beyond]] = float("-inf")
        return int(torch.multinomial(wide.softmax(-1), 1, generator=generator))


@dataclass
class Job:
    """One prompt to answer.

    Attributes:
        ids: of the prompt.
        parts: the mixture in 64ths; None for the shared expert.
        length: tokens of the answer at most.
        sampling: how they are drawn.
        tell: called in the thread of the work with every token, and at the end with None.
        stopped: set by who asked, when no more tokens are wanted.
        reason: `stop` or `length`, once it is at its end.
    """

    ids: list[int]
    parts: tuple[int, ...] | None
    length: int
    sampling: Sampling
    tell: Callable[[int | None], object]
    stopped: threading.Event = field(default_factory=threading.Event)
    reason: str | None = None
    told: int = 0


class _Sampler(LogitsProcessor):
    """Leaves of every row that is sampled the one token that was drawn, so that rows differ in how they are sampled."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.rows = [
            (i, job.sampling, job.sampling.generator()) for i, job in enumerate(jobs) if job.sampling.temperature
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of shape (rows, vocabulary)."""
        if self.rows:
            scores = scores.clone()
        for row, sampling, generator in self.rows:
            token = sampling.draw(scores[row], generator)
            scores[row] = float("-inf")
            scores[row, token] = 0.0
        return scores


class _Teller(StoppingCriteria):
    """Tells every job its tokens as they come, and ends rows that are done."""

    def __init__(self, jobs: Sequence[Job], ends: frozenset[int]) -> None:
        self.jobs, self.ends = jobs, ends

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Ids of shape (rows, tokens); which rows are done."""
        for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True):
            if job.reason is None:
                _tell(job, token, self.ends)
        return torch.tensor([job.reason is not None for job in self.jobs], device=input_ids.device)


def _tell(job: Job, token: int, ends: frozenset[int]) -> None:
    job.told += 1
    if token in ends or job.stopped.is_set():
        job.reason = "stop"
    else:
        job.tell(token)
        if job.told >= job.length:
            job.reason = "length"
    if job.reason is not None:
        job.tell(None)


def fitting(jobs: Sequence[Job], context: int) -> list[list[Job]]:
    """Batches in which no row outruns the context: one that has ended runs on until its batch's longest answer has.

    Args:
        jobs: each of which fits alone.
        context: positions of the model.
    """
    batches: list[list[Job]] = []
    for job in jobs:
        for batch in batches:
            both = [*batch, job]
            if max(len(other.ids) for other in both) + max(other.length for other in both) <= context:
                batch.append(job)
                break
        else:
            batches.append([job])
    return batches


def decode(twin: TwinMixin, jobs: Sequence[Job], ends: frozenset[int], pad: int) -> None:
    """Answer a batch; the tokens go to the jobs as they come.

    Args:
        twin: the routed model, whose generation_config has no setting of sampling.
        jobs: one a row.
        ends: tokens that end an answer.
        pad: any token, to fill up on the left.
    """
    longest = max(len(job.ids) for job in jobs)
    ids = torch.tensor([[pad] * (longest - len(job.ids)) + job.ids for job in jobs], device=twin.device)
    mask = torch.tensor([[0] * (longest - len(j.ids)) + [1] * len(j.ids) for j in jobs], device=twin.device)
    # A row of zeros is the shared expert.
    rows = [[0.0] * len(twin.tasks) if job.parts is None else [part / PARTS for part in job.parts] for job in jobs]
    with torch.inference_mode():
        twin.generate(
            ids,
            attention_mask=mask,
            router_weights=torch.tensor(rows, device=twin.device),
            generation_config=GenerationConfig(
                max_new_tokens=max(job.length for job in jobs),
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=sorted(ends) or None,
            ),
            logits_processor=transformers.LogitsProcessorList([_Sampler(jobs)]),
            stopping_criteria=transformers.StoppingCriteriaList([_Teller(jobs, ends)]),
        )
