"""The base that an adapter names as its own, where that is a folder here: whether it is the base of a merge."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from twinmerge.errors import CheckpointError
from twinmerge.headers import Checkpoint, inspect_checkpoint, read_pickled

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = ("F32", "F16", "BF16")


def refuse_other_base(base: Checkpoint, expert: Checkpoint, adapted: Iterable[str]) -> None:
    """Refuse an adapter that was trained on another model of the same shapes, by one tensor that it changes.

    A base that is moved, renamed, quantised or known to the Hub only cannot be compared, and passes.

    Args:
        base: of the merge.
        expert: a PEFT folder, which says what it was trained on.
        adapted: names of the base's tensors that it changes.

    Raises:
        CheckpointError: when the tensor differs between the two.
    """
    named = expert.config.get("base_model_name_or_path")
    place = Path(str(named or "")).expanduser()
    if not named or not (place / "config.json").is_file() or place.resolve() == base.folder.resolve():
        return
    try:
        own = inspect_checkpoint(place)
    except CheckpointError:  # a twin's experts name a folder above their own
        return
    for name in sorted(adapted):
        kinds = [one.tensors.get(name, ("", ())) for one in (base, own)]
        if kinds[0][1] == kinds[1][1] and all(kind in _FLOATS for kind, _ in kinds):
            if not _same(base, own, name):
                raise CheckpointError(
                    f"{expert.folder} was trained on {named}, whose '{name}' is not that of the base {base.folder}; "
                    "experts must be fine-tunes of the base: merge on the model that they name."
                )
            return


def _same(base: Checkpoint, own: Checkpoint, name: str) -> bool:
    """Whether two folders hold the same values, compared in the coarser of their number formats."""
    import torch

    values = [_read(one, name) for one in (base, own)]
    coarse = min((value.dtype for value in values), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(*(value.to(coarse) for value in values))


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    from safetensors import safe_open

    file = checkpoint.files[name]
    if file.suffix == ".bin":
        return cast("Tensor", read_pickled(file)[name])
    with safe_open(file, framework="pt") as opened:
        return cast("Tensor", opened.get_tensor(name))
