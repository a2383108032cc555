"""Experts whose vocabularies differ from the base's: refused, padded or united, as declared and never guessed.

`strict` accepts one vocabulary only. `pad` accepts embeddings with more or fewer rows beside the same tokenizer, whose
further rows no text reaches. `union` accepts tokens that experts added: the base's ids stay, every added token gets one
new id, and the tokenizer of the twin knows them all. A token that an expert does not know has the base's row there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinmerge.checkpoints import read_json
from twinmerge.errors import CheckpointError
from twinmerge.folders import Expert

POLICIES = ("strict", "pad", "union")


def fit_vocabulary(
    model: PreTrainedModel, experts: Mapping[str, Expert], policy: str, base: Path | str, folders: Mapping[str, Path]
) -> tuple[dict[str, Expert], PreTrainedTokenizerBase | None]:
    """Bring the base's and all experts' embeddings to the same rows.

    Args:
        model: the base; its embeddings grow, in place.
        experts: task -> expert, as read with this policy.
        policy: `strict`, `pad` or `union`.
        base: folder or Hub name with the base's tokenizer; read for `union` alone.
        folders: task -> the expert's folder, whose tokenizer is read for `union` alone.

    Returns:
        The experts, and the united tokenizer; None where the base's own serves.

    Raises:
        ValueError: for an unknown policy.
        CheckpointError: for tokenizers that differ in more than added tokens.
    """
    if policy not in POLICIES:
        raise ValueError(f"vocabulary '{policy}' is unknown; choose one of {', '.join(POLICIES)}.")
    if policy == "strict":
        return dict(experts), None
    table = _table(model)
    name = next(n for n, p in model.named_parameters() if p is table)
    places = {task: torch.arange(expert.state[name].shape[0]) for task, expert in experts.items()}
    tokenizer = None
    if policy == "union":
        tokenizer, places = united(base, folders, places)
    rows: int = max(table.shape[0], *(int(place.max()) + 1 for place in places.values()))
    own = _grown(model, rows, {t: (experts[t].state[name], place) for t, place in places.items()})
    made = {}
    for task, expert in experts.items():
        value = own.clone()
        value[places[task]] = expert.state[name].to(own.dtype)
        terms = {} if name in expert.terms and rows != expert.state[name].shape[0] else expert.terms
        made[task] = replace(expert, state={**expert.state, name: value}, terms=terms)
    return made, tokenizer


def _grown(model: PreTrainedModel, rows: int, owners: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """The base's embedding with so many rows: a new row is the mean of those that the experts have there."""
    old = _table(model).shape[0]
    if rows > old:
        model.resize_token_embeddings(rows, mean_resizing=False)
        table = _table(model)
        total, count = torch.zeros(rows - old, table.shape[1]), torch.zeros(rows - old, 1)
        for value, place in owners.values():
            new = place >= old
            total[place[new] - old] += value[new].float()
            count[place[new] - old] += 1
        with torch.no_grad():
            table[old:] = (total / count.clamp_min(1)).to(table.dtype)
    return _table(model).detach()


def _table(model: PreTrainedModel) -> nn.Parameter:
    return cast(nn.Parameter, model.get_input_embeddings().weight)


def united(
    base: Path | str, folders: Mapping[str, Path], places: Mapping[str, Tensor]
) -> tuple[PreTrainedTokenizerBase, dict[str, Tensor]]:
    """The base's tokenizer with all added tokens, and where each row of each expert's embedding goes.

    Args:
        base: folder or Hub name with the base's tokenizer.
        folders: task -> the expert's folder.
        places: task -> the numbers of its rows.

    Raises:
        CheckpointError: for tokenizers that differ in more than added tokens, or that cannot be read.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    known: dict[str, int] = dict(tokenizer.get_vocab())
    theirs: dict[str, PreTrainedTokenizerBase] = {}
    for task, folder in folders.items():
        if not (folder / "tokenizer_config.json").is_file():
            if len(places[task]) > len(known):
                raise CheckpointError(f"{folder} has no tokenizer, so that its {len(places[task])} tokens are unknown.")
            continue
        _only_added(folder, base)
        try:
            theirs[task] = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            raise CheckpointError(
                f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:120]}); code that a folder "
                "brings along is not run: save it with a tokenizer that transformers has."
            ) from error
        added = sorted(theirs[task].added_tokens_decoder.items())
        tokenizer.add_tokens([token for _, token in added if token.content not in known])
        known = dict(tokenizer.get_vocab())
    moved = {task: place.clone() for task, place in places.items()}
    for task, own in theirs.items():
        for token, index in own.get_vocab().items():
            if index < len(moved[task]):
                moved[task][index] = known[token]
        used = moved[task].tolist()
        if len(set(used)) < len(used):  # padding rows of an expert that a united token takes
            raise CheckpointError(
                f"{folders[task]} has padding rows where another expert added tokens; cut them off with "
                "resize_token_embeddings(len(tokenizer)) and save it again."
            )
    return tokenizer, moved


def _only_added(folder: Path, base: Path | str) -> None:
    ours, file = Path(base) / "tokenizer.json", folder / "tokenizer.json"
    if not ours.is_file() or not file.is_file():
        raise CheckpointError(
            f"{folder} and {base} need a tokenizer.json each for 'vocabulary: union'; save them again."
        )
    left, right = read_json(ours), read_json(file)
    for part in ("model", "normalizer", "pre_tokenizer"):
        if left.get(part) != right.get(part):
            raise CheckpointError(
                f"{folder} has another tokenizer than the base {base} ({part} differs); 'vocabulary: union' unites "
                "added tokens only."
            )
