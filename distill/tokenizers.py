"""Whether two tokenizers are one: the same ids for the same text, not only the same vocabulary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words, numbers, code, accents, other scripts, blanks: enough to tell two segmentations apart where no file can.
_PROBES = (
    "The quick brown foxes' 3.14159 naïve cafés — unbelievable, internationalisation!",
    "def f(x):\n\treturn x  ** 2 + 1e-5  # Σ 北京 привет 🙂",
    "lower UPPER MiXeD under_score kebab-case http://a.b/c?d=e&f",
)
_PARTS = ("normalizer", "pre_tokenizer")


def check_tokenizers(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, *, special: bool = True
) -> None:
    """Refuse two tokenizers that read a text differently.

    Ids that one has alone, as padding of a vocabulary, are allowed. Compared are the meaning of every common id, how
    text is normalised, split and merged, and what some probes become.

    Args:
        teacher: A tokenizer of transformers.
        student: Likewise.
        special: Whether texts get special tokens, which are then compared as well.

    Raises:
        DistillError: With the first difference.
    """
    theirs, ours = ({i: token for token, i in t.get_vocab().items()} for t in (teacher, student))
    common = sorted(theirs.keys() & ours.keys())
    odd = next((i for i in common if theirs[i] != ours[i]), None)
    if odd is not None or not common:
        _refuse(f"id {odd} is {theirs[odd]!r} and {ours[odd]!r}" if odd is not None else "they share no id")
    files = [_file(tokenizer) for tokenizer in (teacher, student)]
    if all(files):
        first, second = files
        for part in _PARTS:
            if first.get(part) != second.get(part):
                _refuse(f"their files have another {part}")
        for key in sorted((first["model"].keys() | second["model"].keys()) - {"vocab"}):
            if (mine := first["model"].get(key)) != (other := second["model"].get(key)):
                counts = f", {len(mine)} and {len(other)}" if isinstance(mine, list) and isinstance(other, list) else ""
                _refuse(f"their {first['model'].get('type', 'model')} has other {key}{counts}")
    for probe in _PROBES:
        told, heard = (t(probe, add_special_tokens=special, verbose=False)["input_ids"] for t in (teacher, student))
        if list(told) != list(heard):
            place = next((i for i, (a, b) in enumerate(zip(told, heard, strict=False)) if a != b), 0)
            _refuse(f"{probe[:20]!r} and so on becomes {told[place : place + 3]} and {heard[place : place + 3]}")


def _refuse(what: str) -> None:
    raise DistillError(
        f"the teacher's and the student's tokenizers differ ({what}), so their tokens cannot be compared; give models "
        "of one tokenizer"
    )


def _file(tokenizer: object) -> dict[str, Any]:
    """What a fast tokenizer's file says; empty for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return dict(json.loads(backend.to_str())) if backend is not None and hasattr(backend, "to_str") else {}
