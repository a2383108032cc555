"""Routers from unlabelled inputs: texts by the base's tokenizer, images by its image processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gapbridge.pictures import check_header, eight_bits, image_files, open_image, upright
from twinmerge.errors import CheckpointError
from twinmerge.twin_mixin import TwinMixin
from twinmerge.twin_parts import Router

ROUTERS = ("mlp", "linear", "knn")
Pictures = str | Path | Sequence[str | Path | Image]


def pictures_of(task: str, given: Pictures) -> list[str | Image]:
    """The images of a task, those of files by their names, whose headers are looked at.

    Args:
        task: for messages.
        given: a folder, or a list of files and images of PIL.

    Raises:
        ValueError: for a folder that is not there, a file that is no image, or fewer than two of them.
    """
    if isinstance(given, str | Path):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise ValueError(f"images of '{task}': {folder} is no folder; give one, or a list of files and PIL images.")
        given = image_files(folder)
    listed = [str(Path(one).expanduser()) if isinstance(one, str | Path) else one for one in given]
    if len(listed) < 2:
        raise ValueError(f"images of '{task}': a router needs at least two of every task, got {len(listed)}.")
    for one in listed:
        if isinstance(one, str):
            check_header(one)
    return listed


def check_router(
    router: str | Router | None,
    texts: Mapping[str, Sequence[str]] | None,
    images: Mapping[str, Sequence[object]] | None,
    tasks: Sequence[str],
) -> None:
    """Refuse a router that cannot be made, and inputs that no router is made from.

    Args:
        router: as of `merge_folders`.
        texts: by task.
        images: by task, as `pictures_of` lists them.
        tasks: of the twin.

    Raises:
        ValueError: naming what is wrong, and what to give.
    """
    given = {name: by for name, by in (("texts", texts), ("images", images)) if by is not None}
    if not isinstance(router, str):
        if given:
            raise ValueError(
                f"{' and '.join(given)} are what a router is made from, and router is "
                f"{'None' if router is None else 'made already'}; choose {', '.join(ROUTERS)}, or leave them out."
            )
        return
    if router not in ROUTERS:
        raise ValueError(f"router '{router}' is unknown; choose {', '.join(ROUTERS)}, a Router, or None.")
    if len(given) > 1:
        raise ValueError("texts and images are given; a router is made from what the base reads, so give that alone.")
    name, by = next(iter(given.items()), ("texts", {}))
    if set(tasks) - set(by) or min(map(len, by.values())) < 2:
        way = f"{name}={{task: [...]}}" if given else "texts={task: [...]}, or images={task: folder}"
        raise ValueError(f"router '{router}' needs {name} of every task, at least two each; give {way}.")
    if odd := next((task for task in by if task not in tasks), None):
        raise ValueError(f"{name} are given for '{odd}', which is no task; the tasks are {', '.join(tasks)}.")


def check_read(model: PreTrainedModel, texts: object, images: object) -> None:
    """Refuse texts for a base that reads images, and the other way round.

    Args:
        model: the base.
        texts: of a router, None where there are none.
        images: likewise.

    Raises:
        ValueError: saying what it reads.
    """
    sees = model.main_input_name == "pixel_values"
    if (texts if sees else images) is not None:
        given, reads = ("texts", "images") if sees else ("images", "texts")
        raise ValueError(f"{given} are given and the base, a {type(model).__name__}, reads {reads}; give {reads}.")


def image_processor(where: str | Path) -> Callable[[Image], Tensor]:
    """What turns an image in red, green and blue into its tensor, shape (channels, height, width).

    Args:
        where: folder or Hub name of a model with its image processor.

    Raises:
        CheckpointError: where there is none.
    """
    from transformers import AutoImageProcessor

    try:
        made = AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise CheckpointError(
            f"{where} has no image processor ({reason}); save there that of the model it was trained from."
        ) from error
    return pixels_by(made)


def pixels_by(processor: Callable[..., Mapping[str, Tensor]]) -> Callable[[Image], Tensor]:
    """A processor of transformers as a function from one image to its tensor."""
    return lambda image: processor(images=[image], return_tensors="pt")["pixel_values"][0]


def read_picture(processor: Callable[[Image], Tensor], picture: str | Image) -> Tensor:
    """The tensor of a file or an image of PIL, upright and in 8 bits, shape (1, channels, height, width)."""
    image = open_image(picture) if isinstance(picture, str) else eight_bits(upright(picture))
    return processor(image.convert("RGB"))[None]


def router_from_texts(
    twin: TwinMixin, kind: str, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[str]], seed: int
) -> Router:
    """A router from unlabelled texts: every fifth text of a task is held out to fit the temperature."""
    known = ("input_ids", "attention_mask", "token_type_ids")

    def read(text: str) -> dict[str, Tensor]:
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        return {name: value for name, value in inputs.items() if name in known}

    return _router_from(twin, kind, {task: map(read, texts[task]) for task in twin.tasks}, seed)


def router_from_images(twin: TwinMixin, kind: str, images: Mapping[str, Iterable[Tensor]], seed: int) -> Router:
    """A router from unlabelled images: every fifth one of a task is held out to fit the temperature.

    Args:
        twin: a model of images.
        kind: `knn`, `linear` or `mlp`.
        images: task -> pixels as the base takes them, each of shape (1, channels, height, width).
        seed: of the training.

    Raises:
        CheckpointError: where the model takes no images of this form.
    """
    return _router_from(twin, kind, {t: ({"pixel_values": one} for one in images[t]) for t in twin.tasks}, seed)


def _router_from(twin: TwinMixin, kind: str, inputs: Mapping[str, Iterable[dict[str, Tensor]]], seed: int) -> Router:
    return router_from_features(
        kind, {task: torch.cat([_feature(twin, one) for one in items]) for task, items in inputs.items()}, seed
    )


def _feature(twin: TwinMixin, given: dict[str, Tensor]) -> Tensor:
    """The router's feature of one input, shape (1, width)."""
    inputs: dict[str, Any] = {k: v.to(twin.dtype) if v.is_floating_point() else v for k, v in given.items()}
    try:
        with torch.no_grad():
            return twin.features(**inputs)
    except (RuntimeError, ValueError) as error:
        if (pixels := inputs.get("pixel_values")) is None:
            raise
        shape, reason = " x ".join(map(str, pixels.shape[1:])), " ".join(str(error).split())[:160].rstrip(".")
        raise CheckpointError(
            f"the base takes no images of {shape} numbers, as its image processor makes them ({reason}); correct the "
            "sizes of its preprocessor_config.json."
        ) from error


def router_from_features(kind: str, features: Mapping[str, Tensor], seed: int) -> Router:
    """A router from the shared expert's features: every fifth row of a task is held out to fit the temperature.

    Args:
        kind: `knn`, `linear` or `mlp`.
        features: task -> rows (items, width), at least two.
        seed: of the training.
    """
    import lightning

    from twinmerge.router import FeatureDataModule, RouterModule, fit_temperature, knn_router

    parts: dict[bool, list[tuple[Tensor, int]]] = {False: [], True: []}
    for index, rows in enumerate(features.values()):
        for number, row in enumerate(rows):
            parts[number % 5 == 1].append((row, index))
    x, y, held_x, held_y = (
        torch.stack(list(column)) if isinstance(column[0], Tensor) else torch.tensor(column)
        for held in (False, True)
        for column in zip(*parts[held], strict=True)
    )
    if kind == "knn":
        router = knn_router(x, y, len(features))
    else:
        torch.manual_seed(seed)
        module = RouterModule(x.shape[1], len(features), kind=cast(Literal["mlp", "linear"], kind))
        module.router.standardise(x)
        trainer = lightning.Trainer(
            max_epochs=30,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=FeatureDataModule((x, y), (held_x, held_y), seed=seed))
        router = module.router.eval()
    router.temperature = fit_temperature(router, held_x, held_y)
    return router
