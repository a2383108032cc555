"""Where a model takes its batch apart in a way of its own: exact or refused, never silently another model."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import twinmerge
from benchmarks.families import build, families, outcome
from tests.twinmerge import tiny
from twinmerge import attach, check_routing, merge
from twinmerge.mixture import Mixture, batch_dimension
from twinmerge.routable import preflight, small_config

# Sequence first, re-batched windows, weights read past their module, relative positions, convolutions, batch norms.
HARD = ("longformer", "deberta", "deberta-v2", "mpnet", "t5", "xlnet", "funnel", "swin", "resnet", "albert", "roformer")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", HARD)
def test_families_that_take_their_batch_apart(family: str) -> None:
    row = outcome(family, build(family))
    assert row["outcome"] == "exact", row


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_every_family_is_exact_or_refused(family: str) -> None:
    try:
        model = build(family)
    except ValueError as error:
        pytest.skip(str(error))
    row = outcome(family, model)
    assert row["outcome"] in ("exact", "refused"), row
    assert (row["outcome"] == "refused") == bool(row["reason"])


def test_where_the_inputs_lie() -> None:
    parts = [torch.randn(3, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert batch_dimension(torch.cat(parts), parts) == 0
    assert batch_dimension(torch.cat(parts, 1), parts) == 1
    assert batch_dimension(parts[0], [parts[0], parts[0]]) is None
    interleaved = torch.stack(parts, 1).flatten(0, 1)
    for odd in (interleaved, parts[0], torch.cat([*parts, *parts])):
        with pytest.raises(ValueError, match=r"it depends on all inputs|do not lie one after another"):
            batch_dimension(odd, parts)


class Wrong(tiny.Stem):
    """Rows dealt out to the tokens: the linear layer sees (tokens * batch, width), tokens first."""

    def __init__(self, config: tiny.StemConfig) -> None:
        tiny.transformers.PreTrainedModel.__init__(self, config)
        self.mix = nn.Linear(4, 4)
        self.post_init()

    def forward(self, pixel_values: Tensor, mixed: bool = False, **_: object) -> tuple[Tensor]:
        x = pixel_values.flatten(2)[:, :, :4]
        rows, tokens, width = x.shape
        return (self.mix(x.transpose(0, 1).reshape(-1, width)).reshape(tokens, rows, width).transpose(0, 1),)


def test_rows_dealt_out_to_tokens_are_refused() -> None:
    model = tiny.make(Wrong, tiny.StemConfig())
    with pytest.raises(ValueError, match=r"'mix.bias' of Wrong cannot differ per input.*freeze it in the experts"):
        attach(model, tiny.TASKS, tiny.differences(model))


class Unknown(Wrong):
    """The same behind a name of the input that says nothing about its shape."""

    main_input_name = "things"

    def forward(self, things: Tensor, **_: object) -> tuple[Tensor]:
        return super().forward(things)


def test_what_no_probe_reaches_is_checked_by_its_first_batch() -> None:
    model, things = tiny.make(Unknown, tiny.StemConfig()), tiny.images()["pixel_values"]
    twin = attach(model, tiny.TASKS, tiny.differences(model))
    with pytest.raises(ValueError, match=r"'mix' cannot be routed per input.*give one row of router weights"):
        twin(things=things, router_weights=tiny.mixtures(4))
    twin(things=things, router_weights=tiny.mixtures(1))  # one row has nothing to deal out


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    return tiny.make(transformers.ResNetForImageClassification, config)


def test_statistics_of_batch_norm_are_part_of_an_expert(tmp_path: Any) -> None:
    base, inputs, experts = resnet(), {"pixel_values": torch.randn(4, 3, 32, 32)}, []
    for seed in range(2):
        expert = copy.deepcopy(base).train()
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):  # statistics move, parameters stay
            expert(torch.randn(16, 3, 32, 32, generator=generator) * (1 + 2 * seed) + seed)
        experts.append(expert.eval())
    states = {f"t{i}": m.state_dict() for i, m in enumerate(experts)}
    twin, _ = merge(copy.deepcopy(base), states, "ties", rank={"density": 1.0})
    again = twinmerge.load(twinmerge.save(twin, tmp_path / "twin"))
    with torch.no_grad():
        for model in (twin, again):
            for i, expert in enumerate(experts):
                got = model(**inputs, router_weights=torch.eye(2)[[i] * 4]).logits
                torch.testing.assert_close(got, expert(**inputs).logits, rtol=1e-4, atol=1e-4)
        assert (experts[0](**inputs).logits - experts[1](**inputs).logits).abs().max() > 1e-3
    assert check_routing(twin, **inputs) < 1e-4
    with pytest.raises(ValueError, match="give its state_dict"):
        merge(copy.deepcopy(base), {k: dict(m.named_parameters()) for k, m in zip("ab", experts, strict=True)}, rank={})


def test_the_preflight_tells_before_anything_is_trained() -> None:
    model = tiny.bert()
    before = copy.deepcopy(model.state_dict())
    assert preflight(model) < 1e-4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"of Wrong cannot differ per input.*freeze it in the experts"):
        preflight(tiny.make(Wrong, tiny.StemConfig()))
    deep = tiny.bert(layers=5).config
    assert (small_config(deep).num_hidden_layers, deep.num_hidden_layers) == (2, 5)


def test_the_mixture_belongs_to_the_context() -> None:
    import contextvars

    one, other, weights = Mixture(), Mixture(), torch.ones(1, 2)
    with one.use(weights):
        assert one.weights is weights
        assert other.weights is None
        assert contextvars.Context().run(lambda: one.weights) is None
        with one.use(None):
            assert one.weights is None
        assert one.weights is weights
    assert one.weights is None
