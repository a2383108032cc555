"""Image models: every vision family is exact or refused, features are per channel, folders and heads are read back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import twinmerge
from benchmarks import families, vision
from tests.twinmerge import tiny
from twinmerge import FinetuneModule, Head, attach, densify, merge, recalibrate, wrap_timm
from twinmerge.classifiers import stock_classifier
from twinmerge.heads import parts, read_head, states_and_logits
from twinmerge.layouts import probe_inputs
from twinmerge.routed_images import RoutedBatchNorm, RoutedChannelNorm, RoutedConv, RoutedGroupedConv, image_kind
from twinmerge.routed_layers import RoutedAny, RoutedLayer, RoutedNorm
from twinmerge.states import states_of

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = [f"transformers {name}" for name in (*vision.TOWERS, "vit", "deit", "beit", "dinov2", "convnext")]
QUICK += [
    f"timm {name}"
    for name in (
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_base_patch32_clip_224",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "convit_tiny",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "resnet18",
        "densenet121",
        "test_efficientnet",
        "test_efficientnet_evos",
        "tf_efficientnetv2_b0",
    )
]
SLOW = [
    f"transformers {name}"
    for name in families.families()
    if name in families.auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
]
SLOW = [name for name in (*SLOW, *(f"timm {name}" for name in vision.TIMM)) if name not in QUICK]


@pytest.mark.parametrize("name", QUICK)
def test_vision_families_are_exact(name: str) -> None:
    (row,), _ = vision.rows_of((name,))
    assert row["outcome"] == "exact", row


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_vision_family_is_exact_or_refused(name: str) -> None:
    rows, left = vision.rows_of((name,))
    if left:
        pytest.skip(left[0]["reason"])
    assert rows[0]["outcome"] in ("exact", "refused"), rows


def twin_of(model: Any, method: str = "average") -> tuple[Any, dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    inputs = probe_inputs(model, families.ROWS)
    assert inputs is not None
    experts = families.fine_tuned(model, inputs)
    twin, _ = merge(copy.deepcopy(model), experts, method, rank={"density": 1.0})
    return twin.eval(), experts, inputs


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        (lambda: families.build("resnet"), 16),
        (lambda: families.build("swin"), 16),
        (lambda: vision.of_timm("swin_tiny_patch4_window7_224"), 16),
        (lambda: vision.of_timm("resnet18"), 16),
        (lambda: vision.tower("clip classifier"), 32),
    ],
)
def test_features_are_means_over_places_and_not_over_channels(model: Any, channels: int) -> None:
    twin, _, inputs = twin_of(model())
    seen: list[Tensor] = []
    stock = densify(twin, {})
    body = parts(stock)[0]
    with torch.no_grad():
        last = body(**inputs)[0]
        seen = [twin.features(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(families.ROWS)]
        found = twin.features(**inputs)
    dims = {3: (1,), 4: (1, 2) if last.shape[-1] == channels and last.shape[1] != channels else (2, 3)}[last.dim()]
    assert found.shape == (families.ROWS, channels)
    torch.testing.assert_close(found, last.float().mean(dims), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, torch.cat(seen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm", "lite", "projection", "resnet"])
def test_folders_of_image_twins_are_read_back(name: str, tmp_path: Path) -> None:
    build = {
        "timm": lambda: vision.of_timm("vit_tiny_patch16_224"),
        "lite": lambda: vision.of_timm("tf_efficientnetv2_b0"),
        "projection": lambda: vision.tower("clip_vision_model with projection"),
        "resnet": lambda: families.build("resnet"),
    }[name]
    twin, experts, inputs = twin_of(build())
    twin.router = tiny.router(twin.features(**inputs).shape[1]).eval()
    twin.heads["t0"] = Head(twin.features(**inputs).shape[1], 3, "mean")
    folder = twinmerge.save(twin.eval(), tmp_path / "twin")
    if name != "projection":  # no stock class with labels has it
        kind = transformers.AutoModelForImageClassification
        made = kind.from_pretrained(folder, trust_remote_code=True, head="t0")
        with torch.no_grad():
            asked = twin.classify(**inputs, head="t0").logits
            torch.testing.assert_close(made(**inputs).logits, asked, rtol=1e-4, atol=1e-4)
    weights = torch.eye(3)[[0, 1, 2, 0]]
    own = copy.deepcopy(build())
    own.load_state_dict(experts["t1"], strict=False)
    with torch.no_grad():
        wanted, routed = twin(**inputs, router_weights=weights)[0], twin(**inputs)[0]
        again = twinmerge.load(folder)
        remote = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        for model in (again, remote):
            torch.testing.assert_close(model(**inputs, router_weights=weights)[0], wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(model(**inputs)[0], routed, rtol=1e-4, atol=1e-4)
        dense = twinmerge.load(folder, mode="expert:t1")
        torch.testing.assert_close(dense(**inputs)[0], own(**inputs)[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(wanted[1:2], own(**inputs)[0][1:2], rtol=1e-3, atol=1e-4)
    assert type(dense) is type(own)
    if "timm_model" in dict(dense.named_children()):  # timm's own model, as it was
        assert type(dense.timm_model) is type(own.timm_model)


def test_a_raw_model_of_timm_is_wrapped() -> None:
    made = timm.create_model("resnet10t", num_classes=5, channels=(8, 8, 8, 16)).eval()
    with pytest.raises(ValueError, match=r"makes another model.*model_args of wrap_timm"):
        wrap_timm(made)
    model = wrap_timm(made, {"channels": (8, 8, 8, 16)})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooler_output, made.forward_head(made.forward_features(x), pre_logits=True))
    assert made.num_classes == 5
    with pytest.raises(ValueError, match=r"neither a model of transformers nor one that timm.create_model made"):
        attach(nn.Linear(3, 3), ["a"], [{}])
    small = timm.create_model("test_resnet.r160_in1k", num_classes=0).eval()
    delta = {"conv1.0.weight": 0.1 * torch.randn(small.conv1[0].weight.shape)}
    twin = attach(small, ["a", "b"], [delta, {}]).eval()
    with torch.no_grad():
        got = twin(pixel_values=x, router_weights=torch.tensor([[1.0, 0.0], [0.0, 1.0]])).pooler_output
        torch.testing.assert_close(got[1:], small(x[1:]), rtol=1e-4, atol=1e-4)
        small.conv1[0].weight.add_(delta["conv1.0.weight"])
        torch.testing.assert_close(got[:1], small(x[:1]), rtol=1e-4, atol=1e-4)


def test_timms_classifier_inside_its_model_is_refused_with_the_way_out() -> None:
    config = transformers.TimmWrapperConfig(architecture="resnet10t", num_labels=3)
    with pytest.raises(ValueError, match=r"load the folder by AutoModel"):
        attach(transformers.TimmWrapperForImageClassification(config), ["a"], [{}])


def classifiers() -> dict[str, tuple[Any, str]]:
    known = {
        "resnet": "pooled",
        "convnext": "pooled",
        "swin": "pooled",
        "beit": "pooled",
        "vit": "first",
        "deit": "first",
    }
    made: dict[str, tuple[Any, str]] = {}
    for family, pooling in (known | {"dinov2": "first_patches"}).items():
        config = families.build(family).config
        config.num_labels = 5
        kind = families.auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[family]
        kind = kind if isinstance(kind, str) else kind[0]
        made[family] = (getattr(transformers, kind)(config).eval(), pooling)
    made["clip"] = (vision.tower("clip classifier"), "patches")
    made["siglip"] = (vision.tower("siglip classifier"), "mean")
    for name, pooling in (("vit_tiny_patch16_224", "first"), ("resnet18", "pooled")):
        config = transformers.TimmWrapperConfig(architecture=name, model_args=vision.TIMM[name], num_labels=5)
        made[name] = (transformers.TimmWrapperForImageClassification(config).eval(), pooling)
    return made


def test_heads_of_stock_image_classifiers_are_read() -> None:
    for name, (model, pooling) in classifiers().items():
        head, _ = read_head(model)
        inputs = probe_inputs(model, 3)
        assert inputs is not None
        states, logits = states_and_logits(model, inputs)
        assert head.pooling == pooling, name
        torch.testing.assert_close(head(states), logits, rtol=1e-4, atol=1e-5)


class Scaled(nn.Conv2d):
    """A convolution that standardises its kernel, so that it is not linear in it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class Squared(nn.BatchNorm2d):
    """A batch norm that does something else afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def test_kinds_of_layers_are_found_by_trial() -> None:
    same = timm.layers.Conv2dSame(4, 6, 3, stride=2)
    assert image_kind(same) is RoutedConv
    assert image_kind(timm.layers.Conv2dSame(4, 4, 3, stride=2, groups=4)) is RoutedGroupedConv
    assert image_kind(timm.layers.BatchNormAct2d(4).eval()) is RoutedBatchNorm
    assert image_kind(timm.layers.LayerNorm2d(4)) is RoutedChannelNorm
    assert image_kind(timm.layers.LayerNorm(4)) is RoutedNorm
    for odd in (Scaled(4, 6, 3), Squared(4), timm.layers.std_conv.StdConv2d(4, 6, 3)):
        assert image_kind(odd) is None, odd


def test_an_efficient_net_needs_no_fallback() -> None:
    twin, _, _ = twin_of(vision.of_timm("tf_efficientnetv2_b0"))
    slow = {
        type(m).__name__ for m in twin.modules() if isinstance(m, RoutedAny) and not isinstance(m, RoutedGroupedConv)
    }
    assert not slow
    assert sum(isinstance(m, RoutedLayer) for m in twin.modules()) > 20


def test_hidden_states_of_timm_under_a_mixture_of_its_positions_are_refused() -> None:
    twin, _, inputs = twin_of(vision.of_timm("vit_tiny_patch16_224"))
    with pytest.raises(ValueError, match="leave output_hidden_states out"):
        twin(**inputs, router_weights=tiny.mixtures(4), output_hidden_states=True)
    twin.router_reads = "all"  # the router reads the shared expert, whose positions are the same for all
    assert twin.features(**inputs).shape[0] == 4


def test_statistics_are_taken_anew() -> None:
    model = families.build("resnet")
    x = [{"pixel_values": 2 + 3 * torch.randn(8, 3, 32, 32)} for _ in range(3)]
    seen: list[Tensor] = []
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    recalibrate(model, x)
    assert not model.training
    assert not norm.training
    means = torch.stack([s.mean((0, 2, 3)) for s in seen[:3]]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    with pytest.raises(ValueError, match="no batch is given"):
        recalibrate(model, [])
    with pytest.raises(ValueError, match="recalibrate the stock model before"):
        recalibrate(twin_of(families.build("resnet"))[0], x)


def test_images_are_fine_tuned_with_frozen_statistics() -> None:
    model = families.build("resnet")
    before = copy.deepcopy(model.state_dict())
    module = FinetuneModule(model, 3, pooling="pooled")
    module.train()
    loss, _ = module.loss({"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])})
    loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    trained = FinetuneModule(copy.deepcopy(model), 3, statistics="trained").train()
    trained.loss({"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])})
    assert any(not torch.equal(v, before[k]) for k, v in trained.model.state_dict().items())


def test_heads_on_what_a_body_pools_to_answer_routed() -> None:
    twin, _, inputs = twin_of(families.build("resnet"))
    twin.heads["t0"] = Head(16, 3, "pooled")
    twin.eval()
    weights = tiny.mixtures(4)
    with torch.no_grad():
        got = twin.classify(**inputs, head="t0", router_weights=weights).logits
        for i, row in enumerate(weights.tolist()):
            dense = densify(twin, dict(zip(twin.tasks, row, strict=True)))
            pooled = dense(inputs["pixel_values"][i : i + 1]).pooler_output.flatten(1)
            torch.testing.assert_close(got[i : i + 1], twin.heads["t0"].out_proj(pooled), rtol=1e-4, atol=1e-5)
    text, _ = merge(tiny.bert(), {t: dict(tiny.bert().named_parameters()) for t in "ab"}, rank=1)
    text.heads["a"] = Head(32, 3, "pooled")
    assert text.classify(**tiny.text(), head="a", router_weights=torch.ones(1, 2) / 2).logits.shape == (4, 3)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_dense_classifier_of_timm_has_the_heads_answers_and_labels(name: str, tmp_path: Path) -> None:
    body = vision.of_timm(name)
    body.save_pretrained(tmp_path / "body")
    body = transformers.AutoModel.from_pretrained(tmp_path / "body").eval()
    inputs = probe_inputs(body, 2)
    assert inputs is not None
    width = body(**inputs).pooler_output.shape[1]
    head = Head(width, 3, "first" if name.startswith("vit") else "mean")
    head.label_names = ["a", "b", "c"]
    stock_classifier(body, head.eval()).save_pretrained(tmp_path / "dense")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "dense").eval()
    with torch.no_grad():
        wanted = head(states_of(body, body(**inputs)))
        torch.testing.assert_close(again(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
