"""A base that is a classifier itself, as most image models that people fine-tune are: experts have their own heads."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import twinmerge
from twinmerge.errors import CheckpointError
from twinmerge.layouts import probe_inputs

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = {"pets": ["cat", "dog"], "shapes": ["square", "circle", "bar"]}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {**SIZES, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
HEADS = {**STAGES, "image_size": 64, "num_attention_heads": [1, 2, 2, 2]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
TEXT = {**SIZES, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LEVIT = {"depths": [1] * 3, "key_dim": [8] * 3, "attention_ratio": [2] * 3, "mlp_ratio": [2] * 3, "drop_path_rate": 0}
FOCAL = {"embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [1, 1], "focal_windows": [3, 3]}
CONFIGS = {
    "Bert": {**SIZES, "vocab_size": 50},
    "Beit": SQUARE,
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "Data2VecVision": SQUARE,
    "Dinov2": SQUARE,
    "Dinov2WithRegisters": SQUARE,
    "EfficientNet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "FocalNet": {"image_size": 32, **FOCAL},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], **LEVIT},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.1, "min_depth": 8},
    "PoolFormer": {**STAGES, "image_size": 64},
    "Pvt": {**HEADS, "mlp_ratios": [2, 2, 2, 2]},
    "PvtV2": {**HEADS, "mlp_ratios": [2, 2, 2, 2]},
    "RegNet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "ResNet": {**STAGES, "embedding_size": 8},
    "Segformer": {**STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "Siglip2": {"text_config": TEXT, "vision_config": {**SIZES, "patch_size": 8, "num_patches": 16}},
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "CLIP": {"text_config": TEXT, "vision_config": SQUARE},
    "DeiT": SQUARE,
    "Hiera": {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8] * 5 + [16, 32]},
    "Siglip": {"text_config": TEXT, "vision_config": SQUARE},
    "ViT": SQUARE,
    "timm resnet": {"architecture": "test_resnet.r160_in1k"},
    "timm vit": {"architecture": "test_vit.r160_in1k"},
}
HEAD = "none that a twin can hold"
REFUSED = {
    "Data2VecVision": "has the parameter 'pooler.layernorm.bias' that the base lacks",
    "Dinov2WithRegisters": HEAD,
    "Levit": HEAD,
    "PoolFormer": HEAD,
    "Siglip2": "a Siglip2VisionModel takes no images that can be made from its configuration",
    "MobileNetV2 adapters": "that PEFT cannot run or merge",  # its code asks PEFT's layer for strides
    "Levit adapters": "has no head among its tensors",
}


def kind_of(name):
    stem = "TimmWrapper" if name.startswith("timm") else name
    return getattr(transformers, f"{stem}For{'Sequence' if name == 'Bert' else 'Image'}Classification")


def adapted(model, labels):
    """A LoRA of the first few layers of a classifier, with its head saved whole."""
    heads = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m.out_features == labels]
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in heads]
    plain = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups == 1]
    config = LoraConfig(r=2, target_modules=(linear or plain)[:4], modules_to_save=heads or ["classifier"])
    return get_peft_model(model, config)


def made(folder, name, adapters=False):
    """A classifier of ten labels, and two fine-tunes of it as plain transformers or PEFT save them."""
    torch.manual_seed(0)
    kind = kind_of(name)
    base = kind(kind.config_class(**CONFIGS[name], num_labels=10))
    for parameter in base.parameters():  # scales of zero would hide what is behind them
        parameter.data += 0.02 * torch.randn_like(parameter)
    base.save_pretrained(folder / "base")
    for task, labels in LABELS.items():
        said = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model = kind.from_pretrained(folder / "base", ignore_mismatched_sizes=True, num_labels=len(labels), **said)
        model = adapted(model, len(labels)) if adapters else model
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.03 * torch.randn_like(parameter)
        model.save_pretrained(folder / task)
        model = model.merge_and_unload() if adapters else model
        model.eval().save_pretrained(folder / f"{task}-whole")
    return {task: folder / task for task in LABELS}


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("name", CONFIGS)
def test_experts_of_a_base_with_a_head_of_its_own_answer_as_they_did(tmp_path, name, adapters):
    places = made(tmp_path, name, adapters)
    if said := REFUSED.get(f"{name} adapters" if adapters else name, REFUSED.get(name)):
        with pytest.raises(CheckpointError, match=said):
            twinmerge.merge_folders(tmp_path / "base", places, rank={"density": 1.0})
        return
    twin = twinmerge.merge_folders(tmp_path / "base", places, rank={"density": 1.0})
    inputs = probe_inputs(kind_of(name).from_pretrained(tmp_path / "pets-whole"), 4)
    for index, (task, labels) in enumerate(LABELS.items()):
        with torch.no_grad():
            wanted = kind_of(name).from_pretrained(tmp_path / f"{task}-whole").eval()(**inputs).logits
            found = twin.classify(**inputs, head=task, router_weights=torch.eye(2)[[index] * 4]).logits
        torch.testing.assert_close(found[:, : len(labels)], wanted, atol=1e-5, rtol=1e-4)


def test_a_body_of_other_shapes_is_no_fine_tune_of_it(tmp_path):
    places = made(tmp_path, "ViT")
    other = transformers.ViTConfig(**SQUARE | {"intermediate_size": 48}, num_labels=2)
    transformers.ViTForImageClassification(other).save_pretrained(places["pets"])
    with pytest.raises(CheckpointError, match="experts must be fine-tunes of the base"):
        twinmerge.merge_folders(tmp_path / "base", places)


def test_an_adapter_whose_head_was_not_saved_is_refused(tmp_path):
    places = made(tmp_path, "ViT")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base", num_labels=10)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "lost")
    with pytest.raises(CheckpointError, match="has no head among its tensors, so that its answers are lost"):
        twinmerge.merge_folders(tmp_path / "base", {**places, "lost": tmp_path / "lost"})
