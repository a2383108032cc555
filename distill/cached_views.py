"""Fill a teacher cache with the answers to views, and give the views with the stored answers beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from distill.cache import Shard, TeacherCache, checksums, encode
from distill.compact import as_fields
from distill.draws import Draws
from distill.errors import DistillError
from distill.views import ViewDataset, ViewItem

_TAIL = 2  # purpose of draws, beside those of views


def fill_cache(
    cache: TeacherCache,
    views: ViewDataset,
    teacher: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Write what is missing from a cache, and finish it when nothing is.

    Args:
        cache: Of :meth:`TeacherCache.create`.
        views: What the student will see.
        teacher: From views in [0, 1] to logits, or to states for `hidden`; it normalises, resizes and computes on its
            device as it does online, without gradients.
        batch_size: Views of one call. Answers are bit-identical to online ones where a call's size is, too.
        workers: Processes that render.
        part: Number of this process and of all that fill the same folder.

    Raises:
        DistillError: If the views are not those of the cache.
    """
    if (len(views), views.seed) != (cache.images, cache.seed):
        raise DistillError(
            f"the cache is of {cache.images} images with seed {cache._manifest['identity']['seed']}, the views are of "
            f"{len(views)} with seed {views.seed}"
        )
    own = torch.Generator()  # a cache that is there already must leave the global one where a new cache leaves it
    for shard in cache.missing()[part[0] :: part[1]]:
        parts: list[dict[str, Tensor]] = []
        for batch in DataLoader(_Items(views, shard), batch_size, num_workers=workers, generator=own):
            places = [Draws(views.seed, _TAIL, shard.view, index).uniform() for index in batch["index"].tolist()]
            with torch.no_grad():
                outputs = teacher(batch["images"]).cpu()
            rows = encode(cache.form, outputs, torch.tensor(places))
            parts.append({**rows, "pixels": checksums(batch["images"])})
        cache.write(shard, {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]})
    if not cache.missing():
        cache.finish()


class CachedViews(Dataset[dict[str, object]]):
    """Views with the teacher's stored answers beside them, checked pixel by pixel.

    Logits stand under `teacher_logits`, the classes of a compact cache under `teacher_top` or `teacher_sampled`, as
    `DistillModule` reads them.

    Args:
        views: What the student sees; its number of distinct views must be the cache's.
        cache: Of any form.

    Raises:
        DistillError: If the cache has not one answer for every view.
    """

    def __init__(self, views: ViewDataset, cache: TeacherCache) -> None:
        if views.views != cache.views:
            raise DistillError(
                f"the data has {views.views or 'ever new'} views, the cache {cache.views}; make them equal"
            )
        self.views, self.cache = views, cache

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, number: int) -> dict[str, object]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, object]]:
        items = [self.views[number] for number in numbers]
        made = [dict[str, object](**item) for item in items]
        for view in {item["view"] for item in items}:
            places = [place for place, item in enumerate(items) if item["view"] == view]
            images = torch.stack([items[place]["images"] for place in places])
            answers = self._answers(view, [items[place]["index"] for place in places], images)
            for place, fields in zip(places, answers, strict=True):
                made[place].update(fields)
        return made

    def _answers(self, view: int, indices: list[int], images: Tensor) -> Sequence[Mapping[str, object]]:
        """Fields that the cache adds to every item."""
        form = self.cache.form
        if form.kind == "top":
            return as_fields(self.cache.top(view, indices, images), form.temperatures)
        if form.kind == "sampled":
            return as_fields(self.cache.sampled(view, indices, images), form.temperatures[:1])
        return [{"teacher_logits": row} for row in self.cache.logits(view, indices, images)]


def weights_digest(model: nn.Module) -> str:
    """Hash of a model's state: names, types, shapes and values.

    Args:
        model: On any device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Items(Dataset[ViewItem]):
    """The views of one shard."""

    def __init__(self, views: ViewDataset, shard: Shard) -> None:
        self.views, self.shard = views, shard

    def __len__(self) -> int:
        return self.shard.stop - self.shard.start

    def __getitem__(self, row: int) -> ViewItem:
        return self.views.item(self.shard.view, self.shard.start + row)
