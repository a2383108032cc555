"""Experts in files: whole checkpoints, read in parts, and LoRA adapters, of which only the factors are read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from twinmerge.big.reading import FLOATS, Files, Place, places_of
from twinmerge.checkpoints import (
    Checkpoint,
    align,
    check_compatible,
    is_head,
    lora_factors,
    lora_terms,
    refuse_more_than_factors,
)
from twinmerge.errors import CheckpointError

_NO_WEIGHTS = re.compile(r".*\.(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")  # of older transformers
_OUTPUT = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "embeddings.weight")


class Expert(Protocol):
    """An expert of a merge.

    Attributes:
        kept: Tensors of the base that it has not, which stay the base's.
        bytes: What it takes to read it once.
    """

    kept: list[str]
    bytes: int

    def rows(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """Its rows of a tensor, from the flat place `start` on, in the shape (rows, columns) of those of the base."""

    def slab(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """Its columns of a tensor, from the column `start` on, in the shape (rows, columns) of those of the base."""

    def same(self, files: Files, name: str, start: int, base: Tensor) -> bool:
        """Whether it has the base's values of a tensor that is not merged, from the flat place `start` on."""

    def rank_of(self, name: str) -> int | None:
        """Rank of its difference to the base, at most, where its factors say it."""

    def dtype_of(self, name: str) -> str:
        """Number format of a tensor, as safetensors writes it."""

    def expect(self, files: Files, name: str) -> None:
        """Have the system read a tensor ahead."""


class FullExpert:
    """A whole checkpoint; tied weights that it does not store are found at the tensor that they are tied to."""

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint) -> None:
        places = places_of(checkpoint)
        names = align(base.tensors, places)
        self.places: dict[str, Place] = {ours: places[theirs] for ours, theirs in names.items()}
        self.kept = []
        for name in base.tensors:
            if name not in self.places:
                tied = _tied(checkpoint, places, name)
                if tied is None:
                    self.kept.append(name)
                else:
                    self.places[name] = tied
        self.bytes = sum(place.bytes for place in self.places.values())
        _refuse_untied(checkpoint, base)
        _refuse_more(checkpoint, set(names.values()))

    def rows(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """Read them."""
        if name not in self.places:
            return base
        values = files.read(self.places[name], start, base.numel())
        return values.to(base.device, dtype).view(base.shape)

    def slab(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """Read them."""
        if name not in self.places:
            return base
        return files.read_columns(self.places[name], start, start + base.shape[1]).to(base.device, dtype)

    def same(self, files: Files, name: str, start: int, base: Tensor) -> bool:
        """Compare them, in whatever type they are stored."""
        return name not in self.places or torch.equal(
            files.read(self.places[name], start, base.numel()).to(base.dtype), base
        )

    def rank_of(self, name: str) -> int | None:
        """Not known, but for what stays the base's."""
        return None if name in self.places else 0

    def dtype_of(self, name: str) -> str:
        """As it is stored."""
        return self.places[name].dtype if name in self.places else "F32"

    def expect(self, files: Files, name: str) -> None:
        """Have the system read a tensor ahead."""
        if name in self.places:
            files.expect(self.places[name])


class LoraExpert:
    """The base plus scale * B @ A, of which B and A are read and the product is made for the rows at hand alone."""

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint) -> None:
        refuse_more_than_factors(checkpoint)
        self.places = places_of(checkpoint)
        self.terms = _terms(checkpoint, base, self.places)
        self.kept: list[str] = []
        self.bytes = checkpoint.bytes
        self._shapes = {name: shape for name, (_, shape) in base.tensors.items()}
        self._turned = bool(checkpoint.config.get("fan_in_fan_out"))
        self._held: tuple[str, Tensor, Tensor] | None = None  # factors of the tensor at hand
        self.grown: dict[str, int] = {}  # rows of tensors that got more than the base has; no factor reaches them
        self._base: Mapping[str, Place] | None = None

    def over(self, base: Mapping[str, Place]) -> None:
        """Take the base's rows from here, where those that `rows` is given are of another model."""
        self._base = base

    def rows(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """The base's rows plus those of the product."""
        if self._base is not None:
            own = files.read(self._base[name], start, base.numel())
            base = own.to(base.device, dtype).view(base.shape)
        if name not in self.terms:
            return base
        left, right = self._factors_of(files, name, dtype)
        first = start // base.shape[1]
        return base + left[first : first + base.shape[0]].to(base.device) @ right.to(base.device)

    def slab(self, files: Files, name: str, base: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        """The base's columns plus those of the product."""
        if self._base is not None:
            own = files.read_columns(self._base[name], start, start + base.shape[1])
            base = own.to(base.device, dtype)
        if name not in self.terms:
            return base
        left, right = self._factors_of(files, name, dtype)
        return base + left.to(base.device) @ right[:, start : start + base.shape[1]].to(base.device)

    def same(self, files: Files, name: str, start: int, base: Tensor) -> bool:
        """An adapter has the base's."""
        return True

    def rank_of(self, name: str) -> int | None:
        """That of its factors, where they are added to the base that is asked for."""
        if self._base is not None:
            return None
        return min(self.places[str(self.terms[name][1])].shape) if name in self.terms else 0

    def _factors_of(self, files: Files, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The factors of the tensor at hand, which are held."""
        if self._held is None or self._held[0] != name or self._held[1].dtype != dtype:
            self._held = None  # the former ones go before the next ones come
            self._held = (name, *self._factors(files, name, dtype))
        return self._held[1:]

    def _factors(self, files: Files, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale, *keys = self.terms[name]
        B, A = (factor.to(dtype) for factor in _read_factors(files, self.places, keys))
        if not (B.isfinite().all() and A.isfinite().all()):
            raise CheckpointError(f"LoRA of '{name}' holds NaN or infinite values; train it again.")
        rows, looks_up = self._shapes[name][0], keys[0].endswith("embedding_A")  # PEFT turns linear layers alone
        turned = rows != B.shape[0] or (self._turned and rows == A.shape[1] and not looks_up)
        left, right = (A.t() * scale, B.t()) if turned else (B * scale, A)
        more = self.grown.get(name, rows) - rows
        return (torch.cat([left, left.new_zeros(more, left.shape[1])]) if more else left), right

    def dtype_of(self, name: str) -> str:
        """The factors are multiplied in float32."""
        return "F32"

    def expect(self, files: Files, name: str) -> None:
        """Have the system read the factors ahead."""
        for key in self.terms.get(name, ("", ""))[1:]:
            if key in self.places:
                files.expect(self.places[str(key)])


def expert_of(checkpoint: Checkpoint, base: Checkpoint, vocabulary: str = "strict") -> Expert:
    """An expert that fits its base by the headers of both, but for the vocabulary where that may differ.

    Raises:
        CheckpointError: For one that does not, or that is more than its weights.
    """
    check_compatible(base, checkpoint, vocabulary)
    return LoraExpert(checkpoint, base) if checkpoint.kind == "lora" else FullExpert(checkpoint, base)


def _tied(checkpoint: Checkpoint, places: dict[str, Place], name: str) -> Place | None:
    """Where an output layer that is tied to the embedding, and so not stored, lies; None for what stays the base's."""
    if not name.endswith(_OUTPUT):
        return None
    found = [place for key, place in places.items() if key.endswith(_EMBEDDINGS)]
    if not checkpoint.config.get("tie_word_embeddings", True) or len(found) != 1:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor '{name}' of the base and is not tied; is it a fine-tune of it?"
        )
    return found[0]


def _refuse_untied(checkpoint: Checkpoint, base: Checkpoint) -> None:
    """Refuse an output layer of its own where the base has none: the merged model would lose it."""
    own = [name for name in checkpoint.tensors if name.endswith(_OUTPUT)]
    lacking = not any(name.endswith(_OUTPUT) for name in base.tensors)
    if own and lacking and not checkpoint.config.get("tie_word_embeddings", True):
        raise CheckpointError(
            f"{checkpoint.folder} has '{own[0]}' of its own and the base {base.folder} ties it to its embedding; "
            "save the base with tie_word_embeddings false and an output layer."
        )


def _refuse_more(checkpoint: Checkpoint, used: Collection[str]) -> None:
    """Refuse weights in layers of the base that the base does not have: the merged model would lose them.

    What stands beside the layers, such as a head or a pooler, is the expert's own; masks and frequencies that older
    versions of transformers stored are no weights.
    """
    modules = {name[:at] for name in used for at, letter in enumerate(name) if letter == "."}
    for name, (dtype, shape) in checkpoint.tensors.items():
        parts = name.split(".")
        layer = next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdecimal()), None)
        stored = _NO_WEIGHTS.fullmatch(name) is not None and (len(shape) in (0, 4) or "inv_freq" in name)
        if name in used or dtype not in FLOATS or is_head(name) or stored:
            continue
        if name.rpartition(".")[0] in modules or layer in modules:
            raise CheckpointError(
                f"{checkpoint.folder} has '{name}', which the base does not have, so that the merged model would lose "
                "it; merge fine-tunes that have the base's weights."
            )


def _terms(checkpoint: Checkpoint, base: Checkpoint, places: Mapping[str, Place]) -> dict[str, tuple[float, str, str]]:
    """What an adapter adds to the base's tensors, of which an embedding may be the output layer too.

    Raises:
        CheckpointError: When it changes only one of the two, or the one otherwise than the other.
    """
    kind = str(next(iter(base.config.get("architectures") or ()), ""))
    alone = any(name.endswith(_OUTPUT) for name in base.tensors) or not kind.endswith(("ForCausalLM", "LMHeadModel"))
    if alone:
        return lora_terms(checkpoint, base.tensors)
    found = lora_terms(checkpoint, [*base.tensors, _OUTPUT])
    output, uses = found.pop(_OUTPUT, None), [name for name in found if name.endswith(_EMBEDDINGS)]
    if not output and not uses:
        return found
    if output and len(uses) == 1 and output[0] == found[uses[0]][0]:
        with Files() as files:
            both = [_read_factors(files, places, keys) for _, *keys in (output, found[uses[0]])]
        if all(map(torch.equal, *both)):
            return found
    raise CheckpointError(
        f"{checkpoint.folder} does not change the embedding and the output layer alike, which are one tensor of the "
        f"base {base.folder}; train it with ensure_weight_tying, or save the base with tie_word_embeddings false and "
        "an output layer."
    )


def _read_factors(files: Files, places: Mapping[str, Place], keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The factors (B, A) of one weight, in the type that they are stored in."""
    first, second = (files.read(places[key], 0, prod(places[key].shape)).view(places[key].shape) for key in keys)
    return lora_factors(first, second, keys[0])


def floats_of(base: Checkpoint) -> list[str]:
    """Names of the tensors that are merged: floating point, and no head of a task."""
    return [n for n, (dtype, _) in base.tensors.items() if dtype in FLOATS and not (is_head(n) and "lm_head" not in n)]
