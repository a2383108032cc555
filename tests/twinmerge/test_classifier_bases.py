"""A base that is a classifier itself, as most image models that people fine-tune are: experts have their own heads."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    ResNetConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

import twinmerge
from twinmerge.errors import CheckpointError

LABELS = {"pets": ["cat", "dog"], "shapes": ["square", "circle", "bar"]}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
CONFIGS = {
    "vit": ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=10),
    "resnet": ResNetConfig(**STAGES, num_labels=10),
    "swin": SwinConfig(image_size=32, **WINDOWS, num_labels=10),
    "timm": TimmWrapperConfig(architecture="test_vit.r160_in1k", num_labels=10),
    "bert": BertConfig(vocab_size=50, **SIZES, num_labels=10),
}


def kind_of(name):
    return AutoModelForSequenceClassification if name == "bert" else AutoModelForImageClassification


def made(folder, name, adapters=False):
    """A classifier of ten labels, and two fine-tunes of it as plain transformers or PEFT save them."""
    torch.manual_seed(0)
    kind_of(name).from_config(CONFIGS[name]).save_pretrained(folder / "base")
    for task, labels in LABELS.items():
        said = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model = kind_of(name).from_pretrained(
            folder / "base", ignore_mismatched_sizes=True, num_labels=len(labels), **said
        )
        if adapters:
            names = ["q_proj", "v_proj"] if any("q_proj" in n for n, _ in model.named_modules()) else ["query", "value"]
            model = get_peft_model(model, LoraConfig(r=4, target_modules=names, modules_to_save=["classifier"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / task)
        if adapters:
            model = model.merge_and_unload()
        model.eval().save_pretrained(folder / f"{task}-whole")
    return {task: folder / task for task in LABELS}


def inputs_of(name):
    if name == "bert":
        return {"input_ids": torch.randint(5, 50, (4, 6))}
    return {"pixel_values": torch.randn(4, 3, *[160 if name == "timm" else 32] * 2)}


@pytest.mark.parametrize(("name", "adapters"), [*((name, False) for name in CONFIGS), ("vit", True)])
def test_experts_of_a_base_with_a_head_of_its_own_answer_as_they_did(tmp_path, name, adapters):
    twin = twinmerge.merge_folders(tmp_path / "base", made(tmp_path, name, adapters), rank={"density": 1.0})
    inputs = inputs_of(name)
    for index, (task, labels) in enumerate(LABELS.items()):
        with torch.no_grad():
            wanted = kind_of(name).from_pretrained(tmp_path / f"{task}-whole").eval()(**inputs).logits
            found = twin.classify(**inputs, head=task, router_weights=torch.eye(2)[[index] * 4]).logits
        torch.testing.assert_close(found[:, : len(labels)], wanted, atol=1e-5, rtol=1e-4)


def test_a_body_of_other_shapes_is_no_fine_tune_of_it(tmp_path):
    places = made(tmp_path, "vit")
    other = ViTConfig(**SIZES | {"intermediate_size": 48}, image_size=32, patch_size=8, num_labels=2)
    AutoModelForImageClassification.from_config(other).save_pretrained(places["pets"])
    with pytest.raises(CheckpointError, match="experts must be fine-tunes of the base"):
        twinmerge.merge_folders(tmp_path / "base", places)
