"""Rows of a language task as tokens: what is read, what is learned, and where the prompt of a score ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recipes.data.language_rows import Item, LanguageTask

IGNORED = -100  # label of a token that is read and not learned


@dataclass(frozen=True)
class Row:
    """One row in tokens.

    Attributes:
        tokens: The whole of it, an end-of-text token last.
        labels: The tokens to learn, `IGNORED` elsewhere; as long as ``tokens``.
        prompt: How many of the first tokens are the prompt when the row is scored; at least 1.
        choices: Tokens of every choice, each with its end of text.
        answer: Index of the right choice.
        reference: What a generated answer is compared with.
    """

    tokens: list[int]
    labels: list[int]
    prompt: int
    choices: tuple[tuple[int, ...], ...] = ()
    answer: int = 0
    reference: str = ""


class Encoder:
    """Tokens of rows, by a tokenizer.

    Args:
        tokenizer: Of transformers, with an end-of-text token; for chats with a template.
        max_length: Longest row in tokens: of a longer prompt the end is kept, of a longer completion the start.

    Raises:
        RunError: When the tokenizer names no end of text.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise RunError(f"the tokenizer {tokenizer.name_or_path} names no end of text; set its eos_token")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.end = int(tokenizer.eos_token_id)
        begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None, self.end}
        self.start = [token for token in tokenizer("")["input_ids"] if token in begins]
        self.cut = 0  # rows that were longer than max_length

    def rows(self, task: LanguageTask, split: str) -> list[Row]:
        """All rows of a split, in their order; of plain text as many as its length makes.

        Raises:
            RunError: For a chat that the tokenizer has no template for, or one that goes back on what it said.
        """
        items: list[Item] = getattr(task, split)
        if task.form == "text":
            return [row for item in items for row in self._blocks(item.completion)]
        return [self._chat(task.name, item) if task.form == "chat" else self._pair(item) for item in items]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pair(self, item: Item) -> Row:
        prompt, completion = self.start + self._ids(item.prompt), [*self._ids(item.completion), self.end]
        choices = tuple((*self._ids(choice), self.end) for choice in item.choices)
        longest = max(map(len, (completion, *choices)))
        kept = self._fit(prompt, longest)
        completion = completion[: self.max_length - len(kept)]
        return Row(
            kept + completion,
            [IGNORED] * len(kept) + completion,
            len(kept),
            choices,
            item.choices.index(item.completion) if choices else 0,
            item.answer,
        )

    def _fit(self, prompt: list[int], room: int) -> list[int]:
        """The end of a prompt that leaves room for a completion; at least its last token."""
        if len(prompt) + room > self.max_length:
            self.cut += 1
        return prompt[-max(1, self.max_length - room) :] if prompt else [self.end]

    def _blocks(self, text: str) -> list[Row]:
        """A plain text in blocks; the first half of each is the prompt of its score."""
        ids = [*self.start, *self._ids(text), self.end]
        parts = [ids[i : i + self.max_length] for i in range(0, len(ids), self.max_length)]
        return [Row(part, [IGNORED, *part[1:]], len(part) // 2) for part in parts if len(part) >= 2]

    def _chat(self, name: str, item: Item) -> Row:
        """A chat: every answer of the assistant is learned, the last one is scored."""
        if not self.tokenizer.chat_template:
            raise RunError(
                f"task {name!r} holds chats, and the tokenizer {self.tokenizer.name_or_path} has no chat template; "
                "give its tokenizer_config.json one, or take form 'pairs'"
            )
        messages = [{"role": role, "content": content} for role, content in item.messages]
        tokens, labels, told = list(self.start), [IGNORED] * len(self.start), ""
        prompt = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._told(messages[:number], ask=True)
            after = self._told(messages[: number + 1], ask=False)
            if not before.startswith(told) or not after.startswith(before):
                raise RunError(
                    f"task {name!r}: the chat template of {self.tokenizer.name_or_path} changes what was said before a "
                    "later message, so that answers cannot be told from the rest; give chats with one answer each"
                )
            asked, said = self._ids(before[len(told) :]), self._ids(after[len(before) :])
            learned = said[: said.index(self.end) + 1] if self.end in said else said
            prompt = len(tokens) + len(asked)
            tokens += asked + said
            labels += [IGNORED] * len(asked) + learned + [IGNORED] * (len(said) - len(learned))
            told = after
        ended = len(labels) - next(i for i, label in enumerate(reversed(labels)) if label != IGNORED)
        kept = self._fit(tokens[:prompt], ended - prompt)
        start = prompt - len(kept)
        tokens, labels = tokens[start:ended][: self.max_length], labels[start:ended][: self.max_length]
        return Row(tokens, [IGNORED, *labels[1:]], len(kept), reference=item.answer)

    def _told(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        # A template may begin with the token that `start` holds already.
        opening = self.tokenizer.decode(self.start) if self.start else ""
        return text.removeprefix(opening)


def pack(rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Rows side by side in as few sequences as a first fit finds, the longest first.

    >>> [[len(r.tokens) for r in p] for p in pack([Row([0] * n, [0] * n, 1) for n in (2, 5, 3)], 7)]
    [[5, 2], [3]]
    """
    packs: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        place = next((i for i, free in enumerate(room) if free >= len(row.tokens)), None)
        if place is None:
            packs.append([])
            room.append(length)
            place = len(packs) - 1
        packs[place].append(row)
        room[place] -= len(row.tokens)
    return packs
