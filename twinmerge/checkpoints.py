"""Read checkpoints that are to be merged: Hugging Face folders and PEFT folders, checked from their headers first.

Names, shapes, vocabularies and tokenizers are compared without reading a weight, so a pre-flight is instant and needs
no torch for safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from twinmerge.errors import CheckpointError, lacking
from twinmerge.headers import Checkpoint, inspect_checkpoint, read_header, read_json, read_pickled
from twinmerge.origin import refuse_other_base
from twinmerge.towers import tower_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

__all__ = [
    "Checkpoint",
    "align",
    "check_compatible",
    "inspect_checkpoint",
    "is_head",
    "lora_factors",
    "lora_obstacle",
    "lora_terms",
    "read_header",
    "read_json",
    "read_lora",
    "read_state",
    "refuse_more_than_factors",
    "same_tokenizer",
]

_FACTORS = {"A.weight": "B.weight", "B.weight": "A.weight", "embedding_A": "embedding_B", "embedding_B": "embedding_A"}
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


_CHANGES_BASE = ("pissa", "olora")
_NO_WEIGHTS = frozenset(
    ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "XLORA")
)
# What changes the values that the same weights give.
_COMPUTED = (
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "norm_eps",
    "hidden_act",
    "activation",
    "activation_function",
    "num_attention_heads",
    "num_key_value_heads",
    "position_embedding_type",
    "rope_theta",
    "local_attention",
)


class _UnknownModuleError(CheckpointError):
    """An adapter changes a module that the base does not seem to have."""


def align(base: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Map a checkpoint's names to the base's, where one of the two carries a model prefix such as `bert.`.

    >>> align(["layer.weight"], ["bert.layer.weight", "classifier.weight"])
    {'layer.weight': 'bert.layer.weight'}
    """
    wanted, given = list(base), list(names)
    prefixes = {""} | {n.split(".", 1)[0] + "." for n in (*given, *wanted) if "." in n}
    candidates = [
        {w: theirs for w in wanted if (theirs := (p + w)) in known or (theirs := w.removeprefix(p)) in known}
        for known in (set(given),)
        for p in sorted(prefixes, key=len)
    ]
    return max(candidates, key=len)


def check_compatible(base: Checkpoint, expert: Checkpoint, vocabulary: str = "strict") -> str:
    """Compare an expert with its base by headers; returns one line saying what was compared.

    Args:
        base: of the merge; of a folder of CLIP or its kin its tower counts.
        expert: a fine-tune of it, likewise.
        vocabulary: `strict`; with `pad` and `union` (see `twinmerge.vocabulary`) the rows of embeddings may differ.

    Raises:
        CheckpointError: naming the first tensor, vocabulary or tokenizer that differs.
    """
    base, expert = tower_of(base), tower_of(expert)
    if expert.kind == "lora":
        return _check_adapter(base, expert, vocabulary)
    _check_configuration(base, expert, vocabulary)
    names = align(base.tensors, expert.tensors)
    bare = any(str(name).endswith("Model") for name in expert.config.get("architectures") or ("Model",))
    for name, (dtype, shape) in base.tensors.items():
        if name not in names:
            if is_head(name) or "F" not in dtype:  # buffers that are no weights come and go between library versions
                continue
            if not bare and "pooler" in name.split(".")[:2]:  # a classifier of tokens, or with a pooler of its own
                continue
            raise lacking(expert.folder, name)
        other = expert.tensors[names[name]][1]
        rows = vocabulary != "strict" and shape[:1] == (base.config.get("vocab_size"),)
        if other != shape and not (rows and other[1:] == shape[1:]):
            if _classifiers((base, shape), (expert, other)):
                continue
            raise CheckpointError(
                f"{expert.folder} has '{name}' of shape {list(other)} and the base {list(shape)}; "
                "experts must be fine-tunes of the base."
            )
    if vocabulary != "union":
        same_tokenizer(base, expert)
    return f"{expert.folder}: {len(names)} tensors of the base's shapes, {expert.bytes / 1e6:.1f} MB"


def _classifiers(*both: tuple[Checkpoint, tuple[int, ...]]) -> bool:
    """Whether tensors end classifiers, by their first side: every expert has its own in place of the base's."""
    for checkpoint, shape in both:
        config = checkpoint.config
        outputs = len(config.get("id2label") or ()) or config.get("num_labels") or config.get("num_classes") or 2
        if not next(iter(config.get("architectures") or ()), "").endswith("Classification") or shape[:1] != (outputs,):
            return False
    (_, ours), (_, theirs) = both
    return ours[1:] == theirs[1:]


def _check_configuration(base: Checkpoint, expert: Checkpoint, vocabulary: str) -> None:
    ours, theirs = base.config.get("model_type"), expert.config.get("model_type")
    if ours != theirs:
        raise CheckpointError(
            f"{expert.folder} is a {theirs} model and the base {base.folder} is {ours}; "
            "experts must be fine-tunes of the base."
        )
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", *_COMPUTED):
        if key == "vocab_size" and vocabulary != "strict":
            continue
        if base.config.get(key) != expert.config.get(key) and {key} <= base.config.keys() & expert.config.keys():
            way = " (or declare 'vocabulary: pad' or 'union')" if key == "vocab_size" else ""
            raise CheckpointError(
                f"{expert.folder} has {key} {expert.config.get(key)} and the base {base.config.get(key)}; "
                f"experts must be fine-tunes of the base{way}."
            )


def read_state(checkpoint: Checkpoint, base: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a full checkpoint under the base's names, and those the base does not have (a task head).

    Raises:
        CheckpointError: for NaN or infinite weights and for missing tensors.
    """
    from safetensors import safe_open

    wanted = list(base)
    names = align(wanted, checkpoint.tensors)
    tensors: dict[str, Tensor] = {}
    if len(names) == len(wanted):
        for file in sorted(set(checkpoint.files.values())):
            if file.suffix == ".bin":
                tensors.update(read_pickled(file))
                continue
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - no mapping
    else:  # transformers saves some models, such as fused experts, under other names than they have in memory
        model, report = with_report(_architecture(checkpoint), checkpoint.folder)
        if missing := sorted(map(str, report["missing_keys"])):
            raise lacking(checkpoint.folder, missing[0])
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        names = align(wanted, tensors)
    if missing := [n for n in wanted if n not in names]:
        raise lacking(checkpoint.folder, missing[0])
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{checkpoint.folder}: tensor '{name}' holds NaN or infinite values; train the expert again."
            )
    return {ours: tensors.pop(theirs) for ours, theirs in names.items()}, tensors


def with_report(
    kind: type[PreTrainedModel | _BaseAutoModelClass], folder: Path | str, **options: object
) -> tuple[PreTrainedModel, Mapping[str, Collection[object]]]:
    """A model, and which of its tensors its folder lacked or had beside them, as transformers reports."""
    load = cast("Callable[..., tuple[PreTrainedModel, Mapping[str, Collection[object]]]]", kind.from_pretrained)
    return load(folder, output_loading_info=True, trust_remote_code=False, **options)


def _architecture(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    import transformers

    name = next(iter(checkpoint.config.get("architectures") or ()), "")
    found = getattr(transformers, name, None)
    if not hasattr(found, "from_pretrained"):
        raise CheckpointError(f"{checkpoint.folder} is of architecture '{name}', which transformers does not have.")
    return cast("type[PreTrainedModel]", found)


def _in_memory(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, from its configuration alone."""
    import torch

    kind = _architecture(checkpoint)
    with torch.device("meta"):
        model = kind(cast("type[PretrainedConfig]", kind.config_class).from_pretrained(checkpoint.folder))
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def read_lora(
    checkpoint: Checkpoint, base: Iterable[str], *, beside: bool = False
) -> dict[str, tuple[float, Tensor, Tensor]]:
    """The terms scale * B @ A of a PEFT LoRA folder by base parameter name (as the layer multiplies it, out x in).

    Args:
        checkpoint: The folder.
        base: Names of the base's parameters.
        beside: The caller reads what the folder holds beside its factors, such as a head; else that is refused.

    Raises:
        CheckpointError: for a parameter the base does not have, NaN, or an adapter that is more than its factors.
    """
    from safetensors.torch import load_file

    if not beside:
        refuse_more_than_factors(checkpoint)
    file = next(iter(checkpoint.files.values()))
    tensors = read_pickled(file) if file.suffix == ".bin" else load_file(file)
    terms: dict[str, tuple[float, Tensor, Tensor]] = {}
    for name, (scale, first, second) in lora_terms(checkpoint, base).items():
        terms[name] = (scale, *lora_factors(tensors[first], tensors[second], first))
        if not all(factor.isfinite().all() for factor in terms[name][1:]):
            raise CheckpointError(
                f"{checkpoint.folder}: LoRA of '{name}' holds NaN or infinite values; train it again."
            )
    return terms


def lora_terms(checkpoint: Checkpoint, base: Iterable[str]) -> dict[str, tuple[float, str, str]]:
    """What a LoRA folder adds, from its headers: base parameter -> (scale, key of A, key of B)."""
    config, found = checkpoint.config, {}
    for name, (module, first, second) in _adapted(checkpoint, base).items():
        rank = checkpoint.tensors[first][1][0]
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        found[name] = (alpha / (rank**0.5 if config.get("use_rslora") else rank), first, second)
    return found


def lora_factors(A: Tensor, B: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """The factors (B, A) of the weight as the layer multiplies it, out x in; those of an embedding are turned."""
    return (A.t(), B.t()) if key.endswith("embedding_A") else (B.flatten(1), A.flatten(1))


def _adapted(checkpoint: Checkpoint, base: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """What an adapter changes: base parameter -> (module, key of A, key of B); its LoRA factors only."""
    found = {}
    for key, (_, shape) in checkpoint.tensors.items():
        module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind not in _FACTORS:  # a head, a bias or a magnitude, which PEFT reads
            continue
        other = key.removesuffix(kind) + _FACTORS[kind]
        if other not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.folder} has '{key}' without its other factor; copy the folder again.")
        if "A" in kind:
            ranks = shape[0], checkpoint.tensors[other][1][1]
            if ranks[0] != ranks[1]:
                raise CheckpointError(
                    f"{checkpoint.folder}: the factors of '{module}' have ranks {ranks[0]} and {ranks[1]} (a grouped "
                    "convolution?); merge the adapter into its base with PEFT's merge_and_unload and give that folder."
                )
            found[f"{module}.weight"] = (module, key, other)
    names = align(base, found)
    if unknown := sorted(found.keys() - names.values()):
        raise _UnknownModuleError(f"{checkpoint.folder} changes '{unknown[0]}', which the base does not have.")
    return {ours: found[theirs] for ours, theirs in names.items()}


def lora_obstacle(checkpoint: Checkpoint) -> str:
    """Why an adapter has no exact low-rank form, so that it is merged into whole weights; empty where it has one."""
    config = checkpoint.config
    kind, start = str(config.get("peft_type")), str(config.get("init_lora_weights", True)).lower()
    if kind != "LORA":
        return f"it is a {kind} adapter"
    if odd := [key for key in ("use_dora", "lora_bias", "trainable_token_indices") if config.get(key)]:
        return f"it has {odd[0]}"
    if config.get("bias", "none") != "none":
        return f"it has trained biases (bias: {config['bias']})"
    return f"it was initialised by {start}, which changes the base" if start.startswith(_CHANGES_BASE) else ""


def refuse_more_than_factors(checkpoint: Checkpoint) -> None:
    """Refuse an adapter whose factors alone are another model.

    Raises:
        CheckpointError: Saying what it holds beside them.
    """
    odd = [key for key in checkpoint.tensors if key.partition(".lora_")[2] not in _FACTORS]
    reasons = [f"'{odd[0]}' is not a LoRA factor of a weight"] if odd else []
    if reasons := [*reasons, *filter(None, [lora_obstacle(checkpoint)])]:
        raise CheckpointError(
            f"{checkpoint.folder} is no plain LoRA: {' and '.join(reasons)}; read it with twinmerge.merge_folders, or "
            "merge the adapter into its base with PEFT's merge_and_unload and give the full folder."
        )


def _refuse_inexact(expert: Checkpoint) -> None:
    """Refuse adapters of which no loading gives the trained weights again."""
    config, folder = expert.config, expert.folder
    kind, start = str(config.get("peft_type")), str(config.get("init_lora_weights", True)).lower()
    if kind in _NO_WEIGHTS:
        raise CheckpointError(
            f"{folder} holds a {kind} adapter, which changes no weights and cannot be merged; train a LoRA instead."
        )
    if start.startswith(("pissa_niter", "corda", "loftq", "lora_ga")):
        raise CheckpointError(
            f"{folder} was initialised by {start}, which changed the base in a way that cannot be computed again; save "
            "it with PEFT's path_initial_model_for_weight_conversion, or merge it and give the full folder."
        )
    if odd := [key for key in ("layer_replication", "target_parameters") if config.get(key)]:
        raise CheckpointError(
            f"{folder} has {odd[0]}, so that its layers are not the base's; merge it and give the full folder."
        )


def _check_adapter(base: Checkpoint, expert: Checkpoint, vocabulary: str) -> str:
    _refuse_inexact(expert)
    if any(".text_model." in key for key in expert.tensors) and str(base.config.get("model_type")).endswith(
        "vision_model"
    ):
        raise CheckpointError(
            f"{expert.folder} adapts a text model too, and of {base.folder} only the tower that sees is merged; merge "
            "the adapter into its base with PEFT's merge_and_unload, and give the full folder."
        )
    if vocabulary != "union":
        same_tokenizer(base, expert)
    if obstacle := lora_obstacle(expert):
        return f"{expert.folder}: adapter, merged into whole weights since {obstacle}"
    shapes = {name: shape for name, (_, shape) in base.tensors.items()}
    try:
        adapted = _adapted(expert, shapes)
    except _UnknownModuleError:  # transformers saves some models under other names than they have in memory
        shapes = _in_memory(base)
        adapted = _adapted(expert, shapes)
    refuse_other_base(base, expert, adapted)
    for name, (_, first, second) in adapted.items():
        A, B = expert.tensors[first][1], expert.tensors[second][1]
        product, shape = (B[0], prod(A[1:])), shapes[name]
        if (shape[0], prod(shape[1:])) not in (product, product[::-1]):  # transposed: embeddings and Conv1D
            raise CheckpointError(
                f"{expert.folder} adapts '{name}' as {list(product)} and the base has {list(shape)}; "
                "experts must be fine-tunes of the base."
            )
    return f"{expert.folder}: LoRA adapter of {len(adapted)} of the base's tensors"


def _pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    return next((v for k, v in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({k})", module)), default)


def is_head(name: str) -> bool:
    """Whether a tensor is of a task's head, by its name; the base's head takes no part in a merge."""
    return name.split(".", 1)[0] in {"classifier", "score", "cls", "lm_head", "qa_outputs", "pre_classifier"}


def same_tokenizer(base: Checkpoint, expert: Checkpoint) -> None:
    """Refuse an expert whose tokenizer maps texts to other ids than the base's, where both have one.

    Raises:
        CheckpointError: naming the file that differs.
    """
    both = (name for name in _TOKENIZERS if (base.folder / name).exists() and (expert.folder / name).exists())
    name = next(both, None)
    if name is not None and _vocabulary(base.folder / name) != _vocabulary(expert.folder / name):
        raise CheckpointError(
            f"{expert.folder} has another tokenizer than the base {base.folder} ({name} differs); "
            "experts must be fine-tunes of the base (where tokens were added, declare 'vocabulary: union', which a "
            "recipe with language tasks does not take)."
        )


def _vocabulary(file: Path) -> object:
    if file.name != "tokenizer.json":
        return file.read_bytes()
    # Only what maps text to ids counts: padding and truncation settings are written back by every save.
    content = read_json(file)
    return {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
