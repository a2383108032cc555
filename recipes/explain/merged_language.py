"""The test rows of a merge of causal language models: what is known of each, and what every model loses on it.

A model reads prompt and completion at once (teacher forcing), and its losses are about the tokens of the completion.
The twin's mixture comes from the prompt alone, as where it generates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from recipes.data.language_rows import load_language
from recipes.data.models import resolve_model
from recipes.errors import RunError
from recipes.explain.losses import entropy, losses
from recipes.explain.places import expert_place, student_folder
from recipes.merge.causal.data import padding_of
from recipes.merge.causal.encode import Encoder
from recipes.merge.causal.scores import Speaker, chosen, completion_logits
from recipes.merge.causal.train import language_model
from recipes.merge.experts import base_checkpoint

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from recipes.data.language_rows import Item, LanguageTask
    from recipes.data.task_source import TaskSource
    from recipes.merge.causal.encode import Row as Tokens
    from recipes.merge.schema import Recipe
    from twinmerge.twin_mixin import TwinMixin

__all__ = ["language_rows"]

Row = dict[str, object]


def language_rows(
    folder: Path,
    recipe: Recipe,
    say: Callable[[str], None],
    students: Mapping[str, Path],
    device: torch.device,
    *,
    examples: bool,
) -> list[Row]:
    """One row of `recipes.explain.merged.read_merged` for every test row of the tasks that were merged.

    Args:
        folder: Run folder of the merge.
        recipe: Of the merge.
        say: Called with a line of progress.
        students: Folders of causal models with the merge's tokenizer, by name.
        device: Where the models compute, in float32.
        examples: Also the prompt and what each model answers.

    Raises:
        RunError: When twin, expert or student cannot be read, or a student reads other tokens.
    """
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder / "merged", trust_remote_code=False)
    speakers = _speakers(folder, students, words, device)
    merged = [source for source in recipe.tasks if source.name not in recipe.unseen]
    tasks = [load_language(source, recipe.seed) for source in merged]
    encoder = Encoder(words, recipe.training.max_length)
    rows = [encoder.rows(task, "test") for task in tasks]
    say(
        f"scoring {sum(map(len, rows))} test inputs with {len(tasks)} experts, the twin and {len(students)} students"
        + (f"; {encoder.cut} of them are cut to {recipe.training.max_length} tokens" if encoder.cut else "")
    )
    expert = _experts(recipe, device)
    made: list[Row] = []
    for source, task, tokens in zip(merged, tasks, rows, strict=True):
        models = {"expert": Speaker(expert(source), padding_of(words)), **speakers}
        known = _known(task, source.source, tokens, words, examples)
        found = _asked(models, tokens, words, recipe.eval_batch_size, examples)
        made += [first | second for first, second in zip(known, found, strict=True)]
    return made


def _speakers(
    folder: Path, students: Mapping[str, Path], words: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, Speaker]:
    """The twin and the students."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import twinmerge
    from twinmerge.errors import CheckpointError

    pad = padding_of(words)
    try:
        twin = cast("TwinMixin", twinmerge.load(folder / "merged", dtype=torch.float32).eval().to(device))
    except CheckpointError as error:
        raise RunError(f"data.path: {error}") from error
    found = {"twin": Speaker(twin, pad, twin.route)}
    for name, given in students.items():
        where = student_folder(given)
        try:
            model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, trust_remote_code=False)
            own = AutoTokenizer.from_pretrained(where, trust_remote_code=False).get_vocab()
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"data.students.{name}: {where} is no causal language model ({reason})") from error
        if own != words.get_vocab():
            raise RunError(f"data.students.{name}: {where} reads other tokens than the twin; give one of this merge")
        found[name] = Speaker(model.eval().to(device), pad)
    return found


def _experts(recipe: Recipe, device: torch.device) -> Callable[[TaskSource], nn.Module]:
    """Gives a task's expert; there is one model, which takes the weights of the last that was asked for."""
    from twinmerge.errors import CheckpointError
    from twinmerge.language_folder import read_language_folder
    from twinmerge.merging import set_parameters

    where, headers = resolve_model(recipe.base), base_checkpoint(recipe.base)
    base = language_model(where).eval()
    work: nn.Module = copy.deepcopy(base).to(device)

    def of(source: TaskSource) -> nn.Module:
        try:
            read = read_language_folder(expert_place(recipe, source), where, base, headers=headers)
        except CheckpointError as error:
            raise RunError(f"data.path: {error}") from error
        return set_parameters(work, read.state)

    return of


def _known(
    task: LanguageTask, source: str, rows: Sequence[Tokens], words: PreTrainedTokenizerBase, examples: bool
) -> Iterator[Row]:
    """What is known of every test row before any model is asked."""
    # Plain texts are cut into blocks, of which there are more than items; every other item is one row.
    texts = (
        [str(words.decode(row.tokens[: row.prompt], skip_special_tokens=True)) for row in rows]
        if task.form == "text"
        else [_prompt(item) for item in task.test]
    )
    for text in texts:
        row: Row = {"task": task.name, "source": source, "label": task.name, "words": len(text.split())}
        yield row | ({"text": text} if examples else {})


def _prompt(item: Item) -> str:
    return "\n".join(content for _, content in item.messages[:-1]) if item.messages else item.prompt


def _asked(
    models: Mapping[str, Speaker],
    rows: Sequence[Tokens],
    words: PreTrainedTokenizerBase,
    batch_size: int,
    examples: bool,
) -> list[Row]:
    """What every model makes of the rows of one task, in their order."""
    made: list[Row] = [{} for _ in rows]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].tokens))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        part = [rows[place] for place in places]
        for name, speaker in models.items():
            for place, found in zip(places, _answers(name, speaker, part, words, examples), strict=True):
                made[place] |= found
    return made


@torch.no_grad()
def _answers(
    name: str, speaker: Speaker, rows: Sequence[Tokens], words: PreTrainedTokenizerBase, examples: bool
) -> Iterator[Row]:
    """What one model makes of each row of a batch."""
    weights = speaker.weights([row.tokens[: row.prompt] for row in rows])
    if weights is not None:  # the router is asked once
        speaker = replace(speaker, route=lambda *_: weights)
    picked = chosen(speaker, rows).tolist() if rows[0].choices else None
    for number, (row, (logits, said)) in enumerate(zip(rows, completion_logits(speaker, rows), strict=True)):
        lost = losses(logits, said)
        found = {"zero_one": lost["zero_one"].max(), "brier": lost["brier"].mean(), "log": lost["log"].mean()}
        answer = logits.argmax(-1)
        if picked is not None:  # a wrong answer is a wrong choice, as where the merge scores it
            found["zero_one"] = torch.tensor(float(picked[number] != row.answer))
            answer = torch.tensor(row.choices[picked[number]][:-1])
        made: Row = {f"{name}_{loss}": float(value) for loss, value in found.items()}
        if name == "expert":
            made |= {"confidence": float((-lost["log"]).exp().mean()), "entropy": float(entropy(logits).mean())}
        if weights is not None:
            made["router_confidence"] = float(weights[number].max())
        if examples:
            made[f"{name}_answer"] = str(words.decode(answer)).strip()
        yield made
