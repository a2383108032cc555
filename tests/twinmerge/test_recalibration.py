"""Running statistics that are no batch norm's: timm's EvoNorms keep a variance alone."""

import copy

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0
from torch import nn

from tests.twinmerge import tiny
from twinmerge import FinetuneModule, merge, recalibrate, wrap_timm


class Evolved(nn.Module):
    """A convolution, an EvoNorm and a mean."""

    def __init__(self, norm=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm or EvoNorm2dB0(4)

    def forward(self, pixel_values):
        return self.norm(self.conv(pixel_values)).mean((2, 3))


def test_variances_of_an_evo_norm_are_the_means_over_the_batches():
    torch.manual_seed(0)
    model = Evolved().eval()
    batches = [{"pixel_values": torch.randn(3, 3, 6, 6) * scale} for scale in (1, 2, 5)]
    with torch.no_grad():
        wanted = torch.stack([model.conv(b["pixel_values"]).var((0, 2, 3)) for b in batches]).mean(0)
    recalibrate(model, batches)
    torch.testing.assert_close(model.norm.running_var, wanted)
    assert model.norm.momentum == 0.1
    assert not model.norm.training
    with pytest.raises(ValueError, match="one value for each channel, which has no variance"):
        recalibrate(model, [{"pixel_values": torch.randn(1, 3, 3, 3)}])
    torch.testing.assert_close(model.norm.running_var, wanted)


def test_statistics_of_an_unknown_kind_are_refused_by_name():
    model = Evolved(nn.InstanceNorm2d(4, track_running_stats=True))
    with pytest.raises(ValueError, match=r"'norm', a InstanceNorm2d, keeps running statistics in a way of its own"):
        recalibrate(model, [{"pixel_values": torch.randn(2, 3, 6, 6)}])


def evolved():
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0, norm_layer="evonormb0")
    return wrap_timm(model, {"norm_layer": "evonormb0"}).eval()


def variances(model):
    return {name: value.clone() for name, value in model.named_buffers() if name.endswith("running_var")}


def batch(rows=4):
    return {"pixel_values": torch.randn(rows, 3, 32, 32)}


def test_frozen_variances_of_evo_norms_are_used_and_not_moved_in_training():
    model = evolved()
    given, before = batch(), variances(model)
    module = FinetuneModule(copy.deepcopy(model), 3, pooling="pooled").train()
    with torch.no_grad():
        wanted = module.eval()(given)
        found = module.train()(given)
    torch.testing.assert_close(found, wanted)
    assert all(torch.equal(v, before[n]) for n, v in variances(module.model).items())
    trained = FinetuneModule(model, 3, statistics="trained", pooling="pooled").train()
    trained(given)
    assert any(not torch.equal(v, before[n]) for n, v in variances(trained.model).items())


def test_variances_of_a_twin_stay_where_they_are_in_training():
    model = evolved()
    experts = {}
    for task, scale in (("a", 1.2), ("b", 0.9)):
        own = model.state_dict().items()
        experts[task] = {n: v * (scale if n.endswith("running_var") else scale**0.1) for n, v in own}
    twin, _ = merge(model, experts, "average", rank={"density": 1.0})
    given, before, mixtures = batch(2), variances(twin), tiny.mixtures(2)[:, :2].softmax(-1)
    with torch.no_grad():
        wanted = twin.eval()(**given, router_weights=mixtures).pooler_output
        found = twin.train()(**given, router_weights=mixtures).pooler_output
    torch.testing.assert_close(found, wanted)
    assert all(torch.equal(v, before[n]) for n, v in variances(twin).items())
