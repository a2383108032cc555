"""Train every term, and a language model, on one process or two; test_module.py runs it."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers import GroupNorm1
from timm.models.resnet import BasicBlock, ResNet
from torch.utils.data import DataLoader, DistributedSampler
from transformers import LlamaConfig, LlamaForCausalLM

from distill import DistillModule
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer

TERMS = {
    "logits": {"hard": {}, "kd": {"temperature": 2.0}, "dkd": {}, "mlkd": {"weight": 0.1}, "binary_kd": {}, "jsd": {}},
    "dist": {"hard": {}, "dist": {"weight": 2.0}},
    "rkd": {"hard": {"kind": "bce"}, "rkd": {"weight": 0.1}},
    "ctkd": {"hard": {}, "ctkd": {"standardised": True}},
    "features": {"hard": {}, "cc": {"weight": 10.0}, "crd": {"negatives": 6, "weight": 0.1}},
}
MAPS = {
    "fitnet": {"hard": {}, "fitnet": {}},
    "review": {"hard": {}, "review": {"width": 8}},
    "hint": {"hard": {}, "hint": {"student": "layer2", "teacher": "layer3.0.conv2"}},
}
APART = {"uld": {"hard": {}, "uld": {"weight": 2.0}}}


def main(out: Path, devices: int) -> None:
    fits = {"pictures": pictures, "maps": maps, "tokens": tokens, "apart": apart}
    ends = {}
    for name, fit in fits.items():
        module, trainer = fit(out, devices)
        ends |= {f"{name}.{n}": p for n, p in module.state_dict().items() if "metrics" not in n}
    if trainer.is_global_zero:
        save_file({n: p.detach().clone().contiguous() for n, p in ends.items()}, out)


def settings(devices: int) -> dict[str, Any]:
    return {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "use_distributed_sampler": False}


def tokens(out: Path, devices: int, terms: dict[str, Any] | None = None) -> tuple[DistillModule, Any]:
    """Texts of 2 to 12 tokens, so that processes hold different numbers of them."""
    sizes = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    made = []
    for width in (8, 16):
        torch.manual_seed(width)
        made.append(LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=2 * width, **sizes)))
    ids = torch.randint(40, (32, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(12) > 1 + torch.arange(32)[:, None] ** 2 % 11, -100)
    terms = terms or {"hard": {}, "kd": {"temperature": 2.0}}
    module = DistillModule(*made, terms, changes=CHANGES, task="language", log_gradients_every=0)
    fit = trainer(out.parent, limit_val_batches=0, max_epochs=2, **settings(devices))
    rows = [{"input_ids": i, "labels": row} for i, row in zip(ids, labels, strict=True)]
    for row in rows if "uld" in terms else []:
        paired = (row["labels"] != -100) & (torch.arange(12) % 3 == 1)
        other = {"input_ids": row["input_ids"].flip(0), "attention_mask": torch.ones(12, dtype=torch.long)}
        other["labels"] = row["input_ids"].where(paired, -100)
        row |= {"paired": paired, **{f"teacher_{key}": value for key, value in other.items()}}
    mine = DistributedSampler(rows, devices, int(os.environ.get("LOCAL_RANK", "0")), shuffle=False)
    fit.fit(module, DataLoader(rows, 16 // devices, sampler=mine))
    return module, fit


def apart(out: Path, devices: int) -> tuple[DistillModule, Any]:
    """The same texts, of which every third place is one that a teacher of other tokens has come to as well."""
    return tokens(out, devices, APART["uld"])


def maps(out: Path, devices: int) -> tuple[DistillModule, Any]:
    """ResNets with group norm, which knows no batch; review's fusion has batch norm, over all processes."""
    made = []
    for seed, width in enumerate((16, 4, 4, 4)):
        torch.manual_seed(seed)
        shape = {"layers": (1, 1, 1, 1), "channels": (width, width, 2 * width, 2 * width), "in_chans": 1}
        made.append(ResNet(BasicBlock, num_classes=CLASSES, norm_layer=GroupNorm1, **shape))
    students = dict(zip(MAPS, made[1:], strict=True))
    changes = CHANGES | {"learning_rate": 0.01}
    torch.manual_seed(0)
    module = DistillModule(students, made[0], MAPS, changes=changes, classes=CLASSES, log_gradients_every=0)
    fit = trainer(out.parent, **settings(devices))
    fit.fit(module, datamodule=Data(batch_size=16 // devices))
    return module, fit


def pictures(out: Path, devices: int) -> tuple[DistillModule, Any]:
    torch.manual_seed(0)
    data = Data(batch_size=16 // devices)
    module = DistillModule(
        {name: linear(1) for name in TERMS},
        linear(2, 20),
        TERMS,
        changes=CHANGES,
        classes=CLASSES,
        item_labels=data.rows.labels.tolist(),
        log_gradients_every=2,
    )
    with torch.no_grad():  # a teacher that has something to say
        module._teacher.network.model.head.weight.mul_(3)
    fit = trainer(out.parent, **settings(devices))
    fit.fit(module, datamodule=data)
    return module, fit


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]))
