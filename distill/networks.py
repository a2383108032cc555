"""Teachers and students behind one call: a batch in, `Outputs` out, whatever library the model comes from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.arguments import check_given
from distill.batches import Batch, device_of
from distill.errors import DistillError
from distill.layers import captured, plain, width_of
from distill.small import NAMES, small_model
from distill.terms import Outputs
from gapbridge.arguments import Finite, Positive, Whole

MAPS = 4  # feature maps that hints compare


class ImageNetwork(nn.Module):
    """A classifier of images in [0, 1]: brings them to its own size, mean and standard deviation first.

    Args:
        model: A timm model, or any module from images to logits, or to a mapping or object with `logits`; its features
            are then what its last linear layer reads, and maps cannot be had.
        mean: Of every channel, as the model was trained with.
        std: Likewise.
        size: Side that images are resized to; 0 leaves them.
        channels_last: Lay images and weights out channels last, which is faster for convolutions.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[Finite, ...] = (0.0,),
        std: tuple[Positive, ...] = (1.0,),
        size: Whole = 0,
        channels_last: bool = False,
    ) -> None:
        check_given(ImageNetwork.__init__, locals())
        if len({1, len(mean), len(std)}) > 2:
            raise DistillError(f"mean has {len(mean)} channels and std {len(std)}; give as many, or one number each")
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.size, self.channels_last = size, channels_last
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """Logits, and what else `needs` names: features, maps, outputs of modules."""
        with captured(self.model, needs) as layers:
            made = self._outputs(batch, plain(needs))
        return made._replace(layers=layers) if layers else made

    def layer_width(self, size: int, name: str) -> int:
        """Channels of what a module of the model gives, for images of a size."""
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        channels = max(1 if first is None else first.in_channels, len(self.mean))
        images = self.mean.new_zeros(2, channels, size, size)
        return width_of(name, self.model, lambda: self._outputs({"images": images}, frozenset()))

    def _outputs(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        images = batch["images"]
        if self.size and images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        images = ((images - self.mean) / self.std).to(self.mean.dtype)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        rows = batch.get("index")
        if needs <= {"logits"}:
            return Outputs(logits_of(self.model(images)), rows=rows)
        model = cast(Any, self.model)
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            if "maps" in needs:
                raise DistillError(
                    f"a term compares feature maps, but {type(model).__name__} has no timm forward_intermediates; give "
                    "a timm model, or terms that compare features or logits"
                )
            logits, features = before_head(model, images)
            return Outputs(logits, features, rows=rows)
        maps: tuple[Tensor, ...] = ()
        if "maps" in needs:
            final, intermediates = model.forward_intermediates(images, indices=map_indices(model), output_fmt="NCHW")
            maps = tuple(intermediates)
        else:
            final = model.forward_features(images)
        features = model.forward_head(final, pre_logits=True)
        return Outputs(model.forward_head(final), features, maps, rows)

    def sizes(self) -> dict[str, object]:
        """Width of the pooled features and channels of the maps, where the model tells them."""
        model = cast(Any, self.model)
        made: dict[str, object] = {}
        if hasattr(model, "num_features"):
            made["width"] = int(getattr(model, "head_hidden_size", model.num_features))
        elif linear := [m for m in model.modules() if isinstance(m, nn.Linear)]:
            made["width"] = linear[-1].in_features
        if hasattr(model, "forward_intermediates"):
            made["channels"] = tuple(model.feature_info[i]["num_chs"] for i in map_indices(model))
        return made


def logits_of(made: object) -> Tensor:
    """Logits among what a model returns.

    Args:
        made: A tensor, a mapping or object with `logits`, or a tuple or list that begins with them.

    Raises:
        DistillError: If there are none of shape (batch, classes).

    Example:
        >>> logits_of({"logits": torch.zeros(2, 3), "loss": None}).shape
        torch.Size([2, 3])
    """
    found = made
    if not isinstance(found, Tensor):
        named = made["logits"] if isinstance(made, Mapping) and "logits" in made else getattr(made, "logits", None)
        found = made[0] if named is None and isinstance(made, tuple | list) and made else named
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise DistillError(
            f"a model returned a {type(made).__name__}{shape}, but it must be logits (batch, classes), or hold them "
            "under 'logits'; wrap the model in a module that does"
        )
    return found


def before_head(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what the last linear layer that was called read: the pooled features of a model of any library.

    Raises:
        DistillError: If that layer does not give the logits.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    hooks = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        logits = logits_of(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or seen[-1][0].ndim != 2 or seen[-1][1].shape != logits.shape:
        raise DistillError(
            f"a term compares features, but {type(model).__name__} has neither timm's forward_features nor a last "
            "linear layer that gives its logits from them; give terms that compare logits"
        )
    return logits, seen[-1][0]


def map_indices(model: Any) -> list[int]:
    """Which of a timm model's stages or blocks give the maps: the last ones of a pyramid, else spread evenly."""
    info = list(model.feature_info)
    if len({stage["reduction"] for stage in info}) > 1:
        return list(range(max(0, len(info) - MAPS), len(info)))
    count = min(MAPS, len(info))
    return [round((i + 1) * len(info) / count) - 1 for i in range(count)]


class TextNetwork(nn.Module):
    """A transformers classifier of texts.

    Args:
        model: From `AutoModelForSequenceClassification`, or the like.
    """

    order: Tensor | None

    def __init__(self, model: nn.Module) -> None:
        check_given(TextNetwork.__init__, locals())
        super().__init__()
        self.model = model
        self.register_buffer("order", None, persistent=False)

    def read_in(self, order: Sequence[int] | None) -> None:
        """Give the model's outputs in another order; None gives them as they are, which is how the model keeps them."""
        self.order = None if order is None else torch.tensor(order)

    def forward(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """Logits, and what else `needs` names: features (masked means of the last states), outputs of modules."""
        with captured(self.model, needs) as layers:
            made = self._outputs(batch, plain(needs))
        if not layers:
            return made
        kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        rows = {
            name: out[kept] if out.ndim == 3 and out.shape[:2] == kept.shape else out for name, out in layers.items()
        }
        return made._replace(layers=rows)

    def layer_width(self, size: int, name: str) -> int:
        """Channels of what a module of the model gives."""
        device = next(self.model.parameters()).device
        words = torch.zeros(2, 4, dtype=torch.long, device=device)
        batch = {"input_ids": words, "attention_mask": torch.ones_like(words)}
        return width_of(name, self.model, lambda: self._outputs(batch, frozenset()))

    def _outputs(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        made = self._answer(batch, **({"output_hidden_states": True} if "features" in needs else {}))
        features = None
        if "features" in needs:
            hidden = getattr(made, "hidden_states", None)
            if hidden is None:
                raise DistillError(
                    f"a term compares features, but {type(self.model).__name__} gives no hidden_states; give a model "
                    "of transformers, or terms that compare logits"
                )
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))[..., None].to(hidden[-1].dtype)
            features = (hidden[-1] * mask).sum(1) / mask.sum(1)
        logits = logits_of(made)
        logits = logits if self.order is None else logits[:, self.order]
        return Outputs(logits, features, (), batch.get("index"))

    def _answer(self, batch: Batch, **options: object) -> object:
        """What the model makes of a batch: logits (rows, classes), or an object that has them."""
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
        return self.model(**inputs, **options)

    def sizes(self) -> dict[str, object]:
        """Width of the hidden states."""
        config: object = getattr(self.model, "config", None)
        return {"width": config.hidden_size} if hasattr(config, "hidden_size") else {}


class Frozen:
    """A teacher: in eval mode, without gradients, and no submodule of anything, so in no checkpoint and no DDP.

    Args:
        network: The network; it is changed in place.
        dtype: Type of its weights; bfloat16 halves memory and time where the device has it.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        check_given(Frozen.__init__, locals())
        if not dtype.is_floating_point:
            raise DistillError(f"dtype is {dtype}, but weights are floating; give torch.float32 or torch.bfloat16")
        self.network = network.eval().requires_grad_(False).to(dtype)
        self.dtype = dtype

    def __call__(self, batch: Batch, needs: frozenset[str] = frozenset()) -> Outputs:
        """What it says about a batch, in float32; a training's autocast does not apply."""
        device = device_of(batch)
        if any(parameter.device != device for parameter in self.network.parameters()):
            self.network.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            made: Outputs = self.network(batch, needs)
        features = made.features if made.features is None or made.head is not None else made.features.float()
        layers = {name: output.float() for name, output in made.layers.items()}
        maps = tuple(m.float() for m in made.maps)
        return made._replace(logits=made.logits.float(), features=features, maps=maps, layers=layers)


def image_model(name: str, classes: int, size: int = 0, **options: Any) -> nn.Module:
    """A timm model by name.

    Args:
        name: Of timm, as in resnet50 or hf-hub:..., or of `distill.small`.
        classes: Outputs.
        size: Side of its images, for models that fix it and to refuse images that it would shrink away; 0 is unknown.
        options: Of `timm.create_model`, as pretrained, checkpoint_path, in_chans or drop_path_rate.

    Raises:
        DistillError: If timm has no such model, or the images are too small for it.
    """
    import timm

    if NAMES.fullmatch(name):
        own = {k: v for k, v in options.items() if k == "in_chans"}
        return _read(cast(nn.Module, small_model(name, classes, **own)), name, options)
    local = name.partition(".")[0]
    if ":" not in name and not timm.is_model(local):
        close = difflib.get_close_matches(local, timm.list_models(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "timm.list_models() names them"
        raise DistillError(f"timm has no model {name!r}; {hint}")
    if size and ":" not in name and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        options["img_size"] = size
    try:
        model: nn.Module = timm.create_model(name, num_classes=classes, **options)
    except (TypeError, RuntimeError, AssertionError, OSError) as error:
        raise DistillError(f"timm cannot build {name!r}: {' '.join(str(error).split())[:200]}") from error
    info = getattr(model, "feature_info", None)
    if size and info and size < (least := max(stage["reduction"] for stage in list(info))):
        raise DistillError(f"the image size is {size}, but {name} shrinks images {least} times; give at least {least}")
    return model


def _read(model: nn.Module, name: str, options: Mapping[str, object]) -> nn.Module:
    """A small network with the weights that its options name; what ships with timm alone is refused."""
    if options.get("pretrained"):
        raise DistillError(f"{name} ships no weights, so pretrained cannot be true; name a file by checkpoint_path")
    if (path := options.get("checkpoint_path")) is not None:
        from timm.models import load_checkpoint

        try:
            load_checkpoint(model, str(path))
        except Exception as error:  # files of others are broken in many ways
            reason = " ".join(str(error).split())[:200]
            raise DistillError(f"the checkpoint_path {path} does not fit {name}: {reason}") from error
    return model


def statistics(model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> dict[str, Any]:
    """Mean and standard deviation for a model: the given ones, else those that timm trained it with, else none."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = mean or cfg.get("mean", (0.0,)), std or cfg.get("std", (1.0,))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels not in (1, 3) and len(mean) > 1:
        raise DistillError(f"a model of {first.in_channels} channels needs mean and std given")
    if first is not None and first.in_channels == 1 and len(mean) > 1:  # grey images: the colours' average
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return {"mean": tuple(mean), "std": tuple(std)}


def with_lora(model: nn.Module, rank: int, head: str = "") -> nn.Module:
    """A model whose linear layers carry PEFT adapters and train nothing else, but the head where one is named."""
    from peft import LoraConfig, get_peft_model

    targets = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != head and not n.startswith(head + ".")
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=[head] if head else None)
    return cast(nn.Module, get_peft_model(cast(Any, model), config))
