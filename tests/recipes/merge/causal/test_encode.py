"""Rows as tokens: what is learned, where prompts end, chats by the template, and packing that changes nothing."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from recipes.data.language_rows import Item, LanguageTask
from recipes.data.language_task import Generation
from recipes.errors import RunError
from recipes.merge.causal.data import LanguageData, check_packing
from recipes.merge.causal.encode import IGNORED, Encoder
from tests.recipes.merge.causal import tiny_lm
from twinmerge import LanguageModule

TALK = (("user", "the cook is"), ("assistant", "glad"), ("user", "my brother is"), ("assistant", "sad today"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_lm.save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def task(items, form="pairs"):
    return LanguageTask("t", form, "perplexity", Generation(), items, items, items)


def rows(tokenizer, items, form="pairs", length=64):
    return Encoder(tokenizer, length).rows(task(items, form), "train")


def words(tokenizer, tokens):
    return " ".join(tokenizer.convert_ids_to_tokens([t for t in tokens if t != IGNORED]))


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    (row,) = rows(tokenizer, [Item("the cook is", " glad")])
    assert words(tokenizer, row.tokens) == "the cook is glad <end>"
    assert words(tokenizer, row.labels) == "glad <end>"
    assert row.prompt == 3
    assert row.reference == "glad"


def test_a_long_prompt_loses_its_start_and_a_long_completion_its_end(tokenizer):
    encoder = Encoder(tokenizer, 4)
    long = encoder.rows(task([Item("the cook is", " glad"), Item("is", " the cook is glad")]), "train")
    assert [words(tokenizer, row.tokens) for row in long] == ["cook is glad <end>", "is the cook is"]
    assert encoder.cut == 2


def test_every_answer_of_a_chat_is_learned_and_the_last_is_scored(tokenizer):
    (row,) = rows(tokenizer, [Item("", "", TALK)], "chat")
    assert words(tokenizer, row.labels) == "glad <end> sad today <end>"
    whole = "<user> the cook is <assistant> glad <end> <user> my brother is <assistant> sad today <end>"
    assert words(tokenizer, row.tokens) == whole
    assert words(tokenizer, row.tokens[row.prompt :]) == "sad today <end>"
    assert row.reference == "sad today"


def test_a_template_that_changes_what_was_said_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }} " + tokenizer.chat_template
    with pytest.raises(RunError, match="changes what was said before a later message"):
        rows(tokenizer, [Item("", "", TALK)], "chat")
    tokenizer.chat_template = None
    with pytest.raises(RunError, match="has no chat template"):
        rows(tokenizer, [Item("", "", TALK)], "chat")


def test_plain_text_is_learned_in_blocks_and_nothing_is_lost(tokenizer):
    text = "the cook is glad today"
    blocks = rows(tokenizer, [Item("", text)], "text", 4)
    assert words(tokenizer, [t for row in blocks for t in row.tokens]) == f"{text} <end>"
    assert [row.prompt for row in blocks] == [2, 1]


def data_of(base, packing):
    items = [Item("the cook is", " glad"), Item("my brother is", " sad today"), Item("is", " the old captain happy")]
    data = LanguageData(task(items * 3), base, batch_size=2, max_length=16, packing=packing)
    data.setup()
    return list(data.train_dataloader())


def test_packed_rows_have_the_loss_and_the_gradient_that_they_have_alone(base):
    module = LanguageModule(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    found = []
    for packing in (False, True):
        batches = data_of(base, packing)
        module.zero_grad()
        counts = [int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches]
        total = sum(module.loss(b)[0] * n for b, n in zip(batches, counts, strict=True))
        total.backward()
        found.append((sum(counts), float(total.detach()), module.model.model.layers[0].mlp.up_proj.weight.grad.clone()))
        if packing:
            assert len(batches) < len(data_of(base, False))
    assert found[0][0] == found[1][0]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_models_own(base):
    module = LanguageModule(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    batch = data_of(base, False)[0]
    assert float(module.loss(batch)[0].detach()) == pytest.approx(float(module.model(**batch).loss.detach()), rel=1e-5)


def test_a_model_whose_packed_rows_see_each_other_is_refused(base):
    check_packing(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    mixes = BertLMHeadModel(BertConfig(vocab_size=50, is_decoder=True, initializer_range=0.5, **sizes))
    with pytest.raises(RunError, match="lets packed rows see each other"):
        check_packing(mixes)
