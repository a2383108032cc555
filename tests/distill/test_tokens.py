"""Blocks of tokens: the batch of an update is what was asked for, however it is dealt out."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill import DistillError, TokenData


@pytest.fixture
def data(tmp_path):
    fast = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary, no secret
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]").save_pretrained(tmp_path / "tokenizer")  # noqa: S106 - a token of the vocabulary, no secret
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("a b " * 40)
    made = TokenData(sorted(tmp_path.glob("*.txt")), str(tmp_path / "tokenizer"), length=8, batch_size=8)
    made.setup()
    return made


@pytest.mark.parametrize(("processes", "accumulated"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_an_update_holds_the_batch_that_was_asked_for(data, monkeypatch, processes, accumulated):
    monkeypatch.setattr("distill.gathering.world", lambda: (processes, 0))
    data.trainer = SimpleNamespace(accumulate_grad_batches=accumulated)
    batch = next(iter(data.train_dataloader()))
    assert len(batch["input_ids"]) * processes * accumulated == 8


def test_a_batch_that_does_not_divide_is_refused(data, monkeypatch):
    data.trainer = SimpleNamespace(accumulate_grad_batches=3)
    with pytest.raises(DistillError, match="a batch of 8 does not divide into 3 parts"):
        data.train_dataloader()
    data.trainer, data.global_batch = None, 64
    with pytest.raises(DistillError, match="20 training blocks a process do not fill one batch of 64"):
        data.train_dataloader()
