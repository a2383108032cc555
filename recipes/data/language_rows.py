"""Rows of a task for language models, read into one form: prompts with completions, chats, or plain texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from recipes.data import tables, text_tasks
from recipes.data.language_shipped import LANGUAGE_TASKS
from recipes.data.language_task import Generation, Language
from recipes.data.sources import READ_IN_FULL, apart, check_task, cut, ordered
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError, RunError

__all__ = ["Item", "LanguageTask", "check_language", "load_language"]

MOST_CHOICES = 64  # taken from the training rows; each costs a forward of every scored row


@dataclass(frozen=True)
class Item:
    """One row.

    Attributes:
        prompt: What the model is asked; empty for chats and plain text.
        completion: What it is to say, with what stands before it; the whole of a plain text.
        messages: Of a chat, pairs of role and content, the answer last; else empty.
        choices: Completions to choose among, for metric choice.
    """

    prompt: str
    completion: str
    messages: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """What a generated answer is compared with."""
        return (self.messages[-1][1] if self.messages else self.completion).strip()


@dataclass(frozen=True)
class LanguageTask:
    """A task ready to train on.

    Attributes:
        name: Name of the task.
        form: ``pairs``, ``chat`` or ``text``.
        metric: One of `recipes.data.language_task.LanguageMetric`.
        generation: How answers are generated.
        train: Rows to fit on.
        validation: Rows to choose settings on.
        test: Rows to report on.
        notes: What was done to the rows, a sentence each.
    """

    name: str
    form: str
    metric: str
    generation: Generation
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    notes: tuple[str, ...] = ()

    @property
    def lower_is_better(self) -> bool:
        """True for perplexity."""
        return self.metric == "perplexity"


def load_language(source: TaskSource, seed: int) -> LanguageTask:
    """Read a task into train, validation and test, cut and subsampled as `recipes.data.sources.load_task` does.

    Args:
        source: The task as the recipe names it, with its ``language``.
        seed: Draws the subsamples.

    Raises:
        RecipeError: When a file is missing.
        RunError: When it cannot be fetched or read, or columns or rows are wrong.
    """
    language = source.language
    if language is None:
        raise RunError(f"task {source.name!r} does not say how a language model is asked; give it a 'language:'")
    notes: list[str] = []
    parts = cut(source, apart(source, _read(source, language, notes), notes), notes)
    splits = {}
    for split, limit in (("train", source.max_train), ("validation", source.max_validation), ("test", source.max_test)):
        rows = parts[split]
        if limit is not None and limit < len(rows):
            rows = [rows[i] for i in ordered(source, rows, seed)[:limit]]
        splits[split] = [item for _, item in rows]
    if language.metric == "choice":
        splits = _with_choices(source, language, splits, [item for _, item in parts["train"]])
    return LanguageTask(source.name, language.form, language.metric, language.generation, **splits, notes=tuple(notes))


def check_language(source: TaskSource) -> str:
    """One sentence for the pre-flight: what would be fetched, or what files of up to 20 MB hold.

    Args:
        source: The task as the recipe names it, with its ``language``.

    Raises:
        RecipeError: When a file is missing, cannot be read, or has rows that a run would refuse.
    """
    line = check_task(source)
    if source.source in ("shipped", "hub"):
        return line
    size = sum(file.stat().st_size for files in tables.split_files(source).values() for file in files)
    if size > READ_IN_FULL:
        return f"{line}; it is read when the run starts"
    try:
        task = load_language(source, 0)
    except RunError as error:
        raise RecipeError(str(error)) from error
    parts = f"{len(task.train)} rows to train, {len(task.validation)} to validate, {len(task.test)} to test"
    return "; ".join((f"{line}: {parts}", *task.notes))


def _read(source: TaskSource, language: Language, notes: list[str]) -> dict[str, list[tuple[Any, Any]]]:
    """By split, what makes a row the same as another (its prompt) and the row."""
    if source.source == "shipped":
        train, test = text_tasks.read_shipped(LANGUAGE_TASKS[source.shipped])
        named = {"train": train, **({"test": test} if test else {})}
        column = source.text[0]
        rows = {s: [("", {column: text, source.label: label}) for text, label in part] for s, part in named.items()}
    else:
        extra = [name for name in (language.choices_from,) if name]
        columns = [*source.text, *([source.label] if language.form == "pairs" else []), *extra]
        rows = tables.read_columns(source, columns)
    made: dict[str, list[tuple[Any, Any]]] = {}
    if source.drop_missing:
        whole = {s: [row for row in part if not any(map(tables.absent, row[1].values()))] for s, part in rows.items()}
        if missing := sum(len(rows[split]) - len(part) for split, part in whole.items()):
            notes.append(f"{missing} rows without a text or label were left out")
        rows = whole
    for split, part in rows.items():
        items = [_item(source, language, f"task {source.name!r}: {where}", values) for where, values in part]
        made[split] = [
            (item.prompt or repr(item.messages) * bool(item.messages) or item.completion, item) for item in items
        ]
    return made


def _item(source: TaskSource, language: Language, where: str, values: Mapping[str, Any]) -> Item:
    if language.form == "chat":
        return Item("", "", _messages(where, source.text[0], values[source.text[0]]))
    texts = {column: _text(where, column, values[column]) for column in source.text}
    if language.form == "text":
        return Item("", texts[source.text[0]])
    prompt = language.template or "\n".join(f"{{{column}}}" for column in source.text)
    for column, text in texts.items():
        prompt = prompt.replace(f"{{{column}}}", text)
    label = _text(where, source.label, values[source.label])
    answer = language.between + language.answers.get(label, label)
    if not answer.strip():
        raise RunError(f"{where}: the answer of label {label!r} is empty; give a text")
    own: tuple[str, ...] = ()
    if language.choices_from:
        own = _own_choices(where, language, values[language.choices_from])
        if answer not in own:  # an index, as many public sets have it
            index = int(label) if label.isdecimal() else -1
            if not 0 <= index < len(own):
                raise RunError(f"{where}: the answer {label!r} is none of the choices, nor the index of one")
            answer = own[index]
    return Item(prompt, answer, (), own)


def _own_choices(where: str, language: Language, given: object) -> tuple[str, ...]:
    listed = None if isinstance(given, str) or not hasattr(given, "__iter__") else [str(one) for one in given]
    if listed is None or len(set(listed)) < 2:
        raise RunError(f"{where}: column {language.choices_from!r} is {given!r}; give a list of at least two choices")
    return tuple(language.between + one for one in listed)


def _text(where: str, column: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, Integral) else ""
    if not text:
        raise RunError(f"{where}: column {column!r} is {value!r}; give a text, or drop the row")
    return text


def _messages(where: str, column: str, value: Any) -> tuple[tuple[str, str], ...]:
    listed = list(value) if hasattr(value, "__iter__") and not isinstance(value, str | dict) else []
    said = [(m.get("role"), m.get("content")) for m in listed if isinstance(m, dict)]
    found = tuple((role, told) for role, told in said if isinstance(role, str) and isinstance(told, str))
    whole = len(found) == len(listed)
    if len(found) < 2 or not whole or found[-1][0] != "assistant" or not found[-1][1].strip():
        raise RunError(
            f"{where}: column {column!r} is no chat; give a list of messages with role and content, an answer of the "
            "role assistant last"
        )
    return found


def _with_choices(
    source: TaskSource, language: Language, splits: dict[str, list[Item]], train: list[Item]
) -> dict[str, list[Item]]:
    if language.choices_from:
        return splits
    choices = [language.between + choice for choice in language.choices]
    choices = choices or sorted({item.completion for item in train})
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise RunError(
            f"task {source.name!r}: the training rows have {len(choices)} different answers to choose among, and 2 to "
            f"{MOST_CHOICES} are accepted; name language.choices, or take another metric"
        )
    for rows in splits.values():
        for item in rows:
            if item.completion not in choices:
                raise RunError(
                    f"task {source.name!r}: the answer {item.answer!r} is none of the choices "
                    f"{', '.join(choice.strip() for choice in choices)}"
                )
    return {
        split: [Item(i.prompt, i.completion, i.messages, tuple(choices)) for i in rows]
        for split, rows in splits.items()
    }
