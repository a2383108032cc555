"""Generation holds the mixture of the prompt, and equals generation by the dense merge of each prompt."""

import copy
import threading
from typing import Any

import pytest
import torch
import transformers
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


def _two_turns() -> tuple[Any, Tensor, Any, Tensor]:
    """A twin, a prompt, what its first turn left behind, and a second prompt that the router sees otherwise."""
    twin = twin_of("llama", temperature=0.3)
    first = tiny.text(1, padding="none")["input_ids"]
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    turn = twin.generate(first, attention_mask=torch.ones_like(first), **options)
    more = torch.randint(3, 60, (1, 12), generator=torch.Generator().manual_seed(1))
    full = torch.cat([turn.sequences, more], 1)
    assert (twin.route(first) - twin.route(full)).abs().max() > 0.02
    return twin, first, turn.past_key_values, full


def test_a_second_turn_holds_the_first_mixture_or_starts_anew() -> None:
    twin, first, kept, full = _two_turns()
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(full),
        "max_new_tokens": 1,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    held = twin.generate(full, router_weights=twin.route(first), **options).logits[0]
    fresh = twin.generate(full, **options).logits[0]
    assert (held - fresh).abs().max() > 1e-3
    got = twin.generate(full, past_key_values=copy.deepcopy(kept), **options).logits[0]
    torch.testing.assert_close(got, held, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="filled under another mixture"):
        twin.generate(full, past_key_values=copy.deepcopy(kept), router_weights=twin.route(full), **options)
    with pytest.raises(ValueError, match="filled under another mixture"):
        twin(full[:, -1:], past_key_values=copy.deepcopy(kept), router_weights=twin.route(full))
    foreign = densify(twin, {})(first, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="does not say its mixture"):
        twin.generate(full, past_key_values=foreign, **options)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_threads_on_one_twin_give_what_one_gives(name: str) -> None:
    twin = twin_of(name, temperature=0.05)
    prompts = [tiny.text(1, 6 + i, padding="none", seed=i)["input_ids"] for i in range(4)]

    def answer(ids: Tensor) -> Tensor:
        return twin.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False
        )

    wanted = [answer(ids) for ids in prompts]
    got: list[Any] = [None] * len(prompts)

    def work(index: int) -> None:
        try:
            got[index] = answer(prompts[index])
        except Exception as error:
            got[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), got


def test_continuous_batching_is_refused() -> None:
    twin = twin_of("llama")
    for call in (twin.generate_batch, twin.init_continuous_batching, twin.continuous_batching_context_manager):
        with pytest.raises(ValueError, match="cannot generate by continuous batching"):
            call(inputs=[[3, 4, 5]])


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=tiny.llama().config,
        image_token_index=63,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    return tiny.make(transformers.LlavaForConditionalGeneration, config)


def test_a_model_with_images_routes_on_its_images() -> None:
    model = llava()
    twin = attach(model, tiny.TASKS, tiny.differences(model), tiny.router(32, temperature=0.05)).eval()
    ids = torch.tensor([[1, 63, 63, 63, 63, 5, 6]] * 3)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tiny.images(3)}
    inputs["pixel_values"] = inputs["pixel_values"] * torch.tensor([1.0, 3.0, 9.0])[:, None, None, None]
    weights = twin.route(**inputs).detach()
    assert (weights[0] - weights[1]).abs().max() > 1e-3  # the texts are equal, the images are not
    with torch.no_grad():
        got, wanted = twin(**inputs).logits, twin(**inputs, router_weights=weights).logits
        torch.testing.assert_close(got, wanted)
        for i, row in enumerate(weights.tolist()):
            one = {k: v[i : i + 1] for k, v in inputs.items()}
            dense = densify(twin, dict(zip(twin.tasks, row, strict=True)))
            torch.testing.assert_close(got[i : i + 1], dense(**one).logits, rtol=1e-4, atol=1e-4)
            out = twin.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[i]
            assert torch.equal(out, dense.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0])
    with pytest.raises(ValueError, match="cannot be told apart"):
        twin(**inputs | {"pixel_values": torch.cat([inputs["pixel_values"]] * 2)}, router_weights=tiny.mixtures(3))


def test_as_many_images_as_texts_are_not_taken_for_one_each() -> None:
    model = llava()
    twin = attach(model, tiny.TASKS, tiny.differences(model)).eval()
    none, two = [1, 5, 6, 7, 8, 9, 5, 6, 7, 8], [1, 63, 63, 63, 63, 5, 63, 63, 63, 63]
    images, ids = tiny.images(2), torch.tensor([none, two])  # the second text's images are in both places
    for given in (ids, ids.flip(0)):
        with pytest.raises(ValueError, match=r"has no image and another has several.* give every input one image"):
            twin(input_ids=given, **images, router_weights=tiny.mixtures(2))
        with pytest.raises(ValueError, match="has no image and another has several"):
            twin.generate(input_ids=given, **images, router_weights=tiny.mixtures(2), max_new_tokens=1)
    with torch.no_grad():
        got = twin(input_ids=ids, **images, router_weights=tiny.mixtures(1)).logits
        wanted = densify(twin, dict(zip(twin.tasks, tiny.mixtures(1)[0].tolist(), strict=True)))
        torch.testing.assert_close(got, wanted(input_ids=ids, **images).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([[float("nan"), 1, 0]]), "router_weights hold NaN or infinite values"),
        (torch.tensor([[float("inf"), 1, 0]]), "router_weights hold NaN or infinite values"),
        ([[1.0, 0, 0]], "router_weights are list, and this twin takes a tensor"),
        (torch.ones(3), "router_weights have shape"),
    ],
)
def test_weights_that_are_no_mixture_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generated(twin_of("llama"), tiny.text(1), router_weights=weights)
