"""Score a causal language model on a task: generated answers, likeliest choices, or perplexity of completions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torchmetrics.text
from torch import Tensor, nn

from recipes.data.language_task import GENERATED
from twinmerge.modeling_twin import TwinMixin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recipes.data.language_rows import LanguageTask
    from recipes.data.language_task import Generation
    from recipes.merge.causal.encode import Row

Route = Callable[
    [Tensor, Tensor], Tensor
]  # prompts and their mask -> weights (batch, experts), or (batch, ..., experts)
Hold = Callable[[Tensor], AbstractContextManager[object]]


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and how a twin's mixture is found.

    Attributes:
        model: A causal language model in eval mode; of a twin every row has its own mixture.
        pad: Token that fills a batch.
        route: For a twin and its like, the mixture of every prompt: nothing of the completion is seen.
        hold: For a model that has mixtures and is no twin, what holds them for the forwards inside.
    """

    model: Any
    pad: int
    route: Route | None = None
    hold: Hold | None = None

    def split(self, rows: Sequence[Row]) -> Iterator[tuple[Speaker, Sequence[Row]]]:
        """The rows with the model that answers them: all with this one."""
        yield self, rows

    def weights(self, prompts: Sequence[Sequence[int]]) -> Tensor | None:
        """The mixture of every prompt; None for a model that is no twin."""
        if self.route is None:
            return None
        with torch.no_grad():
            return self.route(*self.batch(prompts))

    def batch(self, rows: Sequence[Sequence[int]], *, left: bool = True) -> tuple[Tensor, Tensor]:
        """Tokens and mask, padded on the left as generation needs it, or on the right."""
        longest, device = max(map(len, rows)), next(self.model.parameters()).device
        ids, mask = [], []
        for row in rows:
            empty = longest - len(row)
            ids.append([self.pad] * empty * left + list(row) + [self.pad] * empty * (not left))
            mask.append([0] * empty * left + [1] * len(row) + [0] * empty * (not left))
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def held(self, weights: Tensor | None) -> AbstractContextManager[object]:
        """The mixtures of a batch for the forwards inside; nothing for a model that has none."""
        if isinstance(self.model, TwinMixin):
            return self.model.mixture.use(weights)
        return self.holding(weights)

    def holding(self, weights: Tensor | None) -> AbstractContextManager[object]:
        """As `held`, for forwards that tell a twin its mixtures in their arguments, see `mixture`."""
        return nullcontext() if weights is None or self.hold is None else self.hold(weights)

    def mixture(self, weights: Tensor | None) -> dict[str, Tensor]:
        """The mixtures as an argument of a twin's forward; nothing for other models."""
        return {} if weights is None or self.hold is not None else {"router_weights": weights}


@dataclass(frozen=True)
class Panel:
    """One model an expert, of which a router's first choice answers every prompt.

    Attributes:
        speakers: The models, in the order of the router's outputs.
        router: Whose mixture of a prompt picks.
    """

    speakers: Sequence[Speaker]
    router: Speaker

    def split(self, rows: Sequence[Row]) -> Iterator[tuple[Speaker, Sequence[Row]]]:
        """The rows with the model that answers them, by model."""
        weights = self.router.weights([row.tokens[: row.prompt] for row in rows])
        picked = [] if weights is None else weights.argmax(-1).tolist()
        for index in sorted(set(picked)):
            yield self.speakers[index], [row for row, one in zip(rows, picked, strict=True) if one == index]


def score(
    speaker: Speaker | Panel,
    task: LanguageTask,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> float:
    """A model's score on rows of a task: a share from 0 to 1, or a perplexity.

    Args:
        speaker: The model, or several that share the rows.
        task: Names the metric and the generation.
        rows: Its rows in tokens.
        tokenizer: Decodes generated answers.
        batch_size: Rows a batch.
        seed: Of sampled answers.
        tick: Called after every batch.
    """
    order = sorted(rows, key=lambda row: len(row.tokens))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    asked = _asked(speaker, parts, tick)
    with torch.no_grad():
        if task.metric in GENERATED:
            return _generated(asked, task, tokenizer, seed)
        if task.metric == "choice":
            return sum(int(_likeliest(one, mine).sum()) for one, mine in asked) / len(rows)
        spent, count = 0.0, 0
        for one, mine in asked:
            logs = completion_logs(one, mine)
            spent, count = spent - float(sum(log.sum() for log in logs)), count + sum(map(len, logs))
    return float(torch.tensor(spent / count, dtype=torch.float64).exp())


def _asked(
    speaker: Speaker | Panel, parts: Sequence[Sequence[Row]], tick: Callable[[], object]
) -> Iterator[tuple[Speaker, Sequence[Row]]]:
    """The batches, each by the models that answer it."""
    for part in parts:
        yield from speaker.split(part)
        tick()


def batches(rows: int, batch_size: int) -> int:
    """How often `score` calls its tick."""
    return -(-rows // batch_size)


@torch.no_grad()
def completion_logits(speaker: Speaker, rows: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor]]:
    """Row by row, logits of float64 (tokens, vocabulary) for the tokens after the prompt, and those tokens."""
    weights = speaker.weights([row.tokens[: row.prompt] for row in rows])
    ids, mask = speaker.batch([row.tokens for row in rows], left=False)
    with speaker.holding(weights):
        logits = speaker.model(input_ids=ids, attention_mask=mask, use_cache=False, **speaker.mixture(weights)).logits
    for index, row in enumerate(rows):
        said = ids[index, row.prompt : len(row.tokens)]
        yield logits[index, row.prompt - 1 : len(row.tokens) - 1].double(), said


def completion_logs(speaker: Speaker, rows: Sequence[Row]) -> list[Tensor]:
    """Log-probability of every token after the prompt, one tensor of float64 a row."""
    return [
        F.log_softmax(before, -1).gather(-1, said[:, None])[:, 0].cpu()
        for before, said in completion_logits(speaker, rows)
    ]


def _likeliest(speaker: Speaker, rows: Sequence[Row]) -> Tensor:
    """Whether the right choice has the largest log-probability; shape (rows,)."""
    found = chosen(speaker, rows)
    return found == torch.tensor([row.answer for row in rows], device=found.device)


@torch.no_grad()
def chosen(speaker: Speaker, rows: Sequence[Row]) -> Tensor:
    """Index of the choice with the largest log-probability, its end of text included; shape (rows,).

    The prompt is read once, and its cache is shared by the choices.
    """
    many = max(len(row.choices) for row in rows)
    prompts = [row.tokens[: row.prompt] for row in rows]
    weights = speaker.weights(prompts)
    ids, mask = speaker.batch(prompts)
    with speaker.held(weights):
        asked = speaker.model(input_ids=ids, attention_mask=mask, use_cache=True, **places(speaker.model, mask))
    # Rows with fewer choices are filled with their first one, which is left out again below.
    said = [row.choices[i] if i < len(row.choices) else row.choices[0] for row in rows for i in range(many)]
    answering, told = speaker.batch(said, left=False)
    cache = asked.past_key_values
    cache.batch_repeat_interleave(many)
    known = mask.repeat_interleave(many, 0)
    first = known.sum(-1, keepdim=True)
    with speaker.held(None if weights is None else weights.repeat_interleave(many, 0)):
        rest = speaker.model(
            input_ids=answering,
            attention_mask=torch.cat([known, told], -1),
            past_key_values=cache,
            use_cache=True,
            **_places(speaker.model, first + torch.arange(answering.shape[1], device=ids.device)),
        ).logits
    before = torch.cat([asked.logits[:, -1:].repeat_interleave(many, 0), rest[:, :-1]], 1).double()
    logs = F.log_softmax(before, -1).gather(-1, answering[..., None])[..., 0]
    total = (logs * told).sum(-1).view(len(rows), many)
    own = torch.tensor([[i < len(row.choices) for i in range(many)] for row in rows], device=total.device)
    return total.masked_fill(~own, -torch.inf).argmax(-1)


def _places(model: nn.Module, positions: Tensor) -> dict[str, Tensor]:
    """Positions for a model that takes them; others count from the mask."""
    return {"position_ids": positions} if "position_ids" in inspect.signature(model.forward).parameters else {}


def places(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Positions of tokens behind padding, for a model that takes them.

    Args:
        model: The model.
        mask: 1 for its tokens, shape (rows, tokens).
    """
    return _places(model, (mask.cumsum(-1) - 1).clamp(min=0))


def next_logits(model: nn.Module, run: Callable[..., Any], ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (batch, tokens) of what follows prompts that are padded on the left.

    Args:
        model: The model, for what its forward takes.
        run: The forward, or one with other weights.
        ids: Prompts.
        mask: 1 for their tokens.
    """
    takes = inspect.signature(model.forward).parameters
    only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    named = {"input_ids": ids, "attention_mask": mask, **places(model, mask), **only}
    found: Tensor = run(**named, use_cache=False).logits[:, -1]
    return found


def answers(
    speaker: Speaker, prompts: Sequence[Sequence[int]], generation: Generation, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Generated answers to prompts in tokens, cut at the end of text and at what stops them."""
    ids, mask = speaker.batch(prompts)
    drawn = {"temperature": generation.temperature, "top_p": generation.top_p} if generation.do_sample else {}
    weights = speaker.weights(prompts)
    with speaker.holding(weights):
        made = speaker.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=generation.max_new_tokens,
            num_beams=generation.num_beams,
            do_sample=generation.do_sample,
            pad_token_id=speaker.pad,
            **drawn,
            **speaker.mixture(weights),
        )
    for tokens in made[:, ids.shape[1] :]:
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        for stop in generation.stop:
            text = text.partition(stop)[0]
        yield text.strip()


def _generated(
    asked: Iterator[tuple[Speaker, Sequence[Row]]],
    task: LanguageTask,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> float:
    said: list[str] = []
    right: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for one, rows in asked:
            said += answers(one, [row.tokens[: row.prompt] for row in rows], task.generation, tokenizer)
            right += [row.reference for row in rows]
    return judged(task.metric, said, right)


def judged(metric: str, said: Sequence[str], right: Sequence[str]) -> float:
    """The score of generated answers, a share from 0 to 1, by torchmetrics.

    Args:
        metric: exact_match and token_f1 as SQuAD has them (case, punctuation and articles do not count), rouge1,
            rouge2 and rougeL as F-measures, bleu up to four words, smoothed.
        said: Answers.
        right: What each should be.

    >>> judged("token_f1", ["the red cat", "no"], ["a red dog", "yes"])
    0.25
    """
    if metric in ("exact_match", "token_f1"):
        squad = torchmetrics.text.SQuAD()
        squad.update(
            [{"prediction_text": text, "id": str(i)} for i, text in enumerate(said)],
            [{"answers": {"answer_start": [0], "text": [text]}, "id": str(i)} for i, text in enumerate(right)],
        )
        return float(squad.compute()["exact_match" if metric == "exact_match" else "f1"]) / 100
    if metric == "bleu":
        bleu = torchmetrics.text.BLEUScore(smooth=True)
        bleu.update(list(said), [[text] for text in right])
        return float(bleu.compute())
    rouge = torchmetrics.text.ROUGEScore(rouge_keys=metric)
    rouge.update(list(said), list(right))
    return float(rouge.compute()[f"{metric}_fmeasure"])
