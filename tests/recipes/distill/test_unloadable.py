"""What is said of students whose options their model does not take."""

from typing import cast

import pytest
import transformers

import twinmerge
from distill.errors import DistillError
from recipes.distill.many_heads import ManyHeads, student
from recipes.distill.schema import Network
from tests.recipes import tiny


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"hidden_sise": 3},
            r"with options hidden_sise 3: .*unexpected keyword argument 'hidden_sise'; give options that",
        ),
        ({"hidden_size": 64}, r"with options hidden_size 64: .*; give options that its class takes and that keep"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_options_that_a_model_does_not_take_are_blamed(tmp_path, options, said, named):
    base = tiny.save_base(tmp_path / "base")
    twin = twinmerge.attach(transformers.BertModel.from_pretrained(base), ["a", "b"], [{}, {}])
    twinmerge.save(twin, tmp_path / "twin", tokenizer=base)
    config = Network(str(base) if named else "", options)
    with pytest.raises(DistillError, match=said) as error:
        student(config, cast("ManyHeads", None), tmp_path / "twin")
    assert "copy it again" not in str(error.value)
