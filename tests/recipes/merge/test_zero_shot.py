"""Zero-shot heads say where a data set names no classes."""

from types import SimpleNamespace

import pytest

from recipes.merge.zero_shot import unnamed


@pytest.mark.parametrize(("labels", "told"), [(["0", "1", "2"], True), (["cat", "7"], False), (["cat", "dog"], False)])
def test_numbers_in_the_place_of_names_are_told(labels, told):
    sentence = unnamed(SimpleNamespace(name="birds", labels=labels))
    assert bool(sentence) == told
    assert sentence == "" or sentence.startswith("task birds: its classes are called 0, 1, 2 and so on")
