"""Networks of a distill recipe: built behind the common call, saved and read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.errors import DistillError
from recipes.data.models import resolve_model
from recipes.data.smollm2 import smollm2
from recipes.distill.schema import Network, Recipe, Values
from recipes.errors import RecipeError
from recipes.running.seals import STAMP, damage, stamp

WEIGHTS = "network.safetensors"
SHOWN = ("mean", "std", "size")  # options of how images are shown, which no constructor takes

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from torch import nn
    from transformers import PreTrainedModel

    from distill.models import Network as Built
    from distill.networks import ImageNetwork


@contextmanager
def told(kind: type[Exception], where: str = "") -> Iterator[None]:
    """Turn what the wing refuses into an error of the front."""
    try:
        yield
    except DistillError as error:
        raise kind(f"{where}: {error}" if where else str(error)) from error


def network(recipe: Recipe, config: Network, classes: int, *, student: bool) -> Built:
    """Build a network of the recipe, behind the common call."""
    from distill.models import build

    options = dict(config.options)
    if weights := options.get("checkpoint_path"):
        options["checkpoint_path"] = str(Path(weights).expanduser())
    name = config.model
    training = recipe.training
    if recipe.kind == "images" and student:
        drop = {"drop_path_rate": training.drop_path, "drop_rate": training.dropout}
        options = {k: v for k, v in drop.items() if v} | options
    if recipe.kind != "images":
        name = str(smollm2() if name == "shipped:smollm2" else resolve_model(name))
    size = training.image_size if recipe.kind == "images" else 0
    rank = recipe.lora_rank if student else 0
    if recipe.kind != "images" and is_twin(name):
        twin = _routed(name, recipe.kind, options)
        if recipe.kind == "texts" and (known := len(cast("PreTrainedModel", twin).config.id2label or ())) != classes:
            raise DistillError(
                f"the twin {name} tells {known} classes apart by its head, but the data has {classes}; choose the head "
                "of this task by teacher.options.head"
            )
        return build(twin, recipe.kind, classes, 0, False, 0, {})
    return build(name, recipe.kind, classes, size, recipe.channels_last, rank, options)


def unloadable(config: Network, twin: Path, error: Exception) -> DistillError:
    """Why a student of a twin cannot be loaded, in a sentence.

    Args:
        config: Of the student.
        twin: The folder of its teacher, whose shared expert it is where it names no model.
        error: What the loading raised.
    """
    cause = error.__cause__ if config.options and error.__cause__ is not None else error
    reason = " ".join(str(cause).split())[:200]
    what = config.model or f"the shared expert of {twin}"
    if not config.options:
        return DistillError(f"the student {what} cannot be loaded: {reason}")
    given = ", ".join(f"{name} {value!r}" for name, value in config.options.items())
    return DistillError(
        f"the student {what} cannot be loaded with options {given}: {reason}; give options that its class takes and "
        "that keep the shapes of its weights, or name another model"
    )


def is_twin(name: str) -> bool:
    """Whether a model is a twin folder, whose routed model then teaches."""
    return (Path(name).expanduser() / "twin.json").is_file()


def _routed(name: str, kind: str, options: Values) -> nn.Module:
    """The routed model of a twin folder: for texts the answers of one head, the option `head`."""
    import twinmerge
    from twinmerge.errors import CheckpointError

    head = options.pop("head", None)
    try:
        twin = twinmerge.load(Path(name).expanduser(), **options)
        return twin if kind == "language" else twinmerge.as_classifier(twin, head)
    except (CheckpointError, ValueError, TypeError) as error:
        raise DistillError(f"the twin {name} cannot teach: {error}") from error


def check_twin(recipe: Recipe, config: Network, role: str) -> str:
    """One sentence about a twin folder as a teacher, without loading it.

    Raises:
        RecipeError: When it has not the head that is asked for, or the losses ask it for more than it can say.
    """
    where = Path(config.model).expanduser()
    if role == "student":
        raise RecipeError(
            f"student.model: {where} is a twin folder; give its base, or a smaller model, and let it teach"
        )
    try:
        heads = sorted(json.loads((where / "twin.json").read_text(encoding="utf-8"))["heads"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RecipeError(f"teacher.model: {where / 'twin.json'} cannot be read ({error}); copy it again") from error
    if recipe.kind == "language":
        if recipe.chunk or any(shares.get("teacher") for shares in (recipe.samples or {}).values()):
            raise RecipeError(
                f"teacher.model: {where} routes whole texts, so its logits are made whole and it does not go on with "
                "texts; set chunk to 0 and leave samples of the teacher out"
            )
        return f"{role}: routed twin folder {where}"
    head = config.options.get("head") or (heads[0] if len(heads) == 1 else None)
    if head not in heads:
        raise RecipeError(
            f"teacher.options.head: expected one of {', '.join(heads) or 'no heads'} of the twin {where}, got {head!r}"
        )
    return f"{role}: routed twin folder {where}, its head {head}"


def saved_beside(recipe: Recipe, data: LightningDataModule) -> dict[str, object]:
    """What a network needs beside its weights to be used elsewhere: the tokenizer, or names of the images' classes.

    Args:
        recipe: The recipe.
        data: Its data module.
    """
    if recipe.kind == "images":
        built = {k: v for k, v in recipe.student.options.items() if k not in ("pretrained", "checkpoint_path", *SHOWN)}
        size = int(recipe.student.options.get("size", 0)) or recipe.training.image_size
        seen = {"size": size, "crop_pct": recipe.training.test_crop}
        return {"labels": getattr(data, "names", None), "options": built, **seen}
    from transformers import AutoTokenizer

    place = recipe.student.model
    place = str(smollm2() if place == "shipped:smollm2" else resolve_model(place))
    return {"tokenizer": AutoTokenizer.from_pretrained(place, trust_remote_code=False)}


def save_network(made: Built, target: Path, beside: Values) -> None:
    """Write the weights as network.safetensors, and what else makes them of use.

    A transformers model is its own folder `model` with its tokenizer, and a timm model one that transformers' wrapper
    of timm reads: `pipeline` loads either, its classes named in its configuration. Beside a network of images stand its
    classes in `labels.json` where the data names them.

    Args:
        made: The network.
        target: A folder.
        beside: Of `saved_beside`.
    """
    from safetensors.torch import save_model

    target.mkdir(parents=True, exist_ok=True)
    if hasattr(made.model, "save_pretrained"):
        cast("PreTrainedModel", made.model).save_pretrained(target / "model")
        if beside.get("tokenizer") is not None:
            beside["tokenizer"].save_pretrained(target / "model")
    if beside.get("labels"):
        (target / "labels.json").write_text(json.dumps(beside["labels"]) + "\n", encoding="utf-8")
    if "options" in beside and (getattr(made.model, "pretrained_cfg", None) or {}).get("architecture"):
        _save_timm(cast("ImageNetwork", made), target / "model", beside)
    save_model(made.model, str(target / WEIGHTS))
    stamp(target)


def _save_timm(made: ImageNetwork, folder: Path, beside: Values) -> None:
    """A timm model as the Hub has them, with what it must be built of and how it is shown images."""
    from safetensors.torch import save_model

    model = cast("Any", made.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    channels = next(len(p[0]) for p in model.parameters() if p.ndim == 4) if _convolves(model) else 3
    shown = {name: getattr(made, name).flatten().tolist() for name in ("mean", "std")}
    shown = {name: values * channels if len(values) == 1 else values for name, values in shown.items()}
    size = made.size or beside["size"]
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": beside["options"] | ({"img_size": size} if model.pretrained_cfg.get("fixed_input_size") else {}),
        "pretrained_cfg": {
            **{key: model.pretrained_cfg[key] for key in ("first_conv", "classifier") if key in model.pretrained_cfg},
            "input_size": [channels, size, size],
            "interpolation": "bicubic",
            "crop_pct": beside["crop_pct"],
            "num_classes": model.num_classes,
            **shown,
        },
    }
    if beside.get("labels"):
        config["label_names"] = list(beside["labels"])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _convolves(model: nn.Module) -> bool:
    return any(parameter.ndim == 4 for parameter in model.parameters())


def saved_network(target: Path, say: Callable[[str], object]) -> bool:
    """Whether `save_network` has left a whole network in a folder; a damaged one is told, and is to be made again.

    Args:
        target: The folder.
        say: Called with one sentence about damage.
    """
    if not (target / WEIGHTS).is_file() and not (target / STAMP).is_file():
        return False
    if fault := damage(target):
        say(f"{target} {fault}: it is made again")
    return not fault


def load_network(made: Built, target: Path) -> None:
    """Read weights that `save_network` wrote into a folder."""
    from safetensors.torch import load_model

    load_model(made.model, target / WEIGHTS)
