"""Read an expert from any folder that plain transformers or PEFT wrote: its weights, its head and its labels.

The folder is loaded as its maker would, and what is read of it (the weights of the body under the base's names, the
head, the low-rank terms of an adapter) is put together again and compared with that model's own logits. What differs
is refused, so that nothing is merged that answers otherwise than the expert did.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from twinmerge.attaching import statistics
from twinmerge.checkpoints import (
    Checkpoint,
    check_compatible,
    inspect_checkpoint,
    lora_obstacle,
    read_json,
    read_lora,
    with_report,
)
from twinmerge.errors import CheckpointError, lacking
from twinmerge.heads import EXACT, check_runs, label_names, parts, random_inputs, read_head, states_and_logits, unnamed
from twinmerge.modeling_twin import Head
from twinmerge.states import states_of
from twinmerge.towers import is_pair, tower_class

if TYPE_CHECKING:
    from twinmerge.exclusive import LoraTerms

_AUTO = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}


@dataclass(frozen=True)
class Expert:
    """One expert, read and checked.

    Attributes:
        state: Parameter name of the base -> the expert's value.
        terms: For an adapter with an exact low-rank form, parameter name -> (scale, B, A); empty for whole weights.
        head: The task's head; None for a body alone.
        labels: What the head's outputs stand for; empty for regression, None where the folder does not say.
        digest: sha256 of the files with its weights.
        bytes: Size of what it adds: the whole model, or the adapter alone.
        error: Largest difference between its logits and those of the folder's own model on a random batch, relative to
            1 + the largest logit.
        note: How it was read, for a log.
    """

    state: Mapping[str, Tensor]
    terms: LoraTerms
    head: Head | None
    labels: list[str] | None
    digest: str
    bytes: int
    error: float = 0.0
    note: str = field(default="", compare=False)


def read_folder(
    where: Path, base: Path | str, model: nn.Module, *, headers: Checkpoint | None = None, vocabulary: str = "strict"
) -> Expert:
    """Read one expert.

    Args:
        where: a folder of transformers (any class on the base's body) or PEFT, or one that the finetune recipe made.
        base: what the base is loaded from, which an adapter is put on.
        model: the base by AutoModel; left as it is.
        headers: of the base, where it is a folder; what is wrong is then said by the first tensor's name.
        vocabulary: `strict`, or `pad` and `union`, where embeddings may have more or fewer rows than the base's.

    Raises:
        CheckpointError: for a damaged folder, a fine-tune of another base, or anything that cannot be read exactly.
    """
    check_runs(cast(PreTrainedModel, model))
    found = inspect_checkpoint(where)
    line = str(where) if headers is None else check_compatible(headers, found, vocabulary)
    own = _own_card(where)
    original, names = _original(found, base, own, vocabulary)
    return _taken(original, found, model, own, names, line)


def _own_card(where: Path) -> dict[str, Any] | None:
    """expert.json of the finetune recipe, where its head stands beside it."""
    if not (where / "expert.json").is_file():
        return None
    card: object = read_json(where / "expert.json")
    if not isinstance(card, dict) or not isinstance(card.get("labels"), list):
        raise CheckpointError(f"{where / 'expert.json'} does not list the labels; make the expert again.")
    return card


def _original(
    found: Checkpoint, base: Path | str, card: Mapping[str, Any] | None, vocabulary: str
) -> tuple[PreTrainedModel, list[str] | None]:
    """The folder's model as its maker loads it, adapters multiplied in, in float32; and its labels."""
    named: list[str] | None = None if card is None else card["labels"]
    if found.kind == "full":
        model = _loaded(_architecture(found), found.folder, found.folder)
        if named is None and _has_head(model) and not unnamed(label_names(model.config)):
            named = label_names(model.config)
        return model, named
    config = _beside(found.folder)
    if named is None and config is not None and not unnamed(label_names(config)):
        named = label_names(config)
    return _adapted_base(found, base), named


def _beside(folder: Path) -> PretrainedConfig | None:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False) if (folder / "config.json").is_file() else None


def _made_for(found: Checkpoint) -> tuple[str, list[int]]:
    """The class that an adapter was trained on, by its name in transformers, and the outputs of the head in it."""
    import transformers

    mapping = found.config.get("auto_mapping")  # of PEFT, where there is no task_type
    made_for = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    auto = _AUTO.get(str(found.config.get("task_type")), "AutoModel")
    answers = [shape[0] for key, (_, shape) in found.tensors.items() if len(shape) == 2 and _is_answer(key)]
    if auto == "AutoModel" and made_for.endswith("Classification") and hasattr(transformers, made_for):
        auto = made_for
    if auto == "AutoModel" and answers:
        raise CheckpointError(
            f"{found.folder} holds a head and neither task_type ({found.config.get('task_type')}) nor auto_mapping in "
            "adapter_config.json says of which model; set task_type to SEQ_CLS or TOKEN_CLS, or base_model_class of "
            "auto_mapping to the class that it was trained on, such as ViTForImageClassification."
        )
    if found.config.get("task_type") == "CAUSAL_LM":
        raise CheckpointError(
            f"{found.folder} is an adapter of a causal language model, which answers by its output layer; merge such "
            "adapters with twinmerge.merge_files or twin_files, or with the recipe merge."
        )
    if auto != "AutoModel" and not answers:
        raise CheckpointError(
            f"{found.folder} has no head among its tensors, so that its answers are lost; train it with the head in "
            "modules_to_save."
        )
    return auto, answers


def _adapted_base(found: Checkpoint, base: Path | str) -> PreTrainedModel:
    import transformers
    from peft import PeftModel, get_peft_model_state_dict

    auto, answers = _made_for(found)
    # A base that is a classifier itself may have another number of labels.
    named = {"num_labels": answers[-1], "ignore_mismatched_sizes": True} if answers else {}
    try:
        kind = tower_class(base) if auto == "AutoModel" else getattr(transformers, auto)
        model, report = with_report(kind, base, dtype=torch.float32, **named)
        saved = {key.removeprefix("base_model.model.") for key in found.tensors}
        other = (str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys") or ())
        if odd := sorted(key for key in other if key not in saved):
            raise CheckpointError(
                f"the base has '{odd[0]}' of another shape than its configuration says; copy or save it again."
            )
        if new := sorted(key for key in map(str, report["missing_keys"]) if key not in saved):
            raise CheckpointError(
                f"{found.folder} was trained on a '{new[0]}' that neither the base nor the adapter holds; give a base "
                f"with it, or train again with '{new[0].split('.')[0]}' in modules_to_save."
            )
        adapted: Any = PeftModel.from_pretrained(model, str(found.folder)).eval()
        taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if lost := sorted(key for key in found.tensors if key not in taken):
            raise CheckpointError(
                f"{found.folder} has '{lost[0]}', which has no place in a {type(model).__name__} of the base: it was "
                "trained on a model of another class; merge the adapter into its base with PEFT's merge_and_unload, "
                "and give the full folder."
            )
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"{found.folder} is no adapter of this base ({_short(error)}); train it again."
        ) from error
    inputs = random_inputs(model)
    with torch.no_grad():
        try:
            before = adapted(**inputs)[0]
            merged: PreTrainedModel = adapted.merge_and_unload().eval()
        except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            kind = found.config.get("peft_type")
            raise CheckpointError(
                f"{found.folder} holds a {kind} adapter that PEFT cannot run or merge ({_short(error)})."
            ) from error
        _same(found.folder, "the adapter merged by PEFT", merged(**inputs)[0], before)
    return merged


def _loaded(kind: type[PreTrainedModel], where: Path | str, named: Path) -> PreTrainedModel:
    try:
        model, report = with_report(kind, where, dtype=torch.float32)
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, ImportError) as error:
        raise CheckpointError(f"{named} cannot be loaded ({_short(error)}); save it with save_pretrained.") from error
    if missing := sorted(map(str, report["missing_keys"])):
        raise CheckpointError(f"{named} lacks the tensor '{missing[0]}' of its own model; copy or save it again.")
    if wrong := sorted(map(str, report.get("mismatched_keys") or ())):
        raise CheckpointError(f"{named} has a tensor of another shape than its configuration says: {wrong[0]}.")
    model.eval()
    return model


def _architecture(found: Checkpoint) -> type[PreTrainedModel]:
    import transformers

    name = next(iter(found.config.get("architectures") or ()), "")
    if is_pair(found) and not name.endswith("Classification"):  # a text model beside the tower
        return tower_class(found.folder)
    kind = getattr(transformers, name, None)
    if not hasattr(kind, "from_pretrained"):
        raise CheckpointError(f"{found.folder} is of architecture '{name}', which transformers does not have.")
    return cast("type[PreTrainedModel]", kind)


def _taken(
    original: PreTrainedModel,
    found: Checkpoint,
    model: nn.Module,
    card: Mapping[str, Any] | None,
    labels: list[str] | None,
    line: str,
) -> Expert:
    where = found.folder
    for name, value in original.named_parameters():
        if not value.isfinite().all():
            raise CheckpointError(f"{where}: tensor '{name}' holds NaN or infinite values; train the expert again.")
    pretrained = {name: value.detach() for name, value in (*model.named_parameters(), *statistics(model).items())}
    inner, _ = parts(original)
    body = {**dict(inner.named_parameters()), **statistics(inner)}
    if type(inner) is not type(model):
        both = getattr(original.config, "is_encoder_decoder", False)
        raise CheckpointError(
            f"{where} is a {type(original).__name__}, which has an encoder and a decoder; give encoders, as "
            "T5EncoderModel saves them, or merge whole models by the recipe merge_files."
            if both
            else f"{where} has a {type(inner).__name__} inside and the base is a {type(model).__name__}; give the base "
            "of this expert."
        )
    head, moved = _head(original, where, card)
    if extra := sorted(body.keys() - pretrained.keys()):
        raise CheckpointError(
            f"{where} has the parameter '{extra[0]}' that the base lacks; give the base it came from."
        )
    if missing := sorted(n for n in pretrained.keys() - body.keys() if not n.startswith("pooler")):
        raise lacking(where, missing[0])
    # A pooler belongs to the head that reads through it; one that no head reads says nothing about the expert.
    apart = moved if head is not None else set()
    state = {n: body[n].detach() if n in body and n not in apart else p for n, p in pretrained.items()}
    error = 0.0
    if card is None and (head is not None or original.main_input_name == "pixel_values"):
        error = _compared(original, head, model, state, where)
    if head is not None:
        head.label_names, head.problem = labels, getattr(original.config, "problem_type", None)
    terms, note = _terms(found, pretrained, state, apart)
    digest = hashlib.sha256()
    for file in sorted(set(found.files.values())):
        digest.update(file.read_bytes())
    note = f"{line}{note}" + ("" if head is None else f", head on {head.pooling}")
    return Expert(state, terms, head, labels, digest.hexdigest(), found.bytes, error, note)


def _compared(
    original: PreTrainedModel, head: Head | None, model: nn.Module, state: Mapping[str, Tensor], where: Path
) -> float:
    """The difference of what was read, on the base's class, to the folder's own model; without a head of the states."""
    inputs = random_inputs(original)
    if head is not None:
        states, wanted = states_and_logits(original, inputs)
    else:
        inner, _ = parts(original)
        with torch.no_grad():
            states = states_of(inner, inner(**inputs))
        wanted = states.tokens
    with _holding(model, state) as same, torch.no_grad():
        if same is not None:
            states = states_of(same, same(**inputs))
    found = states.tokens if head is None else head(states, inputs.get("attention_mask"))
    return _same(where, "the expert read", found, wanted)


@contextmanager
def _holding(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[nn.Module | None]:
    """A copy of the base with an expert's weights; None where these have other vocabularies and are fitted later."""
    own = {**dict(model.named_parameters()), **statistics(model)}
    if any(own[name].shape != value.shape for name, value in state.items()):
        yield None
        return
    made = copy.deepcopy(model).float().eval()
    made.load_state_dict(dict(state), strict=False)
    yield made


def _head(original: PreTrainedModel, where: Path, card: Mapping[str, Any] | None) -> tuple[Head | None, set[str]]:
    if card is not None and (where / "head.safetensors").is_file():
        if missing := sorted({"pooling", "layer_norm"} - card.keys()):
            raise CheckpointError(f"{where} does not say {missing[0]} of its head; make the expert again.")
        tensors = load_file(where / "head.safetensors")
        if not all(value.isfinite().all() for value in tensors.values()):
            raise CheckpointError(f"{where / 'head.safetensors'} holds NaN or infinite values; train the expert again.")
        return Head.from_tensors(tensors, card).eval(), set()
    if not _has_head(original):
        return None, set()
    try:
        return read_head(original)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _has_head(model: object) -> bool:
    return type(model).__name__.endswith("Classification")


def _is_answer(key: str) -> bool:
    if not key.endswith(".weight") or ".lora_" in key:
        return False
    named = [part for part in key.removesuffix(".weight").split(".") if not part.isdigit()]  # ResNet's: classifier.1
    return named[-1] in ("classifier", "score", "out_proj", "head", "fc")  # the last two are timm's


def _terms(
    found: Checkpoint, base: Mapping[str, Tensor], state: Mapping[str, Tensor], apart: set[str]
) -> tuple[LoraTerms, str]:
    """The low-rank terms of an adapter, where they are all that it changes in the body; else none, and why."""
    if found.kind == "full":
        return {}, ""
    if lora_obstacle(found):  # said by `check_compatible`
        return {}, ""
    terms = {name: term for name, term in read_lora(found, base, beside=True).items() if name not in apart}
    changed = {name for name, value in state.items() if value.shape != base[name].shape or (value != base[name]).any()}
    if beside := sorted(changed - terms.keys()):
        return {}, f", merged into whole weights since it holds '{beside[0]}' beside its factors"
    for name, (scale, B, A) in terms.items():
        product = (scale * (B.float() @ A.float())).reshape(-1)
        delta = (state[name].float() - base[name].float()).reshape(-1)
        turned = (scale * (B.float() @ A.float())).t().reshape(-1)
        if min(float((delta - p).abs().max()) for p in (product, turned)) > EXACT * (1 + float(delta.abs().max())):
            return {}, f", merged into whole weights since the factors of '{name}' are not all of its change"
    return terms, f", factors of {len(terms)} matrices"


def _same(where: Path, what: str, ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach(), theirs.detach()
    error = float((ours - theirs).abs().max()) / (1 + float(theirs.abs().max()))
    if not error <= EXACT:
        raise CheckpointError(
            f"{where}: {what} differs from the folder's own model by {error:.1e} of its outputs; its configuration is "
            "not the base's, or it computes with more than its weights."
        )
    return error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def mapped(expert: Expert, labels: list[str]) -> Expert:
    """The expert with its outputs in the order of a task's labels.

    Raises:
        CheckpointError: when the folder does not name its labels, or names others.
    """
    from twinmerge.heads import reordered

    if expert.head is None:
        raise CheckpointError("the folder holds no head (a plain AutoModel); give a classifier, or no task for it.")
    if expert.head.pooling == "tokens" or expert.head.problem == "multi_label_classification":
        kind = "a label for every token" if expert.head.pooling == "tokens" else "several labels at once"
        raise CheckpointError(
            f"the expert answers with {kind}, and tasks of a recipe have one for each text; merge it without 'tasks:' "
            "or by twinmerge.merge_folders, and ask the twin by twin.classify."
        )
    if expert.labels is None:
        outputs = expert.head.out_proj.out_features
        if outputs == 1 and not labels:
            return replace(expert, labels=[])
        raise CheckpointError(
            f"the folder does not name its {outputs} labels (LABEL_0, ...); write them in order as id2label of its "
            "config.json, or under 'labels:' of the recipe."
        )
    if expert.labels == labels:
        return expert
    if sorted(expert.labels) != sorted(labels):
        theirs, ours = (", ".join(names) or "a number" for names in (expert.labels, labels))
        raise CheckpointError(f"the expert answers {theirs} and the task asks for {ours}; give an expert of this task.")
    head = reordered(copy.deepcopy(expert.head), [expert.labels.index(name) for name in labels])
    return replace(expert, head=head, labels=labels)
