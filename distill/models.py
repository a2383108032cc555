"""Networks behind one call, from a model, the name of one, or a network that is one already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from distill.arguments import check_names
from distill.batches import Task
from distill.ensemble import Ensemble
from distill.errors import DistillError
from distill.language import LanguageNetwork
from distill.losses import Terms
from distill.networks import ImageNetwork, TextNetwork, image_model, statistics, with_lora
from gapbridge.arguments import shown

Model = nn.Module | str
Network = ImageNetwork | TextNetwork | LanguageNetwork


def build(
    model: Model,
    task: Task,
    classes: int,
    size: int,
    channels_last: bool,
    lora_rank: int,
    options: Mapping[str, object],
    drop: Mapping[str, object] | None = None,
) -> Network:
    """A network behind the common call.

    Args:
        model: A network, a model or the name of one.
        task: As of `DistillModule`.
        classes: Outputs of a model that is named.
        size: Side of the images, 0 where there are none.
        channels_last: Lay images out channels last.
        lora_rank: Of adapters; 0 is none.
        options: For the constructor of a named model; mean, std and size for any image model.
        drop: Further options of a named image model, which no other has.

    Raises:
        DistillError: If the model cannot be built, or is made already and has no constructor for the options.
    """
    made_already = isinstance(model, Network | Ensemble)
    taken = {"mean", "std", "size"} if task == "images" and not made_already else set()
    if not isinstance(model, str) and (lost := sorted(set(options) - taken)):
        raise DistillError(
            f"the option {lost[0]!r} is given beside a {type(model).__name__} that is made already; give it to what "
            "makes the model, or name the model instead"
        )
    if isinstance(model, Network | Ensemble):
        return cast(Network, model)  # an ensemble is called alike
    rest: dict[str, Any] = {**(drop or {} if isinstance(model, str) else {}), **options}
    if task == "images":
        mean, std, own = rest.pop("mean", None), rest.pop("std", None), int(rest.pop("size", 0))
        made = image_model(model, classes, own or size, **rest) if isinstance(model, str) else model
        numbers = statistics(made, mean, std)
        if lora_rank:
            made = with_lora(made, lora_rank, (getattr(made, "pretrained_cfg", None) or {}).get("classifier", ""))
        return ImageNetwork(made, **numbers, size=own, channels_last=channels_last)
    if isinstance(model, str):
        import transformers

        kinds = {"texts": "AutoModelForSequenceClassification", "language": "AutoModelForCausalLM"}
        trusted = bool(rest.pop("trust_remote_code", False))  # said here, or transformers asks at the terminal
        if task == "texts":
            rest.setdefault("num_labels", classes)
        try:
            made = getattr(transformers, kinds[task]).from_pretrained(model, trust_remote_code=trusted, **rest)
            model = cast(nn.Module, made)
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # the third where its head has other classes
            raise DistillError(f"{model!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    if lora_rank:
        model = with_lora(model, lora_rank, "classifier" if task == "texts" else "lm_head")
    return TextNetwork(model) if task == "texts" else LanguageNetwork(model)


def terms_of(
    models: Mapping[str, object],
    terms: Terms | None,
    published: Terms | None,
    student: object,
    method: str,
) -> dict[str, Terms]:
    """The terms of every student.

    Args:
        models: The students by name.
        terms: As of `DistillModule`.
        published: Those of the method, where there are no terms.
        student: As of `DistillModule`.
        method: Its name.

    Raises:
        DistillError: If there is no student, a name is none, a student has no terms, or a method stands beside terms.
    """
    if not models:
        raise DistillError("no student is given; give a model, the name of one, or several by name")
    check_names(models, "student")
    if terms is None:
        return dict.fromkeys(models, published or {})
    if method != "kd":
        raise DistillError(f"the method {method!r} is given beside terms, which hold instead; give one of the two")
    if not isinstance(student, Mapping):
        return dict.fromkeys(models, terms)
    if set(terms) != set(models):
        raise DistillError(
            f"terms are given for {', '.join(terms)}, but the students are {', '.join(models)}; name each"
        )
    if odd := next((name for name, own in terms.items() if not isinstance(own, Mapping)), None):
        raise DistillError(f"the terms of student {odd} are {shown(terms[odd])}, but must be losses by name")
    return dict(terms)


def check_outputs(students: nn.ModuleDict, classes: int) -> None:
    """Refuse students that say of themselves that they tell other classes apart.

    Args:
        students: By name.
        classes: Number of classes.

    Raises:
        DistillError: For the first.
    """
    for name, network in students.items():
        model = getattr(network, "model", None)
        config = getattr(model, "config", None)
        told = getattr(config, "num_labels", None) if config is not None else getattr(model, "num_classes", None)
        if isinstance(told, int) and told != classes:
            raise DistillError(f"student {name} has {told} outputs, but classes is {classes}; give as many")


def not_plain(models: Mapping[str, object], teacher: object, terms: object) -> list[str]:
    """Arguments of `DistillModule` that a checkpoint cannot keep among its values: modules, and losses of one's own."""
    held = [] if not any(isinstance(model, nn.Module) for model in models.values()) else ["student"]
    held += ["teacher"] if isinstance(teacher, nn.Module) else []
    return held + ([] if terms is None or _is_plain(terms) else ["terms"])


def _is_plain(terms: object) -> bool:
    if isinstance(terms, Mapping):
        return all(_is_plain(value) for value in terms.values())
    return isinstance(terms, str | int | float | bool | list | tuple | None)
