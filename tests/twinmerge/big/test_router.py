"""A twin made out of core routes by itself: features read module by module are those of the loaded model."""

import json

import pytest
import torch
from safetensors.torch import load_file

import twinmerge
from tests.twinmerge import foreign
from tests.twinmerge.big.small import write_family
from twinmerge.big import features
from twinmerge.big.factors import extract_lora
from twinmerge.big.features import empty_model, features_of, streamed
from twinmerge.big.reading import Files
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError
from twinmerge.unlabelled import router_from_texts

TEXTS = {
    "e0": [f"word{i} word{i + 1} word{i + 2}" for i in range(12)],
    "e1": [f"word{40 + i % 9} word{50 - i % 7} word{45 + i % 5} word{41}" for i in range(12)],
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def family(request, tmp_path_factory):
    base, experts = write_family(tmp_path_factory.mktemp("family"), 2, tied=request.param, vocab=64, files=2)
    foreign.tokenizer().save_pretrained(base)
    return base, experts


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_the_folder_routes_as_a_router_made_in_memory(kind, family, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_ROWS", 5)  # several forwards, with padding
    base, experts = family
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS["e1"]) + "\n\n")
    given = {"e0": TEXTS["e0"], "e1": tmp_path / "texts.txt"}
    twin_files(base, experts, tmp_path / "twin", rank=3, options={"scale": 0.4}, router=kind, texts=given)
    twin = twinmerge.load(tmp_path / "twin")
    words = foreign.tokenizer()
    inputs = words([*TEXTS["e0"], *TEXTS["e1"]], return_tensors="pt", padding=True)
    expected = twin.features(inputs["input_ids"], inputs["attention_mask"])
    found = features_of(tmp_path / "twin", [*TEXTS["e0"], *TEXTS["e1"]], words)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = router_from_texts(twin, kind, words, TEXTS, 0)
    torch.testing.assert_close(twin.router.weights(expected), again.weights(expected), rtol=1e-3, atol=1e-3)
    named = twin.route(inputs["input_ids"], inputs["attention_mask"]).argmax(-1)
    assert kind != "knn" or (named == torch.tensor([0] * 12 + [1] * 12)).float().mean() > 0.8
    card = json.loads((tmp_path / "twin/twin.json").read_text())
    assert card["router"]["kind"] == kind
    assert load_file(tmp_path / "twin/router/router.safetensors").keys() == twin.router.state_dict().keys()
    assert twin(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.isfinite().all()


def test_one_module_has_weights_at_a_time(family, tmp_path):
    base, _ = family
    model = empty_model(base)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    held = []

    def look(module, *_):
        held.append([n for n, p in model.named_parameters() if p.device.type != "meta"])

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    with Files() as files, streamed(model, base, files, "cpu"), torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    assert max(map(len, held)) == 1
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_routers_without_what_they_need_are_refused(family, tmp_path):
    base, experts = family
    with pytest.raises(ValueError, match="router is 'knn' and texts are missing"):
        twin_files(base, experts, tmp_path / "twin", rank=2, router="knn")
    with pytest.raises(ValueError, match="'e1' has none or is no task"):
        twin_files(base, experts, tmp_path / "twin", rank=2, router="knn", texts={"e0": ["a", "b"]})
    with pytest.raises(ValueError, match="'e1' has 1 texts"):
        twin_files(base, experts, tmp_path / "twin", rank=2, router="knn", texts={"e0": ["a", "b"], "e1": ["c"]})
    with pytest.raises(CheckpointError, match="cannot be read"):
        twin_files(base, experts, tmp_path / "twin", rank=2, router="knn", texts={"e0": tmp_path / "x", "e1": ["c"]})
    assert not (tmp_path / "twin").exists()


def test_what_no_twin_is_made_of_is_refused_before_anything_is_merged(tmp_path, monkeypatch):
    base, experts = write_family(tmp_path, 2)
    monkeypatch.setattr("twinmerge.big.twin.write_merged", None)
    texts = {name: ["one", "two"] for name in experts}
    with pytest.raises(CheckpointError, match="no tokenizer, which a router made from texts needs"):
        twin_files(base, experts, tmp_path / "twin", rank=2, router="knn", texts=texts)
    with pytest.raises(ValueError, match="the rank is 33, but the largest matrix takes a rank from 1 to 32"):
        twin_files(base, experts, tmp_path / "twin", rank=33)
    with pytest.raises(ValueError, match="the rank is 33"):
        extract_lora(base, experts["e0"], tmp_path / "lora", rank=33)
