"""One distillation step through the LightningModule and Trainer, beside a plain PyTorch loop and torchdistill.

ResNet-34 teaches ResNet-18 at 64 pixels, batches of 32 from memory, float32 on one thread, cross-entropy and KL at
temperature 4, SGD. Rounds are interleaved; in each, every side trains anew and its steps after a warm-up are timed, the
fetching of batches included. The plain loop has the layout of ours (channels last); torchdistill, which knows no other
layout, runs as it is, through its `DistillationBox`. All start from the same weights, and the losses of all three after
the first step must agree.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from benchmarks.common import Figure, median_ratio, write_results
from distill import DistillModule
from recipes.running.quiet import silent_trainer

SIZE, BATCH, CLASSES = 64, 32, 100
WARM_UP, STEPS, ROUNDS = 3, 8, 9
TERMS = {"hard": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}
CHANGES = {"image_size": SIZE, "batch_size": BATCH, "learning_rate": 0.01}

Run = tuple[float, float]  # seconds of the timed steps, loss of the first step


def main() -> None:
    """Time all sides and write the results."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "torchdistill"):
        logging.getLogger(name).setLevel(logging.ERROR)
    images = torch.rand((WARM_UP + STEPS) * BATCH, 3, SIZE, SIZE)
    labels = torch.randint(CLASSES, (len(images),))
    sides: dict[str, Callable[[Tensor, Tensor], Run]] = {"ours": ours, "plain": plain, "torchdistill": peer}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        losses = {}
        for name, side in sides.items():
            seconds, losses[name] = side(images, labels)
            if turn:
                times[name].append(seconds)
        if max(losses.values()) - min(losses.values()) > 1e-3:
            raise RuntimeError(f"the sides do not compute the same loss: {losses}")
    figures: dict[str, Figure] = {
        "time_vs_plain_loop": median_ratio(times["ours"], times["plain"]),
        "time_vs_torchdistill": median_ratio(times["ours"], times["torchdistill"]),
    }
    rows = [{"side": name, "median_ms": 1e3 * sorted(t)[len(t) // 2] / STEPS} for name, t in times.items()]
    write_results("kd_step", figures, {"sides": rows}, seeds=1)
    for row in (*rows, figures):
        print(row)


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher, the same in every round."""
    torch.manual_seed(0)
    student = timm.create_model("resnet18", num_classes=CLASSES)
    return student, timm.create_model("resnet34", num_classes=CLASSES).eval().requires_grad_(False)


class Watch(lightning.Callback):
    """Times the steps after the warm-up and keeps the first loss."""

    def __init__(self) -> None:
        self.start = self.end = self.loss = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        if batch_idx == 0:
            self.loss = float(outputs["loss"])
        if batch_idx == WARM_UP - 1:
            self.start = time.perf_counter()
        self.end = time.perf_counter()


def ours(images: Tensor, labels: Tensor) -> Run:
    """`DistillModule` under a Trainer."""
    student, teacher = networks()
    module = DistillModule(
        student,
        teacher,
        TERMS,
        regime="previous_cifar",
        changes=CHANGES,
        classes=CLASSES,
        student_options=PLAIN,
        teacher_options=PLAIN,
        channels_last=True,
        log_gradients_every=0,
    )
    rows: Any = [{"images": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    watch = Watch()
    trainer = silent_trainer(max_epochs=1, callbacks=[watch], limit_val_batches=0)
    trainer.fit(module, train_dataloaders=DataLoader(rows, BATCH))
    return watch.end - watch.start, watch.loss


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def timed(step: Callable[[Tensor, Tensor], Tensor], batches: Iterator[Any]) -> Run:
    """Run all steps of a side."""
    first, start = 0.0, 0.0
    for index, batch in enumerate(batches):
        loss = step(batch[0], batch[1])
        if index == 0:
            first = float(loss)
        if index == WARM_UP - 1:
            start = time.perf_counter()
    return time.perf_counter() - start, first


def plain(images: Tensor, labels: Tensor) -> Run:
    """What one would write by hand."""
    student, teacher = (network.to(memory_format=torch.channels_last) for network in networks())
    optimizer = torch.optim.SGD(student.parameters(), 0.01, 0.9, weight_decay=5e-4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            t = teacher(x)
        z = student(x)
        soft = F.kl_div((z / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="batchmean")
        loss = 0.1 * F.cross_entropy(z, y) + 0.9 * 16 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return timed(step, iter(DataLoader(TensorDataset(images, labels), BATCH)))


def peer(images: Tensor, labels: Tensor) -> Run:
    """Torchdistill's box with its own KD loss and optimizer."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = networks()
    data = TensorDataset(images, labels)
    loader: dict[str, Any] = {"dataset_id": "train", "kwargs": {"batch_size": BATCH}, "requires_supp": False}
    loader["sampler"] = {"class_or_func": SequentialSampler}
    criterion = {"key": "KDLoss", "kwargs": {**LOGITS, "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}}
    config = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "val_data_loader": {**loader, "dataset_id": "train"},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": criterion, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(teacher, student, {"train": data}, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step(x: Tensor, y: Tensor) -> Tensor:
        box.pre_forward_process()
        loss = box.forward_process(x, y, supp_dict=None)
        box.post_forward_process(loss=loss)
        return loss.detach()

    return timed(step, iter(box.train_data_loader))


LOGITS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}

if __name__ == "__main__":
    main()
