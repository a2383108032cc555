"""Train every term that relates samples on one process or two; run by test_module.py as a script."""

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from distill import DistillModule
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer

TERMS = {
    "logits": {"hard": {}, "kd": {"temperature": 2.0}, "dkd": {}, "mlkd": {"weight": 0.1}},
    "dist": {"hard": {}, "dist": {"weight": 2.0}},
    "rkd": {"hard": {}, "rkd": {"weight": 0.1}},
    "hints": {"hard": {}, "cc": {"weight": 10.0}, "crd": {"negatives": 6, "weight": 0.1}, "ctkd": {}},
}


def main(out: Path, devices: int) -> None:
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
    fit = trainer(out.parent, devices=devices, strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False)
    fit.fit(module, datamodule=data)
    if fit.is_global_zero:
        save_file(
            {n: p.detach().clone().contiguous() for n, p in module.state_dict().items() if "metrics" not in n}, out
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]))
