"""Read an expert of a causal language model from a folder that transformers, PEFT or the finetune recipe wrote.

As in `twinmerge.folders`, what is read is compared with the folder's own model before it is merged.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from twinmerge.checkpoints import Checkpoint, check_compatible, inspect_checkpoint, lora_obstacle, read_lora
from twinmerge.errors import CheckpointError
from twinmerge.exclusive import LoraTerms
from twinmerge.folders import Expert
from twinmerge.heads import random_inputs

TOLERANCE = 1e-4  # of logits: an adapter beside its matrix rounds otherwise than added to it, in every layer


def read_language_folder(
    where: Path, base: Path | str, model: PreTrainedModel, *, headers: Checkpoint | None = None
) -> Expert:
    """Read one expert of a causal language model.

    Args:
        where: a full fine-tune or an adapter, with the base's vocabulary.
        base: what the base is loaded from, which an adapter is put on.
        model: the base by AutoModelForCausalLM in float32; left as it is.
        headers: of the base, where it is a folder; what is wrong is then said by the first tensor's name.

    Returns:
        The expert, without a head.

    Raises:
        CheckpointError: for a damaged folder, a fine-tune of another base, or anything that cannot be read exactly.
    """
    found = inspect_checkpoint(where)
    line = str(where) if headers is None else check_compatible(headers, found)
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    inputs = random_inputs(model)
    original = _original(found, base)
    with torch.no_grad():
        theirs = original(**inputs).logits
    terms: LoraTerms = {}
    plain = found.kind == "lora" and not lora_obstacle(found)
    beside = _beside(found) if plain else ""
    if plain:
        _refuse_tied(found, model)
    if plain and not beside:
        terms = read_lora(found, own, beside=True)
        state, note = {**own, **_adapted(model, own, terms)}, f", factors of {len(terms)} matrices"
    else:
        whole = original if found.kind == "full" else original.merge_and_unload()
        state = {name: parameter.detach() for name, parameter in whole.named_parameters()}
        note = f", merged into whole weights since it holds '{beside}' beside its factors" if beside else ""
    if odd := sorted(own.keys() ^ state.keys()):
        raise CheckpointError(f"{where} and the base differ in the parameter '{odd[0]}'; give the base it came from.")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{where} has '{name}' of shape {list(value.shape)} and the base {list(own[name].shape)}; "
                "experts must be fine-tunes of the base."
            )
        if not value.isfinite().all():
            raise CheckpointError(f"{where}: tensor '{name}' holds NaN or infinite values; train the expert again.")
    del original
    made = copy.deepcopy(model)
    made.load_state_dict(state, strict=False)
    with torch.no_grad():
        error = float((made(**inputs).logits - theirs).abs().max()) / (1 + float(theirs.abs().max()))
    if not error <= TOLERANCE:
        raise CheckpointError(
            f"{where}: the expert read differs from the folder's own model by {error:.1e} of its logits; its "
            "configuration is not the base's, or it computes with more than its weights."
        )
    digest = hashlib.sha256()
    for file in sorted(set(found.files.values())):
        digest.update(file.read_bytes())
    return Expert(state, terms, None, None, digest.hexdigest(), found.bytes, error, f"{line}{note}")


def _original(found: Checkpoint, base: Path | str) -> Any:
    """The folder's model as its maker loads it, in float32."""
    from peft import PeftModel

    place = found.folder if found.kind == "full" else base
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
        whole: Any = model if found.kind == "full" else PeftModel.from_pretrained(model, str(found.folder))
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(
            f"{found.folder} cannot be loaded as a causal language model ({reason}); save it with save_pretrained."
        ) from error
    return whole.eval()


def _beside(found: Checkpoint) -> str:
    """What an adapter holds beside its factors; a copy of an adapted embedding's own weight, as PEFT adds, is none."""
    copied = ".base_layer.weight"
    return next((key for key in found.tensors if ".lora_" not in key and not key.endswith(copied)), "")


def _refuse_tied(found: Checkpoint, model: PreTrainedModel) -> None:
    """Refuse an adapter of the embedding or the output layer of a base that has one weight for both."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    for name in (name for name, module in model.named_modules() if module in ends):
        if any(key.removeprefix("base_model.model.").startswith(f"{name}.") for key in found.tensors):
            raise CheckpointError(
                f"{found.folder} changes '{name}', and the base ties its embedding to its output layer, so that a "
                "merge would change both; save the base with tie_word_embeddings false, and merge on that."
            )


def _adapted(model: PreTrainedModel, own: dict[str, Tensor], terms: LoraTerms) -> dict[str, Tensor]:
    """The parameters that an adapter changes, with its product added."""
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    made = {}
    for name, (scale, B, A) in terms.items():
        delta = scale * (B.float() @ A.float())
        made[name] = own[name] + (delta.t() if name in turned else delta).to(own[name])
    return made
