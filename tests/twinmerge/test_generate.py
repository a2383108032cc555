"""Generation holds the mixture of the prompt, and equals generation by the dense merge of each prompt."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.twinmerge import tiny
from twinmerge import Router, attach, densify

# transformers' own sampling of beams warns when a setting of another mode is left over
pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")

BUILDS = {
    "gpt2": tiny.gpt2,
    "llama": tiny.llama,
    "llama_tied": tiny.llama_tied,
    "mixtral": tiny.mixtral,
    "bart": tiny.bart,
}


def twin_of(name: str, **router: Any) -> Any:
    model = BUILDS[name]()
    skip = ("embed_positions",) if name == "bart" else ()
    experts = tiny.differences(model, skip=skip, size=0.6)
    return attach(model, tiny.TASKS, experts, tiny.router(32, **router)).eval()


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """New tokens alone, to one length."""
    out = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
    return out if model.config.is_encoder_decoder else out[:, inputs["input_ids"].shape[1] :]


def dense_generated(twin: Any, inputs: dict[str, Tensor], weights: Tensor, **options: Any) -> Tensor:
    rows = []
    for i, row in enumerate(weights.tolist()):
        model = densify(twin, dict(zip(twin.tasks, row, strict=True)))
        rows.append(generated(model, {k: v[i : i + 1] for k, v in inputs.items()}, **options))
    return torch.cat(rows)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}],
    ids=["greedy", "beams", "sequences", "uncached"],
)
def test_equals_generation_by_the_dense_merge(name: str, options: dict[str, Any]) -> None:
    twin = twin_of(name)
    inputs = tiny.text(4, padding="right" if name == "bart" else "left")
    weights = twin.route(**inputs).detach()
    assert (weights.max(0).values - weights.min(0).values).max() > 0.05  # mixtures differ between the prompts
    got = generated(twin, inputs, **options)
    assert torch.equal(got, dense_generated(twin, inputs, weights, **options))
    assert not torch.equal(got, generated(densify(twin, {}), inputs, **options))  # the experts do something
    given = tiny.mixtures(4)
    got = generated(twin, inputs, router_weights=given, **options)
    assert torch.equal(got, dense_generated(twin, inputs, given, **options))
    assert twin.mixture.weights is None


def test_the_router_runs_once_for_a_whole_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, calls = twin_of("llama"), []
    kept = Router.weights
    monkeypatch.setattr(Router, "weights", lambda self, features: calls.append(features.shape) or kept(self, features))
    generated(twin, tiny.text(4, padding="left"), num_beams=2)
    assert calls == [(4, 32)]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_is_inferred_as_generate_infers_it(name: str) -> None:
    twin, inputs = twin_of(name), tiny.text(4, padding="left")
    without = {"input_ids": inputs["input_ids"]}
    assert torch.equal(generated(twin, without), generated(twin, inputs))


def test_sampling_with_several_sequences_a_prompt() -> None:
    twin, inputs = twin_of("gpt2"), tiny.text(3, padding="left")
    weights = twin.route(**inputs).detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 5, "min_new_tokens": 5}
        out = twin.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    first = out.logits[0].reshape(3, 4, -1)
    for i, row in enumerate(weights.tolist()):
        model = densify(twin, dict(zip(twin.tasks, row, strict=True)))
        one = {k: v[i : i + 1] for k, v in inputs.items()}
        positions = (one["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        wanted = model(**one, position_ids=positions).logits[:, -1]
        torch.testing.assert_close(first[i], wanted.expand(4, -1), rtol=1e-4, atol=1e-4)


def test_a_sequence_continued_by_hand_keeps_its_mixture() -> None:
    twin, inputs = twin_of("llama"), tiny.text(2, padding="none")
    ids = inputs["input_ids"]
    with torch.no_grad():
        weights = twin.route(ids)
        whole = twin(ids, router_weights=weights).logits
        first = twin(ids[:, :4], router_weights=weights, use_cache=True)
        rest = twin(ids[:, 4:], past_key_values=first.past_key_values, router_weights=weights).logits
        torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="keeps the mixture of its prompt"):
            twin(ids[:, 4:], past_key_values=first.past_key_values)
        with twin.mixture.use(weights):
            torch.testing.assert_close(twin(ids).logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "knn"])
def test_padding_and_company_do_not_move_the_router(name: str, kind: str) -> None:
    model = {"bert": tiny.bert, **BUILDS}[name]()
    options = {"bank": 8} if kind == "knn" else {}
    twin = attach(model, tiny.TASKS, tiny.differences(model), tiny.router(32, kind=kind, **options)).eval()
    if kind == "knn":
        twin.router.bank.copy_(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
        twin.router.bank_task.copy_(torch.arange(8) % 3)
    sides = ("right", "left") if name in ("gpt2", "llama") else ("right",)  # encoders count positions from the left
    for side in sides:
        inputs = tiny.text(4, padding=side)
        with torch.no_grad():
            together = twin.route(**inputs)
            assert torch.allclose(together.sum(-1), torch.ones(4))
            for i in range(4):
                mask = inputs["attention_mask"][i].bool()
                alone = twin.route(inputs["input_ids"][i : i + 1, mask])
                torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
                more = {k: torch.nn.functional.pad(v, (0, 5) if side == "right" else (5, 0)) for k, v in inputs.items()}
            torch.testing.assert_close(twin.route(**more), together, rtol=1e-4, atol=1e-5)


def test_the_forward_routes_by_the_prompt_alone() -> None:
    twin, inputs = twin_of("gpt2"), tiny.text(4)
    with torch.no_grad():
        weights = twin.route(**inputs)
        named = twin(**inputs).logits
        placed = twin(inputs["input_ids"], None, inputs["attention_mask"]).logits  # past_key_values is second here
        wanted = twin(**inputs, router_weights=weights).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(named[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(placed[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="routing reads input_ids"):
        twin(inputs_embeds=torch.ones(4, 7, 32))
