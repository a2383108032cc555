"""The text data modules with a small real tokenizer."""

import pytest
import torch
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recipes.data.splits import Split, TextTask
from recipes.data.text_module import MixedTextDataModule, PadCollate, TextDataModule
from recipes.errors import RunError
from recipes.running.resume import ResumableLoader

UNK = "[UNK]"
WORDS = ["[PAD]", UNK, "[CLS]", "[SEP]", *(f"w{i}" for i in range(100))]


def save_tokenizer(folder, **options):
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=UNK))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=WORDS[0],
        unk_token=UNK,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **options,
    )
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    return save_tokenizer(tmp_path / "tokenizer")


def split(size, start=0, pairs=False, regression=False):
    texts = [" ".join(f"w{(start + i + j) % 100}" for j in range(1 + i % 9)) for i in range(size)]
    labels = [i / 2 if regression else i % 3 for i in range(size)]
    return Split([(text, "w7 w8") for text in texts] if pairs else texts, labels)


def task(name="toy", size=30, start=0, validation=9, **kind):
    parts = [split(count, start + offset, **kind) for count, offset in ((size, 0), (validation, 40), (12, 70))]
    regression = kind.get("regression", False)
    return TextTask(
        name,
        () if regression else ("a", "b", "c"),
        *parts,
        metric="pearson_spearman" if regression else "accuracy",
        kind="regression" if regression else "classification",
    )


def ready(module, stage=None):
    module.prepare_data()
    module.setup(stage)
    return module


def rows_of(loader):
    """Every row of a loader as (tokens without padding, label, task)."""
    found = []
    for batch in loader:
        assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max(), "padded further than the longest"
        for i, mask in enumerate(batch["attention_mask"].bool()):
            number = int(batch["task"][i]) if "task" in batch else 0
            found.append((tuple(batch["input_ids"][i][mask].tolist()), float(batch["labels"][i]), number))
    return found


def expected(part, number=0):
    rows = []
    for text, label in zip(part.texts, part.labels, strict=True):
        first, second = text if isinstance(text, tuple) else (text, None)
        tokens = [2, *(WORDS.index(word) for word in first.split()), 3]
        if second is not None:
            tokens += [*(WORDS.index(word) for word in second.split()), 3]
        rows.append((tuple(tokens), float(label), number))
    return rows


@pytest.mark.parametrize("kind", [{}, {"pairs": True}, {"regression": True}])
def test_every_row_comes_once_with_its_label(tokenizer, kind):
    toy = task(**kind)
    data = ready(TextDataModule(toy, tokenizer, batch_size=4))
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in loaders.items():
        assert sorted(rows_of(loader)) == sorted(expected(getattr(toy, name)))


def test_batches_are_ready_for_a_model(tokenizer):
    data = ready(TextDataModule(task(pairs=True), tokenizer, batch_size=4), "fit")
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert batch["token_type_ids"].max() == 1
    data = ready(TextDataModule(task(regression=True), tokenizer), "fit")
    assert next(iter(data.train_dataloader()))["labels"].dtype == torch.float32


def test_the_training_order_is_the_seeds(tokenizer):
    def order(seed):
        data = ready(TextDataModule(task(), tokenizer, batch_size=4, seed=seed), "fit")
        assert isinstance(data.train_dataloader(), ResumableLoader)
        return rows_of(data.train_dataloader())

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_evaluation_rows_are_sorted_by_length(tokenizer):
    data = ready(TextDataModule(task(), tokenizer, eval_batch_size=5), "test")
    lengths = [len(tokens) for tokens, *_ in rows_of(data.test_dataloader())]
    assert lengths == sorted(lengths)
    assert rows_of(data.test_dataloader()) == rows_of(data.predict_dataloader())


def test_tasks_are_mixed_and_marked(tokenizer):
    tasks = [task("one"), task("two", start=30, pairs=True), task("three", size=12, start=50)]
    data = ready(MixedTextDataModule(tasks, tokenizer, batch_size=8))
    for name, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        wanted = [row for number, toy in enumerate(tasks) for row in expected(getattr(toy, name), number)]
        assert sorted(rows_of(loader)) == sorted(wanted)
        assert any(len(set(batch["task"].tolist())) > 1 for batch in loader)


def test_rows_of_equal_length_do_not_stand_task_by_task(tokenizer):
    same = Split([f"w{i}" for i in range(40)], [i % 3 for i in range(40)])
    tasks = [TextTask(name, ("a", "b", "c"), same, same, same, "accuracy", "classification") for name in "xy"]
    data = ready(MixedTextDataModule(tasks, tokenizer), "test")
    numbers = [number for *_, number in rows_of(data.test_dataloader())]
    assert numbers != sorted(numbers)


def test_one_regression_makes_all_labels_floats(tokenizer):
    data = ready(MixedTextDataModule([task(), task(regression=True)], tokenizer), "validate")
    assert {batch["labels"].dtype for batch in data.val_dataloader()} == {torch.float32}


def test_long_texts_are_cut(tokenizer):
    long = Split([" ".join(["w1"] * 50)] * 3, [0, 1, 2])
    toy = TextTask("long", ("a", "b", "c"), long, long, long, "accuracy", "classification")
    data = ready(TextDataModule(toy, tokenizer, max_length=10), "fit")
    assert next(iter(data.val_dataloader()))["input_ids"].shape == (3, 10)


def test_left_padding_is_kept(tmp_path):
    folder = save_tokenizer(tmp_path / "left", padding_side="left")
    data = ready(TextDataModule(task(), folder), "fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][:, 0].all()
    assert sorted(rows_of([batch])) == sorted(expected(task().validation))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_padding_adds_nothing_but_fill(sequences, left):
    collate = PadCollate({"input_ids": 0}, "left" if left else "right")
    batch = collate([{"input_ids": row, "labels": i} for i, row in enumerate(sequences)])
    assert batch["input_ids"].shape == (len(sequences), max(map(len, sequences)))
    assert [[token for token in row if token] for row in batch["input_ids"].tolist()] == sequences
    assert batch["labels"].tolist() == list(range(len(sequences)))


def test_setup_tokenises_what_the_stage_needs_once(tokenizer):
    data = ready(TextDataModule(task(), tokenizer), "test")
    first = data._rows["test"]
    data.setup("test")
    assert data._rows == {"test": first}
    assert data._rows["test"] is first


def test_mistakes_are_refused(tokenizer):
    with pytest.raises(RunError, match=r"max_length is 129; the tokenizer .* accepts 4 to 128"):
        ready(TextDataModule(task(), tokenizer, max_length=129))
    with pytest.raises(RunError, match="give at least 1"):
        TextDataModule(task(), tokenizer, batch_size=0)
    with pytest.raises(RunError, match="got no task"):
        MixedTextDataModule([], tokenizer)


def test_parts_hold_every_row_once_and_every_task_in_its_share(tokenizer):
    module = ready(
        MixedTextDataModule([task("a", validation=300), task("b", validation=200)], tokenizer, eval_batch_size=7)
    )
    parts = module.parts("validation", least=4)
    sizes = [[int((torch.cat([b["task"] for b in part]) == t).sum()) for t in (0, 1)] for part in parts]
    whole = [len(t.validation) for t in module.tasks]
    assert [sum(column) for column in zip(*sizes, strict=True)] == whole
    for part, share in zip(sizes, (0.25, 0.25, 0.5), strict=True):
        assert all(abs(count - share * n) <= 1 for count, n in zip(part, whole, strict=True))
    assert len(module.parts("validation", least=1000)) == 1
