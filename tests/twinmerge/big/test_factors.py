"""LoRA factors of differences in files: exact certificates, adapters by their factors, and twins."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.twinmerge.big.small import read, shapes, write_family
from twinmerge.big.factors import extract_lora
from twinmerge.big.merge import merge_files
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError
from twinmerge.functional import blocks


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def family(request, tmp_path_factory):
    return (*write_family(tmp_path_factory.mktemp("family"), 2, tied=request.param), request.param)


def products(folder):
    """The dense matrices of an adapter by the weight that they are added to."""
    tensors, found = load_file(folder / "adapter_model.safetensors"), {}
    for key, value in tensors.items():
        module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind == "A.weight":
            found[f"{module}.weight"] = tensors[key.replace("lora_A", "lora_B")] @ value
        elif kind == "embedding_A":
            found[f"{module}.weight"] = (tensors[key.replace("embedding_A", "embedding_B")] @ value).t()
    return found


@pytest.mark.parametrize("policy", [{"rank": 4}, {"density": 0.25}, {"energy": 0.5}, {"budget": 40_000}], ids=str)
def test_the_certificate_is_the_true_residual(family, tmp_path, policy, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 500)
    base, experts, tied = family
    told = extract_lora(base, experts["e0"], tmp_path / "lora", **policy)
    assert json.loads((tmp_path / "lora/certificate.json").read_text()) == told
    start, tuned, found = read(base), read(experts["e0"]), products(tmp_path / "lora")
    rest = whole = beside = 0.0
    for name, value in start.items():
        difference = (tuned[name] - value).double()
        square = float(difference.square().sum())
        if value.dim() < 2:
            beside += square
            continue
        left = float((difference - found.get(name, torch.zeros(1)).double()).square().sum())
        assert (left / square) ** 0.5 == pytest.approx(told["residuals"][name], rel=1e-3)
        best = torch.linalg.svdvals(difference)[told["ranks"][name] :].square().sum()
        assert left <= 1.021 * float(best) + 1e-9
        rest, whole = rest + left, whole + square
    assert told["residual"] == pytest.approx((rest / whole) ** 0.5, rel=1e-3)
    assert told["left_out"] == pytest.approx(beside / (beside + whole), rel=1e-6)
    if "energy" in policy:
        assert max(told["residuals"].values()) <= 0.5**0.5 + 1e-6
    if "budget" in policy:
        sizes = {name: sum(shapes(tied=tied)[name]) for name in told["ranks"]}
        assert sum(4 * told["ranks"][name] * size for name, size in sizes.items()) <= 40_000
    if tied:
        torch.testing.assert_close(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_adapters_are_merged_by_their_factors(family, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 500)
    base, experts, _ = family
    extract_lora(base, experts["e0"], tmp_path / "lora", rank=3)
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 6, "alpha_pattern": {}}))
    added, start, other = products(tmp_path / "lora"), read(base), read(experts["e1"])
    merge_files(base, {"a": tmp_path / "lora", "b": experts["e1"]}, tmp_path / "out", options={"scale": 0.5})
    for name, value in read(tmp_path / "out").items():
        expected = start[name] + 0.5 * (2 * added.get(name, 0.0) + other[name] - start[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_twin_is_the_merge_and_the_differences_to_it(family, tmp_path):
    base, experts, _ = family
    twin_files(base, experts, tmp_path / "twin", rank=5, options={"scale": 0.4})
    merge_files(base, experts, tmp_path / "merged", options={"scale": 0.4})
    shared = read(tmp_path / "merged")
    assert all(torch.equal(read(tmp_path / "twin")[name], value) for name, value in shared.items())
    card = json.loads((tmp_path / "twin/twin.json").read_text())
    assert card["tasks"] == ["e0", "e1"]
    for task, folder in experts.items():
        tuned, found = read(folder), products(tmp_path / "twin/experts" / task)
        for name, residual in card["residuals"][task].items():
            difference = tuned[name] - shared[name]
            rest = torch.linalg.norm(difference - found[name]) / torch.linalg.norm(difference)
            assert float(rest) == pytest.approx(residual, rel=1e-3)
    with pytest.raises(ValueError, match="give exactly one of rank"):
        twin_files(base, experts, tmp_path / "other")
    with pytest.raises(ValueError, match="is not a folder name"):
        twin_files(base, {"../e0": experts["e0"], "e1": experts["e1"]}, tmp_path / "other", rank=2)
    with pytest.raises(CheckpointError, match="at least two experts"):
        twin_files(base, {"e0": experts["e0"]}, tmp_path / "other", rank=2)


@pytest.mark.slow  # transformers and PEFT, which notes that each use of a tied weight has an adapter of its own
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*")
def test_a_twin_and_an_adapter_are_loaded_by_stock_code(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import twinmerge

    base, experts, _ = family
    tokens = torch.randint(0, 101, (2, 7), generator=torch.Generator().manual_seed(0))
    for task in experts:
        extract_lora(base, experts[task], tmp_path / "loras" / task, rank=4)
    twin_files(base, experts, tmp_path / "twin", rank=32)
    with torch.no_grad():
        for task in experts:
            adapted = PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(tmp_path / "twin"), str(tmp_path / "twin/experts" / task)
            )
            routed = twinmerge.load(tmp_path / "twin")
            weights = torch.tensor([[float(task == name) for name in experts]] * 2)
            told = adapted(tokens).logits
            torch.testing.assert_close(routed(tokens, router_weights=weights).logits, told, rtol=1e-4, atol=1e-4)
        low = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "loras/e0"))
        start = read(base)
        state = dict(low.get_base_model().named_parameters())
        assert state.keys() >= {"model.norm.weight"}
        assert torch.equal(state["model.norm.weight"], start["model.norm.weight"])
        assert low(tokens).logits.isfinite().all()


def test_refusals(family, tmp_path):
    base, experts, _ = family
    with pytest.raises(ValueError, match="exactly one of rank"):
        extract_lora(base, experts["e0"], tmp_path / "lora", rank=2, energy=0.5)
    with pytest.raises(CheckpointError, match="differs from the base in no matrix"):
        extract_lora(base, base, tmp_path / "lora", rank=2)
    assert not (tmp_path / "lora").exists()
