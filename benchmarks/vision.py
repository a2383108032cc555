"""Which vision models can be routed: families of transformers, towers of CLIP and SigLIP, and families of timm.

As in `benchmarks/families.py` each is built from a tiny configuration, three fine-tunes of it are merged at full rank,
and one routed batch in which every image has a mixture of its own is compared with one dense model per image. The
router's features of a batch must also be those of each image alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import transformers
from torch import Tensor

from benchmarks import families
from twinmerge.layouts import probe_inputs
from twinmerge.timm_models import wrap_timm

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "vit_small_patch14_dinov2": {**VIT, "init_values": 0.1},
    "vit_small_patch14_reg4_dinov2": {**VIT, "init_values": 0.1},
    "vit_base_patch16_siglip_224": VIT,
    "vit_base_patch32_clip_224": VIT,
    "beit_base_patch16_224": VIT,
    "beitv2_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": {**VIT, "mlp_ratio": 2.0},
    "cait_xxs24_224": {**VIT, "depth_token_only": 1},
    "xcit_nano_12_p16_224": VIT,
    "convit_tiny": {**VIT, "local_up_to_layer": 1},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    "resnet18": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)},
    "resnet50": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)},
    "seresnet18": {"channels": (16, 16, 16, 32), "layers": (1, 1, 1, 1)},
    "resnetv2_50": {"channels": (8, 16, 16, 16), "layers": (1, 1, 1, 1), "stem_chs": 8},
    "regnetx_002": {},
    "regnety_002": {},
    "tf_efficientnet_lite0": {},
    "efficientnet_b0": {},
    "test_efficientnet": {},
    "test_efficientnet_gn": {},
    "test_efficientnet_ln": {},
    "test_efficientnet_evos": {},
    "tf_efficientnetv2_b0": {"channel_multiplier": 0.25, "depth_multiplier": 0.3},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "ghostnet_050": {},
    "mnasnet_small": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2)},
    "vgg11": {},
    "darknet53": {},
    "dla34": {},
    "poolformer_s12": {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16)},
    "edgenext_xx_small": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16), "heads": (2, 2, 2, 2)},
    "repvgg_a0": {},
    "mobileone_s0": {},
    "levit_128s": {},
    "mobilevit_xxs": {},
    "efficientformer_l1": {},
    "fastvit_t8": {},
    "nfnet_l0": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_mambaout": {},
    "inception_next_atto": {},
}
TOWERS = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "clip_vision_model with projection": "CLIPVisionModelWithProjection",
    "clip classifier": "CLIPForImageClassification",
    "siglip classifier": "SiglipForImageClassification",
}
PARAMETERS = 4_500_000  # of a small model, at most


def tower(name: str) -> Any:
    """A tiny tower of CLIP or SigLIP, or its classifier."""
    kind = getattr(transformers, TOWERS[name])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"image_size": 32, "patch_size": 8}
    if name.endswith("classifier"):
        config = kind.config_class(vision_config=sizes, num_labels=5)
    else:
        config = kind.config_class(**sizes, **({"projection_dim": 24} if "projection" in name else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _moved(kind(config))


def of_timm(name: str) -> Any:
    """A tiny model of timm in transformers' wrapper.

    Raises:
        ValueError: where it is not tiny.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = timm.create_model(name, num_classes=0, **TIMM[name])
        size = sum(p.numel() for p in made.parameters())
        if size > PARAMETERS:
            raise ValueError(f"{name} is not built small here ({size} parameters)")
        model = _moved(wrap_timm(made, TIMM[name]))
    with torch.no_grad():
        model(**probe_inputs(model, families.ROWS))
    return model


def features_amiss(twin: Any, inputs: Mapping[str, Tensor]) -> str:
    """How the router's features of a batch differ from those of each image alone; empty where they do not."""
    with torch.no_grad():
        together = twin.features(**inputs)
        alone = torch.cat([twin.features(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(families.ROWS)])
    if together.shape != alone.shape:
        return f"features of {tuple(together.shape)} and {tuple(alone.shape)}"
    error = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-6))
    return f"features differ by {error:.1e}" if error > 1e-4 else ""


def _moved(model: Any) -> Any:
    for parameter in model.parameters():  # zeros and ones would hide a difference that goes unused
        parameter.data += 0.05 * torch.randn(parameter.shape)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.add_(0.5)
    return model.eval()


def rows_of(names: tuple[str, ...] = ()) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The outcome of every vision family, or of those that are named, and those that cannot be built small here."""
    image = set(families.auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    made = {f"transformers {f}": (families.build, f) for f in families.families() if f in image}
    made |= {f"transformers {t}": (tower, t) for t in TOWERS} | {f"timm {t}": (of_timm, t) for t in TIMM}
    rows, left = [], []
    for name, (build, key) in made.items():
        if names and name not in names:
            continue
        try:
            model = build(key)
        except Exception as error:  # whatever timm says to sizes that it does not know
            left.append({"family": name, "reason": " ".join(str(error).split())[:160]})
            continue
        rows.append(families.outcome(name, model, features_amiss))
        print(rows[-1], flush=True)
    return rows, left
