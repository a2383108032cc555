"""Training from cached teacher outputs: speed-up against its bound, and what caching by index, not by view, costs.

Speed. Student and teacher are stacks of one residual block of linear layers, so that both reach the same share of the
machine's peak; the teacher has 1, 4 and 10 times the student's blocks. A step is forward, loss, backward and the update
of the student, online with the teacher's forward in it, cached with the reading of stored logits instead. With F
the FLOPs of a forward pass, the bound is 1 + F_t / (3 F_s): the backward pass costs twice the forward. A figure
``speedup_over_bound_<ratio>`` is the measured speed-up, the median over interleaved rounds, as a share of that bound.

Consistency. A teacher CNN trained on views of 4 000 glyphs answers to random crops of 1 000 others, and a small student
learns from its logits alone: ``online``, from the view that it sees; ``by view``, the same logits read from a cache
addressed by view (equal bit for bit, which is checked); ``by index``, one stored answer an image, to its first view,
whatever view the student sees, as a cache keyed by sample does; and ``other view``, an answer to another view of the
image, a new one in every epoch. Accuracy is on 2 000 uncropped test glyphs after the last step. The figures
``<way>_minus_online`` are points, with a 95 % interval of paired differences over seeds. Takes about two minutes.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Figure, interleaved_times, median_ratio, write_results
from distill.cache import Form, Identity, TeacherCache
from distill.cached_views import fill_cache, weights_digest
from distill.functional import kd
from distill.glyphs import CHARACTERS, MEAN, STD, Glyphs
from distill.views import Augmentation, ViewDataset
from recipes.running.intervals import interval

WIDTH, BLOCKS, CLASSES, BATCH, ROUNDS = 384, 6, 99, 256, 15
RATIOS = (1, 4, 10)
SEEDS, EPOCHS, IMAGES = 5, 10, 1000
TEACHER_IMAGES, TEACHER_EPOCHS = 4000, 6
AUGMENTATION = Augmentation(size=16, scale=(0.3, 1.0), interpolation="bilinear", flip=0.0)


class Residual(nn.Module):
    """One linear block with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        return x + F.relu(self.linear(x))


def stack(blocks: int) -> nn.Sequential:
    """A network of so many blocks, with a head."""
    return nn.Sequential(*[Residual() for _ in range(blocks)], nn.Linear(WIDTH, CLASSES))


def flops(blocks: int) -> int:
    """Multiplications of one row's forward pass."""
    return blocks * WIDTH * WIDTH + WIDTH * CLASSES


def measure_speed(ratio: int, folder: Path) -> dict[str, Any]:
    """Online and cached steps of one student under a teacher of `ratio` times its blocks."""
    torch.manual_seed(0)
    student, teacher = stack(BLOCKS), stack(ratio * BLOCKS).eval()
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9)
    rows = torch.randn(BATCH, WIDTH)
    name = Identity("stack", weights_digest(teacher), "float32", 1, (0.0,), (1.0,), "none", "normal", BATCH, 0)
    cache = TeacherCache.create(folder, name, Form(), views=1)
    with torch.no_grad():
        stored = {"logits": teacher(rows), "pixels": torch.zeros(BATCH, dtype=torch.int64)}
    cache.write(cache.missing()[0], stored)
    cache.finish()

    def step(logits: Tensor) -> None:
        loss = kd(student(rows), logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def online() -> None:
        with torch.no_grad():
            logits = teacher(rows)
        step(logits)

    def cached() -> None:
        step(cache.logits(0, range(BATCH)))

    times = interleaved_times({"online": online, "cached": cached}, repeats=ROUNDS, warm_up=3)
    speedup = median_ratio(times["online"], times["cached"])
    bound = 1 + flops(ratio * BLOCKS) / (3 * flops(BLOCKS))
    return {"ratio": ratio, "speedup": speedup, "bound": bound, "share": {k: v / bound for k, v in speedup.items()}}


def cnn(width: int) -> nn.Sequential:
    """A small CNN for 16 x 16 pixels in [0, 1]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(1, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, len(CHARACTERS)))


def normalise(images: Tensor) -> Tensor:
    """From [0, 1]."""
    return (images - MEAN) / STD


def schedule(model: nn.Module, updates: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with one cycle of the rate."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)


def train_teacher() -> nn.Sequential:
    """The teacher, on views of other glyphs."""
    torch.manual_seed(0)
    teacher, views = cnn(16), ViewDataset(Glyphs(TEACHER_IMAGES, seed=1), AUGMENTATION, len(CHARACTERS))
    optimizer, rates = schedule(teacher, TEACHER_EPOCHS * TEACHER_IMAGES // 50)
    for epoch in range(TEACHER_EPOCHS):
        images, labels = rendered(views, epoch)
        for rows in torch.randperm(TEACHER_IMAGES).split(50):
            loss = F.cross_entropy(teacher(normalise(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return teacher.eval()


def rendered(views: ViewDataset, view: int) -> tuple[Tensor, Tensor]:
    """All images and classes of a view."""
    items = [views.item(view, index) for index in range(len(views))]
    return torch.stack([item["images"] for item in items]), torch.tensor([item["labels"] for item in items])


def measure_consistency(folder: Path) -> list[dict[str, Any]]:
    """Accuracy of students by seed and way of asking the teacher."""
    teacher, test = train_teacher(), Glyphs(2000, seed=2).tensors()
    inputs = normalise(test.images.float() / 255)
    with torch.no_grad():
        ceiling = float((teacher(inputs).argmax(-1) == test.labels).float().mean())
    rows = []
    for seed in range(SEEDS):
        views = ViewDataset(Glyphs(IMAGES, seed=10 + seed), AUGMENTATION, len(CHARACTERS), seed=seed, views=EPOCHS)
        name = Identity(
            "cnn",
            weights_digest(teacher),
            "float32",
            16,
            (MEAN,),
            (STD,),
            AUGMENTATION.digest(),
            f"{seed}",
            IMAGES,
            seed,
        )
        cache = TeacherCache.create(folder / str(seed), name, Form(), views=EPOCHS, shard=IMAGES)
        fill_cache(cache, views, lambda images: teacher(normalise(images)), batch_size=IMAGES)
        seen = [rendered(views, epoch)[0] for epoch in range(EPOCHS)]
        with torch.no_grad():
            online = [teacher(normalise(images)) for images in seen]
        everything = range(IMAGES)
        answers = {
            "online": online,
            "by view": [cache.logits(epoch, everything, seen[epoch]) for epoch in range(EPOCHS)],
            "by index": [cache.logits(0, everything)] * EPOCHS,
            "other view": [cache.logits((epoch + 1) % EPOCHS, everything) for epoch in range(EPOCHS)],
        }
        if not all(torch.equal(a, b) for a, b in zip(answers["online"], answers["by view"], strict=True)):
            raise RuntimeError("cached answers to the same views differ from online ones")
        accuracies = {way: train_student(seed, seen, logits, inputs, test.labels) for way, logits in answers.items()}
        rows.append({"seed": seed, "teacher": ceiling, **accuracies})
        print(rows[-1], flush=True)
    return rows


def train_student(seed: int, seen: list[Tensor], answers: list[Tensor], inputs: Tensor, labels: Tensor) -> float:
    """Test accuracy of a student that learns the answers to what it sees."""
    torch.manual_seed(seed)
    student = cnn(8)
    optimizer, rates = schedule(student, EPOCHS * IMAGES // 50)
    for images, logits in zip(seen, answers, strict=True):
        for rows in torch.randperm(IMAGES).split(50):
            loss = kd(student(normalise(images[rows])), logits[rows], temperature=2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    with torch.no_grad():
        return float((student.eval()(inputs).argmax(-1) == labels).float().mean())


def paired(first: list[float], second: list[float]) -> dict[str, float]:
    """Mean paired difference in points, with its interval."""
    return interval([100 * (one - other) for one, other in zip(first, second, strict=True)])


def main() -> None:
    """Measure, print and write the figures."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        speeds = [measure_speed(ratio, Path(folder) / f"speed-{ratio}") for ratio in RATIOS]
        for row in speeds:
            figures[f"speedup_over_bound_{row['ratio']}to1"] = row["share"]
            print(row, flush=True)
        students = measure_consistency(Path(folder))
    for way in ("by view", "by index", "other view"):
        difference = paired([row[way] for row in students], [row["online"] for row in students])
        figures[f"{way.replace(' ', '_')}_minus_online"] = difference
    flat = [{k: v["value"] if isinstance(v, dict) else v for k, v in row.items()} for row in speeds]
    print(write_results("teacher_cache", figures, {"steps": flat, "students": students}, SEEDS))


if __name__ == "__main__":
    main()
