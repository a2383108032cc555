"""Images whose views are numbers, with the teacher's answers read from a cache: it answers once, not every epoch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.arguments import check_given
from distill.cache import Identity, TeacherCache
from distill.cached_views import CachedViews, fill_cache, weights_digest
from distill.data import ImageData, Images, Rows, Source
from distill.errors import DistillError
from distill.form import Form
from distill.networks import Frozen, ImageNetwork
from distill.order import ViewLoader, ViewOrder
from distill.regimes import Regime
from distill.views import Augmentation, ViewDataset
from gapbridge.arguments import Count

if TYPE_CHECKING:
    from PIL.Image import Image


def augmentation_of(regime: Regime) -> Augmentation:
    """The views of a regime, drawn image by image: partners of a mix come from all images, not from the batch."""
    same = ("crop", "scale", "ratio", "padding", "flip", "auto_augment", "erase", "mixup", "cutmix")
    options: dict[str, object] = {
        name: getattr(regime, name) for name in (*same, "mix_probability", "switch_probability")
    }
    return Augmentation(size=regime.image_size, interpolation=regime.interpolation, **options)  # type: ignore[arg-type]


class CachedImageData(ImageData):
    """`ImageData` with a number of distinct views an image, cycled over the epochs, and a teacher that answers once.

    Args:
        source: As of `ImageData`, and so are the other options.
        path: Likewise.
        views: Distinct views of an image, at least 1: the teacher answers `views` times as many images as there are.
        folder: Of the cache.
        form: What is kept of an answer; None keeps all logits. A form without all of them teaches `kd` alone.
        options: Of `ImageData`.

    Raises:
        DistillError: If the form is `hidden`, whose states this module does not ask the teacher for.
    """

    def __init__(
        self,
        source: Source = "folder",
        path: str = "",
        *,
        views: Count = 8,
        folder: str = "",
        form: Form | None = None,
        **options: Any,
    ) -> None:
        check_given(CachedImageData.__init__, locals())
        super().__init__(source, path, **options)
        self.views, self.folder, self.form = views, folder, form or Form()
        if self.form.kind == "hidden":
            raise DistillError("the form is 'hidden', which only your own loop writes; take logits, top or sampled")
        self.cache: TeacherCache | None = None
        self._mixup = None  # views are mixed where they are drawn

    def numbered(self) -> ViewDataset:
        """The training views."""
        self.setup()
        smoothing = self.regime.smoothing if self.regime.mixes else 0.0  # else the hard loss smooths
        images = _Channels(self.splits["train"], self.grey)
        options = {"seed": self.seed, "views": self.views, "smoothing": smoothing}
        return ViewDataset(images, augmentation_of(self.regime), self.classes, **options)  # type: ignore[arg-type]

    def fill(self, teacher: Frozen, name: str) -> None:
        """Let the teacher answer what is not answered yet, and use the answers from now on.

        Args:
            teacher: The teacher, of images.
            name: Its name, for the manifest.

        Raises:
            DistillError: If the folder holds answers of another teacher, to other views or data.
        """
        views, network = self.numbered(), teacher.network
        if not isinstance(network, ImageNetwork):
            raise TypeError(f"a cache of views needs a teacher of images, got {type(network).__name__}")
        identity = Identity(
            name,
            weights_digest(network),
            str(teacher.dtype).removeprefix("torch."),
            network.size or self.regime.image_size,
            tuple(network.mean.flatten().tolist()),
            tuple(network.std.flatten().tolist()),
            views.augmentation.digest(),
            hashlib.sha256(repr((self.source, self.path, cast(_Channels, views.images).targets)).encode()).hexdigest(),
            len(views),
            self.seed,
        )
        cache = TeacherCache.create(Path(self.folder), identity, self.form, views=self.views)
        device = next(network.parameters()).device

        def answer(images: Tensor) -> Tensor:
            rows = torch.zeros(len(images), dtype=torch.long, device=device)
            return teacher({"images": images.to(device), "labels": rows}).logits

        fill_cache(cache, views, answer, batch_size=self.batch_size, workers=self.workers)
        self.cache = TeacherCache.open(self.folder, identity)

    def train_dataloader(self) -> ViewLoader:
        """Views in an order of seed, epoch and rank, with the teacher's answers once there are any."""
        numbered = self.numbered()
        views = numbered if self.cache is None else CachedViews(numbered, self.cache)
        order = ViewOrder(len(views), self.batch_size, seed=self.seed, repeats=self.regime.repeats)
        return ViewLoader(views, order, drop_last=True, num_workers=self.workers)


class _Channels(Dataset["tuple[Image, int]"]):
    """Images of one channel or three."""

    def __init__(self, images: Images | Rows, grey: bool) -> None:
        self.images, self.grey, self.targets = images, grey, images.targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        image, label = self.images[index]
        return image.convert("L" if self.grey else "RGB"), label
