"""Vocabularies that differ, out of core: embeddings and output layers of base and experts with the same rows, in files.

The rules are those of `twinmerge.vocabulary`: the base's rows stay, a new row of the base is the mean of what the
experts have there, and an expert that does not know a token has the base's row. What has other rows than the merged
model is written anew beside it, a few rows at a time, and read from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from twinmerge.big.experts import Expert, FullExpert, LoraExpert
from twinmerge.big.reading import Files, Place
from twinmerge.big.writing import Entry, Journal, Shard, Writer
from twinmerge.errors import CheckpointError
from twinmerge.functional.blocks import BLOCK
from twinmerge.headers import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Vocabulary = Literal["strict", "pad", "union"]
_FOLDER = ".vocabulary"  # no part of the model: it is taken away before the model is whole


@dataclass
class Growth:
    """How the vocabularies of a base and its experts become one.

    Attributes:
        old: Rows of the base.
        rows: Rows of the merged model.
        names: Tensors with a row for every token.
        places: By expert, the row of the merged model for each of its own rows.
        tokenizer: The united one; None where the base's serves.
    """

    old: int
    rows: int
    names: list[str]
    places: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)

    def entries(self, out: Mapping[str, Entry]) -> dict[str, Entry]:
        """Number formats and shapes of the merged model."""
        return {n: (kind, self._grown(n, shape)) for n, (kind, shape) in out.items()}

    def write(
        self, folder: Path, base: Mapping[str, Place], experts: Mapping[str, Expert], files: Files, journal: Journal
    ) -> dict[str, Place]:
        """Write what has other rows into a folder of its own; experts read from there on.

        Args:
            folder: Of the merge.
            base: Places of the base's tensors.
            experts: By name.
            files: What reads.
            journal: What is done.

        Returns:
            The places of the base's tensors.
        """
        (folder / _FOLDER).mkdir(exist_ok=True)
        entries: dict[str, Entry] = {
            n: ("F64" if base[n].dtype == "F64" else "F32", self._grown(n, base[n].shape)) for n in self.names
        }
        indices = {task: self._index(place) for task, place in self.places.items()}
        places = {**base}
        if self.rows != self.old:
            writer = Writer(folder / _FOLDER, [Shard("base.safetensors", entries)], "base")
            for name in self._missing(journal, "base"):
                for start, stop in _steps(self.rows, entries[name]):
                    rows = self._rows_of_base(files, base[name], experts, indices, name, start, stop)
                    writer.write(name, start * _width(entries[name]), rows)
                journal.note(f"grown base {name}")
            writer.close()
            places.update(writer.places)
        for number, (task, expert) in enumerate(experts.items()):
            if isinstance(expert, LoraExpert):
                expert.grown = dict.fromkeys(self.names, self.rows)
            if isinstance(expert, FullExpert) and not torch.equal(indices[task], torch.arange(self.rows)):
                writer = Writer(folder / _FOLDER, [Shard(f"expert{number}.safetensors", entries)], f"expert{number}")
                for name in self._missing(journal, f"expert{number}"):
                    for start, stop in _steps(self.rows, entries[name]):
                        values = _rows(files, places[name], torch.arange(start, stop))
                        index = indices[task][start:stop]
                        values[index >= 0] = _rows(files, expert.places[name], index[index >= 0]).to(values.dtype)
                        writer.write(name, start * _width(entries[name]), values)
                    journal.note(f"grown expert{number} {name}")
                writer.close()
                expert.places.update(writer.places)
        return places

    def _grown(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.rows, *shape[1:]) if name in self.names else shape

    def _index(self, place: Tensor) -> Tensor:
        """The expert's row for each row of the merged model; -1 for a token that it does not know."""
        index = torch.full((self.rows,), -1, dtype=torch.long)
        index[place] = torch.arange(len(place))
        return index

    def _missing(self, journal: Journal, whose: str) -> list[str]:
        return [name for name in self.names if f"grown {whose} {name}" not in journal.done]

    def _rows_of_base(
        self,
        files: Files,
        base: Place,
        experts: Mapping[str, Expert],
        indices: Mapping[str, Tensor],
        name: str,
        start: int,
        stop: int,
    ) -> Tensor:
        """Rows of the base, of which new ones are the mean of what the experts have there."""
        kept = _rows(files, base, torch.arange(min(start, self.old), min(stop, self.old)))
        total = kept.new_zeros(max(0, stop - max(start, self.old)), *base.shape[1:])
        count = torch.zeros(len(total))
        for task, expert in experts.items():
            index = indices[task][stop - len(total) : stop]
            known = index >= 0
            if isinstance(expert, FullExpert) and known.any():
                total[known] += _rows(files, expert.places[name], index[known]).to(total.dtype)
                count[known] += 1
        return torch.cat([kept, total / count.clamp(min=1).view(-1, *[1] * (total.dim() - 1))])


def growth_of(
    base: Checkpoint,
    places: Mapping[str, Place],
    experts: Mapping[str, Expert],
    folders: Mapping[str, Path],
    policy: Vocabulary,
) -> Growth | None:
    """How the vocabularies become one, from headers and, for `union`, tokenizers; None where they are one.

    Raises:
        CheckpointError: For a base whose configuration does not say its vocabulary's size, and tokenizers that differ
            in more than added tokens.
    """
    if policy == "strict":
        return None
    old = base.config.get("vocab_size")
    outside = [name for name in places if not any(part.isdecimal() for part in name.split("."))]  # of the layers
    # A vector of so many values is the bias of an output layer, or of a norm that is as wide as the vocabulary.
    named = [name for name in outside if len(places[name].shape) > 1 or name.endswith("bias")]
    names = [name for name in named if places[name].shape[:1] == (old,)]
    if not isinstance(old, int) or not names:
        raise CheckpointError(
            f"{base.folder} has vocab_size {old!r} in its config.json and no tensor of so many rows; 'vocabulary: "
            f"{policy}' needs to know the embedding."
        )
    rows_of: dict[str, Tensor] = {}
    for task, expert in experts.items():
        sizes = (
            {expert.places[n].shape[0] for n in names if n in expert.places}
            if isinstance(expert, FullExpert)
            else {old}
        )
        if len(sizes) != 1:
            raise CheckpointError(
                f"{folders[task]} has embeddings and an output layer of {sorted(sizes)} rows; they must have the same."
            )
        rows_of[task] = torch.arange(sizes.pop())
    tokenizer = None
    if policy == "union":
        from twinmerge.vocabulary import united

        tokenizer, rows_of = united(base.folder, folders, rows_of)
    rows = max(old, *(int(place.max()) + 1 for place in rows_of.values()))
    same = all(torch.equal(place, torch.arange(rows)) for place in rows_of.values())
    if rows == old and same and tokenizer is None:
        return None
    return Growth(old, rows, names, rows_of, tokenizer)


def forget(folder: Path) -> None:
    """Take what was written for a merge away."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _width(entry: Entry) -> int:
    return prod(entry[1][1:])


def _steps(rows: int, entry: Entry) -> Iterator[tuple[int, int]]:
    height = max(1, BLOCK // _width(entry))
    yield from ((start, min(rows, start + height)) for start in range(0, rows, height))


def _rows(files: Files, place: Place, index: Tensor) -> Tensor:
    """Rows of a tensor by their numbers, in float32 or float64, read in runs."""
    kind = torch.float64 if place.dtype == "F64" else torch.float32
    width, wanted = prod(place.shape[1:]), index.tolist()
    made, at = torch.empty(len(wanted), width, dtype=kind), 0
    while at < len(wanted):
        end = at + 1
        while end < len(wanted) and wanted[end] == wanted[end - 1] + 1:
            end += 1
        values = files.read(place, wanted[at] * width, (end - at) * width).to(kind)
        made[at:end] = values.view(end - at, width)
        at = end
    return made.view(len(wanted), *place.shape[1:])
