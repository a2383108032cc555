"""A mixture's adapter is exact, its name has one spelling, and its cache is bounded."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import twinmerge
from tests.twinmerge import tiny
from twinmerge.errors import CheckpointError
from twinmerge.serving.mixtures import PARTS, Mixer, MixtureCache, in_parts, name_of, parts_of
from twinmerge.serving.vllm_server import in_memory


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3))
def test_rounding_sums_to_the_whole_and_is_nearest(weights: list[float]) -> None:
    parts = in_parts(weights)
    assert sum(parts) == PARTS
    exact = [w * PARTS / sum(weights) for w in weights]
    assert all(math.floor(e - 1e-9) <= p <= math.ceil(e + 1e-9) for p, e in zip(parts, exact, strict=True))
    assert parts_of(name_of(parts), len(parts)) == parts


@pytest.mark.parametrize(
    "name",
    ["twin@064,0,0", "twin@64,0", "twin@64,0,0,0", "twin@63,0,0", "twin@65,-1,0", "twin@64,0,0 ", "../twin@64,0,0"],
)
def test_no_other_spelling_is_a_mixture(name: str, folder: Path, tmp_path: Path) -> None:
    assert parts_of(name, 3) is None
    assert MixtureCache(folder, tmp_path).path(name) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [(32, 20, 12), (64, 0, 0), (0, 1, 63)])
def test_the_adapter_of_a_mixture_is_the_routed_model(parts: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    place = MixtureCache(folder, tmp_path).path(name_of(parts))
    twin = twinmerge.load(folder, dtype=torch.float32)
    mixed = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), place).eval()
    ids = tiny.text(3, padding="none")["input_ids"]
    with torch.no_grad():
        wanted = twin(ids, router_weights=torch.tensor([parts]) / PARTS).logits
        torch.testing.assert_close(mixed(ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert (wanted - twin(ids, router_weights=torch.zeros(1, 3)).logits).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.*tied layer.*", "ignore:fan_in_fan_out.*")
def test_embeddings_are_part_of_a_mixture(tmp_path: Path) -> None:
    model = tiny.gpt2()
    experts = [{k: v for k, v in e.items() if isinstance(v, tuple) and "wpe" not in k} for e in tiny.differences(model)]
    folder = twinmerge.save(twinmerge.attach(model, tiny.TASKS, experts).eval(), tmp_path / "twin")
    place = MixtureCache(folder, tmp_path / "cache").path("twin@32,20,12")
    twin = twinmerge.load(folder)
    mixed = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), place).eval()
    ids = tiny.text(3, padding="none")["input_ids"]
    with torch.no_grad():
        wanted = twin(ids, router_weights=torch.tensor([[32, 20, 12]]) / PARTS).logits
        torch.testing.assert_close(mixed(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_the_cache_is_bounded_and_whole(folder: Path, tmp_path: Path) -> None:
    cache = MixtureCache(folder, tmp_path / "cache", limit=2)
    names = ["twin@64,0,0", "twin@0,64,0", "twin@0,0,64"]
    first = cache.path(names[0])
    assert first is not None
    assert cache.path(names[0]) == first
    cache.path(names[1])
    with pytest.raises(CheckpointError, match="holds 2 mixtures, its limit; unload"):
        cache.path(names[2])
    assert cache.path(names[1]) is not None  # what is there is still served
    MixtureCache.forget(cache.folder, names[0])
    assert cache.path(names[2]) is not None
    assert sorted(entry.name for entry in cache.folder.iterdir()) == sorted(names[1:])


def test_what_vllm_cannot_serve_is_refused(folder: Path, tmp_path: Path) -> None:
    model = tiny.llama()
    twin = twinmerge.attach(model, tiny.TASKS, tiny.differences(model)).eval()  # norms too
    with pytest.raises(CheckpointError, match=r"expert 'spam' of .* beside its matrices"):
        Mixer(twinmerge.save(twin, tmp_path / "norms"))
    with pytest.raises(CheckpointError, match="is not a twin folder"):
        Mixer(tmp_path)
    shutil.copytree(folder, tmp_path / "wide")
    mixer = Mixer(folder)
    assert (mixer.rank, mixer.server_rank) == (6, 8)
    mixer.stacks = {name: tuple(f.repeat(100, 1) for f in factors) for name, factors in mixer.stacks.items()}
    with pytest.raises(CheckpointError, match="has rank 600 and vLLM serves up to 512"):
        _ = mixer.server_rank


def test_a_plug_in_without_its_settings_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinmerge.serving import resolver

    monkeypatch.delenv(resolver.FOLDER, raising=False)
    resolver.register()  # vLLM is not even imported
    monkeypatch.setenv(resolver.FOLDER, "/twin")
    monkeypatch.delenv(resolver.CACHE, raising=False)
    with pytest.raises(ValueError, match="GAPBRIDGE_MIXTURES is not"):
        resolver.register()


def test_the_configuration_says_every_rank(folder: Path, tmp_path: Path) -> None:
    place: Any = MixtureCache(folder, tmp_path).path("twin@32,32,0")
    config = json.loads((place / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (6, 6, {})


def test_all_mixtures_have_the_same_second_factor(folder: Path) -> None:
    mixer = Mixer(folder)
    found = [mixer.adapter(parts) for parts in ((64, 0, 0), (0, 1, 63), (20, 22, 22))]
    assert all(set(other) == set(found[0]) for other in found)
    names = [name for name in found[0] if name.endswith(("lora_B.weight", "lora_embedding_A"))]
    assert names
    assert all(torch.equal(other[name], found[0][name]) for other in found for name in names)


def test_every_mixture_that_is_written_is_the_one_of_its_name(folder: Path, tmp_path: Path) -> None:
    mixer, cache = Mixer(folder), MixtureCache(folder, tmp_path)
    for parts in ((64, 0, 0), (0, 1, 63), (20, 22, 22), (64, 0, 0)):
        place: Any = cache.path(name_of(parts))
        found, wanted = load_file(place / "adapter_model.safetensors"), mixer.adapter(parts)
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        MixtureCache.forget(cache.folder, name_of(parts))


def test_mixtures_lie_in_memory_where_there_is_room(folder: Path, tmp_path: Path) -> None:
    mixer, cache = Mixer(folder), MixtureCache(folder, tmp_path)
    place: Any = cache.path("twin@32,32,0")
    written = (place / "adapter_model.safetensors").stat().st_size
    assert mixer.nbytes <= written < 1.5 * mixer.nbytes
    assert in_memory(written, tmp_path) == tmp_path
    assert in_memory(shutil.disk_usage(tmp_path).free // 3, tmp_path) is None
    assert in_memory(1, tmp_path / "none") is None
