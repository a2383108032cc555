"""A teacher's answers on disk, addressed by view: written once, read by any number of students and epochs.

A folder holds `MANIFEST.json` and one safetensors file for every `shard` rows of every view::

    cache/  MANIFEST.json  head.safetensors (form hidden)  view-00000/000000000.safetensors  .sha256  ...

A row is what the teacher said about one view of one image, and a checksum of the pixels it saw. The manifest names
all that an answer depends on; a cache of another teacher, augmentation or data is refused with the difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.form import Form
from distill.functional.chunked import LanguageHead
from distill.functional.sparse import SampledClasses, TopClasses, sampled_classes, top_classes

FORMAT = 1
MANIFEST = "MANIFEST.json"
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Identity:
    """All that a teacher's answer to a view depends on.

    Attributes:
        teacher: Name of the model.
        weights: Of :func:`weights_digest`.
        dtype: In which it computes, as bfloat16.
        resolution: Side of the images it is given.
        mean: Its own normalisation, one number a channel.
        std: Likewise.
        augmentation: Of :meth:`~distill.views.Augmentation.digest`.
        data: Name or hash of the images.
        images: How many there are.
        seed: Of the views.
    """

    teacher: str
    weights: str
    dtype: str
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    data: str
    images: int
    seed: int


def encode(form: Form, outputs: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Rows to store.

    Args:
        form: What is kept of them.
        outputs: Logits, or states for `hidden`, shape (rows, width).
        places: One uniform number a row, for `sampled`.
    """
    if form.kind in ("logits", "hidden"):
        return {form.kind: outputs.to(getattr(torch, form.dtype))}
    if form.kind == "top":
        return top_classes(outputs, form.kept, form.temperatures)._asdict()
    temperature = form.temperatures[0]
    return sampled_classes(outputs, form.kept, places, temperature=temperature, exponent=form.exponent)._asdict()


class Shard(NamedTuple):
    """Rows of one file: images `start` to `stop` of a view."""

    view: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"view-{self.view:05d}/{self.start:09d}.safetensors"


class TeacherCache:
    """A cache to write to or, once it is whole, to read from.

    Args:
        folder: Where it is.
        manifest: As in `MANIFEST.json`; made by :meth:`create` and :meth:`open`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self._manifest = folder, manifest
        try:
            self.seed = int(manifest["identity"]["seed"])
            self.form = Form(**{**manifest["form"], "temperatures": tuple(manifest["form"]["temperatures"])})
            self.views, self.images = int(manifest["views"]), int(manifest["identity"]["images"])
            self._rows = int(manifest["shard"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise DistillError(f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}") from error
        self._loaded: dict[Shard, dict[str, Tensor]] = {}
        self._head: LanguageHead | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": {}, "_head": None}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        identity: Identity,
        form: Form,
        *,
        views: int,
        shard: int = 4096,
        head: LanguageHead | None = None,
    ) -> TeacherCache:
        """Begin a cache, or go on with one that was interrupted.

        Args:
            folder: New or of a cache begun with the same arguments.
            identity: What the answers depend on.
            form: What is kept of them.
            views: Views of every image, at least 1.
            shard: Rows of a file.
            head: For `hidden`: what makes logits of the states.

        Raises:
            DistillError: If a number does not fit, or the folder holds something else, with the difference.
        """
        if views < 1 or shard < 1 or (form.kind == "hidden") != (head is not None):
            raise DistillError(
                f"a cache needs at least 1 view, 1 row a shard, and a head exactly for 'hidden'; got {views} views, "
                f"{shard} rows, {'a' if head else 'no'} head for {form.kind!r}"
            )
        folder = Path(folder)
        wanted = _plain({"format": FORMAT, "identity": identity, "form": form, "views": views, "shard": shard})
        if (folder / MANIFEST).exists():
            _refuse_other(folder, _read(folder), wanted)
            return cls(folder, _read(folder))
        if head is not None:
            tensors = {
                k: v.detach().contiguous() for k, v in (("weight", head.weight), ("bias", head.bias)) if v is not None
            }
            scales = {"scale": repr(head.scale), "soft_cap": repr(head.soft_cap)}
            data = safetensors.torch.save(tensors, scales)
            wanted["head"] = hashlib.sha256(data).hexdigest()
            _write(folder / HEAD, data)
        _write(folder / MANIFEST, _json({**wanted, "shards": {}}))
        return cls(folder, {**wanted, "shards": {}})

    @classmethod
    def open(cls, folder: str | Path, identity: Identity) -> TeacherCache:
        """Open a whole cache of exactly these answers.

        Args:
            folder: Of a finished cache.
            identity: What the student needs answers of.

        Raises:
            DistillError: If there is none, it is unfinished, or it is of something else: the sentence says what.
        """
        folder = Path(folder)
        found = _read(folder)
        _refuse_other(folder, found, {**found, "format": FORMAT, "identity": _plain(identity)})
        cache = cls(folder, found)
        if absent := [shard for shard in cache._shards() if shard.name not in found["shards"]]:
            raise DistillError(
                f"the cache {folder} is unfinished: {len(absent)} of {len(cache._shards())} shards are missing, first "
                f"{absent[0].name}; write them with `fill_cache`"
            )
        return cache

    def missing(self) -> list[Shard]:
        """Shards that are not written yet."""
        return [shard for shard in self._shards() if not self._path(shard).exists()]

    def write(self, shard: Shard, rows: dict[str, Tensor]) -> None:
        """Write one shard, whole or not at all; processes may write different shards at once.

        Args:
            shard: Of :meth:`missing`.
            rows: Tensors of `shard.stop - shard.start` rows.

        Raises:
            DistillError: If there are more rows or fewer.
        """
        if any(len(tensor) != shard.stop - shard.start for tensor in rows.values()):
            raise DistillError(
                f"{shard.name} takes {shard.stop - shard.start} rows, got {[len(t) for t in rows.values()]}"
            )
        data = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in rows.items()})
        _write(self._path(shard).with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())
        _write(self._path(shard), data)

    def finish(self) -> None:
        """Put the checksums of new shards into the manifest, which makes the cache whole; a whole one stays as it is.

        Raises:
            DistillError: If shards are missing.
        """
        if absent := self.missing():
            raise DistillError(f"{len(absent)} shards of {self.folder} are missing, first {absent[0].name}")
        beside = {shard.name: self._path(shard).with_suffix(".sha256") for shard in self._shards()}
        new = {name: file.read_text() for name, file in beside.items() if file.exists()}
        if new:
            self._manifest = {**self._manifest, "shards": {**self._manifest["shards"], **new}}
            _write(self.folder / MANIFEST, _json(self._manifest))
        for name in new:
            beside[name].unlink(missing_ok=True)  # the manifest has it now

    def read(self, view: int, indices: Sequence[int], images: Tensor | None = None) -> dict[str, Tensor]:
        """Stored rows.

        Args:
            view: Number of the view.
            indices: Of the images.
            images: What the student is about to see; compared with what the teacher saw.

        Returns:
            Tensors by name, one row an index.

        Raises:
            DistillError: If view or indices are not there, a file is damaged, or the pixels are others.
        """
        if not 0 <= view < self.views:
            raise DistillError(f"view {view} is not in {self.folder}, which has the views 0 to {self.views - 1}")
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < self.images:
                raise DistillError(f"image {index} is not in {self.folder}, which has 0 to {self.images - 1}")
            places.setdefault(index // self._rows * self._rows, []).append(place)
        parts = []
        for start, chosen in places.items():
            shard = self._load(Shard(view, start, min(start + self._rows, self.images)))
            at = torch.tensor([indices[place] - start for place in chosen])
            parts.append({name: tensor[at] for name, tensor in shard.items()})
        order = torch.tensor([place for chosen in places.values() for place in chosen]).argsort()
        found = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        pixels = found.pop("pixels")
        if images is not None:
            other = (checksums(images) != pixels).nonzero()
            if len(other):
                raise DistillError(
                    f"the teacher saw other pixels of image {indices[int(other[0])]} in view {view}: the data, a "
                    "library or the device that renders has changed since the cache was written; write it again"
                )
        return found

    def logits(self, view: int, indices: Sequence[int], images: Tensor | None = None) -> Tensor:
        """Logits of a cache of `logits` or `hidden`, shape (rows, classes), float32; arguments as :meth:`read`."""
        rows = self.read(view, indices, images)
        if self.form.kind == "logits":
            return rows["logits"].float()
        return self.head().logits(rows["hidden"])

    def top(self, view: int, indices: Sequence[int], images: Tensor | None = None) -> TopClasses:
        """Rows of a cache of `top`, for :func:`~distill.functional.sparse.top_kd`; arguments as :meth:`read`."""
        return TopClasses(**self.read(view, indices, images))

    def sampled(self, view: int, indices: Sequence[int], images: Tensor | None = None) -> SampledClasses:
        """Rows of a cache of `sampled`, for :func:`~distill.functional.sparse.sampled_kd`; as :meth:`read`."""
        return SampledClasses(**self.read(view, indices, images))

    def head(self) -> LanguageHead:
        """The teacher's head, of a cache of `hidden`; refused when its file is not the one that was written."""
        if self._head is not None:
            return self._head
        path = self.folder / HEAD
        found = _file_hash(path) if path.exists() else "no file"
        if found != self._manifest.get("head"):
            raise DistillError(f"{path} is damaged: its sha256 is {found}; delete the cache and write it again")
        with safetensors.safe_open(path, "pt") as file:
            options = {key: json.loads(value.replace("None", "null")) for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        self._head = LanguageHead(**tensors, **options)
        return self._head

    def _shards(self) -> list[Shard]:
        starts = range(0, self.images, self._rows)
        return [Shard(v, s, min(s + self._rows, self.images)) for v in range(self.views) for s in starts]

    def _path(self, shard: Shard) -> Path:
        return self.folder / shard.name

    def _load(self, shard: Shard) -> dict[str, Tensor]:
        """A shard's tensors, in mapped memory; its checksum is compared when it is read first."""
        if shard not in self._loaded:
            path = self._path(shard)
            found = _file_hash(path) if path.exists() else "no file"
            if found != self._manifest["shards"].get(shard.name):
                told = f"{path} is damaged: its sha256 is {found}"
                raise DistillError(f"{told}; delete the file and write it with `fill_cache`")
            self._loaded[shard] = safetensors.torch.load_file(path)
        return self._loaded[shard]


def checksums(images: Tensor) -> Tensor:
    """CRC-32 of the pixels of every image.

    Args:
        images: Shape (rows, ...).

    Returns:
        Shape (rows,), int64.
    """
    return torch.tensor([zlib.crc32(image.contiguous().numpy()) for image in images.detach().cpu()], dtype=torch.int64)


def _refuse_other(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, object]) -> None:
    """Compare what a manifest says with what is wanted."""
    differences = []
    for key in ("format", "views", "shard", "form", "identity"):
        pairs = [(key, found.get(key), wanted.get(key))]
        if isinstance(values := wanted.get(key), dict):
            pairs = [(name, (found.get(key) or {}).get(name), value) for name, value in values.items()]
        differences += [f"{name} is {has!r} there and {asked!r} here" for name, has, asked in pairs if has != asked]
    if differences:
        raise DistillError(f"the cache {folder} is of something else: {'; '.join(differences)}; write a new one")


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(f"there is no teacher cache in {folder}: {MANIFEST} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DistillError(f"{folder / MANIFEST} is damaged: {error}") from None
    parts = [manifest.get(key) for key in ("identity", "form", "shards")] if isinstance(manifest, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise DistillError(f"{folder / MANIFEST} is damaged: it holds no tables identity, form and shards")
    return cast("dict[str, Any]", manifest)


def _plain(value: object) -> Any:
    """Dataclasses as JSON would give them back."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Under a temporary name, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
