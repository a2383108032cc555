"""A base whose experts cannot be routed is refused before anything is trained."""

from pathlib import Path

import pytest

from recipes.errors import RecipeError
from recipes.merge.routable import check_routable
from tests.twinmerge import tiny


def test_a_base_is_tried_with_two_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.bert(layers=4).save_pretrained(tmp_path)
    assert "a two-layer BertModel differs from dense merges by" in check_routable(
        str(tmp_path), ("pooler",), RecipeError
    )
    seen = []

    def refuse(model: object, frozen: tuple[str, ...]) -> float:
        seen.append((model.config.num_hidden_layers, frozen))  # type: ignore[attr-defined]
        raise ValueError("parameter 'a' cannot differ per input; freeze it in the experts.")

    monkeypatch.setattr("twinmerge.routable.preflight", refuse)
    with pytest.raises(RecipeError, match=r"base: parameter 'a' cannot differ per input; freeze it in the experts$"):
        check_routable(str(tmp_path), ("pooler",), RecipeError)
    assert seen == [(2, ("pooler",))]
