"""The base model named in a recipe: shipped in a wheel, a folder, or a Hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.data import wheels
from recipes.data.lite0 import lite0
from recipes.data.smollm2 import smollm2
from recipes.errors import ASKS, UNRUN, UNRUN_ADVICE, RecipeError
from twinmerge.errors import CheckpointError
from twinmerge.local import snapshot_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Reader = PreTrainedTokenizerBase | ProcessorMixin

__all__ = [
    "HUB_ID",
    "SHIPPED",
    "check_model",
    "is_here",
    "own_code",
    "reader_of",
    "reads_images",
    "resolve_model",
]

# Name after "shipped:" -> key of the wheel; `from_pretrained` reads its folder, or the one that is made from it once.
SHIPPED = {"minilm": "minilm", "smollm2": "smollm2", "efficientnet-lite0": "efficientnet-lite0"}
_MADE = {made.key: made for made in (smollm2, lite0)}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _shipped_key(name: str) -> str | None:
    """The wheel of a ``shipped:`` name, or None for other names."""
    if not name.startswith("shipped:"):
        return None
    key = SHIPPED.get(name.removeprefix("shipped:"))
    if key is None:
        accepted = ", ".join(f"shipped:{known}" for known in SHIPPED)
        raise RecipeError(f"no shipped model is called {name!r}; accepted: {accepted}, a folder or a Hub id")
    return key


def _folder(name: str) -> Path | None:
    """The folder a name stands for, or None for a Hub id."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        try:
            path = snapshot_of(path)
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
        if not (path / "config.json").is_file():
            raise RecipeError(f"model folder {path} has no config.json; give a folder written by save_pretrained")
        if fault := own_code(path):
            raise RecipeError(f"model folder {path} {fault}")
        return path
    if name and path.exists():
        raise RecipeError(f"model {name!r} is a file; give the folder that holds its config.json")
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise RecipeError(f"model {name!r} is neither an existing folder nor a Hub id such as 'roberta-base'")
    return None


def own_code(folder: Path) -> str:
    """Why a folder cannot be read without running code that it brings along; empty where transformers' own code does.

    Args:
        folder: Of a model or a tokenizer.

    Returns:
        Words that go on after the folder's name.
    """
    for name, kind in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        try:
            named = "auto_map" in json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            continue  # absent or damaged, which its reader says better
        if not named:
            continue
        import transformers

        try:
            getattr(transformers, kind).from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            if ASKS in str(error):
                return f"{UNRUN}, see auto_map in its {name}; {UNRUN_ADVICE}"
        except Exception:  # noqa: S110 (it is damaged, which its reader says better)
            pass
    return ""


def resolve_model(name: str) -> Path | str:
    """What to give to ``from_pretrained``.

    Args:
        name: ``shipped:`` and a name of `SHIPPED`, a folder with a ``config.json``, or a Hub id.

    Returns:
        The folder (a shipped model is fetched on first use), or the Hub id unchanged.

    Raises:
        RecipeError: When the name is none of these.
        RunError: When the model cannot be fetched.
    """
    key = _shipped_key(name)
    if key in _MADE:
        return _MADE[key]()
    return wheels.fetch(key) if key else _folder(name) or name


def reader_of(where: Path | str, *, images: bool) -> Reader:
    """What turns inputs into tensors for a model: its image processor for images, else its tokenizer.

    Args:
        where: folder or Hub id.
        images: what the inputs are.
    """
    import transformers

    if images:
        return cast("Reader", transformers.AutoImageProcessor.from_pretrained(where, trust_remote_code=False))
    return cast("Reader", transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False))


def reads_images(config: Mapping[str, object]) -> bool:
    """Whether a model sees images and no texts, by its configuration; CLIP and its kin have a tower that does."""
    if "vocab_size" in config:
        return False
    return bool({"image_size", "num_channels", "patch_size", "vision_config"} & config.keys()) or (
        config.get("model_type") == "timm_wrapper" or "pretrained_cfg" in config
    )


def is_here(name: str) -> bool:
    """Whether a model is on this machine, as a folder that `resolve_model` returns without fetching or making it."""
    key = _shipped_key(name)
    if key in _MADE:
        return _MADE[key].done()
    return wheels.cached(key) if key else _folder(name) is not None


def check_model(name: str) -> str:
    """One sentence for the pre-flight: which model it is and what would be fetched, without fetching.

    Args:
        name: As for `resolve_model`.

    Raises:
        RecipeError: When the name is wrong.
    """
    key = _shipped_key(name)
    if key:
        return f"model {name}: {_MADE[key].describe() if key in _MADE else wheels.describe(key)}"
    folder = _folder(name)
    return f"model folder {folder}" if folder else f"Hub model {name!r}, fetched on first use"
