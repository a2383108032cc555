"""Students that do not touch each other, updates that weigh rows alike, and teachers that are doubted."""

import copy

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from distill import DistillError, DistillModule
from distill.gathering import Window
from distill.labels import class_order
from distill.optimizers import SeparateOptimizers, own_stream
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer

KD = {"hard": {"weight": 0.3}, "kd": {"weight": 0.7, "temperature": 2.0}}
HARD = {"hard": {}}
STRONG = {"hard": {}, "kd": {"weight": 90.0, "temperature": 4.0}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]
knows_nothing = pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*")


class Dropping(nn.Module):
    """A network that draws."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop = linear(1), nn.Dropout(0.3)

    def forward(self, images):
        return self.inner.head(self.drop(self.inner.forward_features(images)))


def ends(made):
    return {name: [p.detach().clone() for p in s.parameters()] for name, s in made.students.items()}


@knows_nothing
@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "momentum"])
def test_a_student_ends_where_it_would_have_ended_alone(tmp_path, optimizer):
    changes = CHANGES | {"optimizer": optimizer, "learning_rate": 0.01}
    terms = {"a": KD, "b": STRONG, "c": {"hard": {}}}

    def fit(names, rate=0.01, factors=None):
        lightning.seed_everything(5, verbose=False)
        students = {name: Dropping() for name in names}
        own, given = {n: terms[n] for n in names}, changes | {"learning_rate": rate}
        made = DistillModule(students, linear(2, 20), own, changes=given, rate_factors=factors, classes=CLASSES)
        trainer(tmp_path).fit(made, datamodule=Data())
        return ends(made)

    together = fit("abc", factors={"b": 3.0})
    for name in terms:
        for alone, beside in zip(fit(name, 0.03 if name == "b" else 0.01)[name], together[name], strict=True):
            assert torch.equal(alone, beside)


@knows_nothing
def test_of_several_students_the_one_that_diverges_is_named(tmp_path):
    students = {"calm": linear(1), "wild": linear(1)}
    nn.init.constant_(students["wild"].head.bias, torch.nan)
    made = DistillModule(students, None, {"calm": HARD, "wild": HARD}, changes=CHANGES, classes=CLASSES)
    with pytest.raises(DistillError, match=r"^student wild: .*(NaN|nan)"):
        trainer(tmp_path).fit(made, datamodule=Data())


def test_a_factor_of_no_student_is_refused():
    with pytest.raises(DistillError, match=r"rate_factors names 'd', but the students are a; name these"):
        DistillModule({"a": linear(1)}, None, {"a": {"hard": {}}}, rate_factors={"d": 2.0}, classes=CLASSES)
    with pytest.raises(DistillError, match=r"rate_factors.*a"):
        DistillModule({"a": linear(1)}, None, {"a": {"hard": {}}}, rate_factors={"a": 0.0}, classes=CLASSES)


def test_a_stream_is_named_and_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = []
    for place in ((1, 0), (1, 0), (1, 1)):
        with own_stream(torch.device("cpu"), *place):
            drawn.append(torch.rand(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_separate_optimizers_are_saved_as_one():
    models = [linear(seed) for seed in (1, 2)]
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def optimizer():
        return SeparateOptimizers([torch.optim.AdamW(m.parameters(), 0.1) for m in models])

    def step(made):
        made.zero_grad()
        made.step(lambda: sum(m(images).square().mean().backward() or 0 for m in models))

    first = optimizer()
    step(first)
    saved, weights = copy.deepcopy(first.state_dict()), [[p.detach().clone() for p in m.parameters()] for m in models]
    step(first)
    wanted = [p.detach().clone() for m in models for p in m.parameters()]
    for model, kept in zip(models, weights, strict=True):
        for p, value in zip(model.parameters(), kept, strict=True):
            p.data.copy_(value)
    second = optimizer()
    second.load_state_dict(saved)
    for group in second.param_groups:  # a schedule reaches the parts
        assert any(group is own for part in second.parts for own in part.param_groups)
    step(second)
    assert all(torch.equal(p, w) for p, w in zip((p for m in models for p in m.parameters()), wanted, strict=True))


def language_parts():
    sizes = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    made = []
    for width in (8, 16):
        torch.manual_seed(width)
        made.append(LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=2 * width, **sizes)))
    ids = torch.randint(1, 40, (8, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(12) >= torch.tensor([2, 3, 2, 4, 10, 11, 12, 12])[:, None], -100)
    return made, ids, labels


@pytest.mark.parametrize("chunk", [0, 256])
@pytest.mark.parametrize("parts", [[4, 4], [2, 6], [3, 3, 2]])
def test_accumulated_texts_weigh_by_token(tmp_path, chunk, parts):
    def update(sizes, together):
        (student, teacher), ids, labels = language_parts()
        changes = CHANGES | {"epochs": 1, "learning_rate": 1.0, "weight_decay": 0.0, "momentum": 0.0}
        made = DistillModule(student, teacher, KD, changes=changes, task="language", chunk=chunk, log_gradients_every=0)
        before = [p.detach().clone() for p in made.students.parameters()]
        batches = [{"input_ids": i, "labels": y} for i, y in zip(ids.split(sizes), labels.split(sizes), strict=True)]
        fit = trainer(tmp_path, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=together)
        fit.fit(made, DataLoader(batches, batch_size=None))
        assert fit.global_step == 1
        return torch.cat([(p - b).flatten() for p, b in zip(made.students.parameters(), before, strict=True)])

    torch.testing.assert_close(update(parts, len(parts)), update([8], 1), rtol=1e-4, atol=1e-7)


@knows_nothing
def test_a_last_window_that_is_short_is_a_whole_mean(tmp_path):
    def update(parts, together):
        made = DistillModule(linear(1), linear(2, 20), KD, changes=CHANGES | {"epochs": 1}, classes=CLASSES)
        before = [p.detach().clone() for p in made.students.parameters()]
        rows = Data().rows
        loader = [(x, y) for x, y in zip(rows.images.split(parts), rows.labels.split(parts), strict=True)]
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=together).fit(made, DataLoader(loader, batch_size=None))
        return torch.cat([(p - b).flatten() for p, b in zip(made.students.parameters(), before, strict=True)])

    torch.testing.assert_close(update([16, 16, 16], 4), update([48], 1))


def test_a_window_counts_the_rows_of_all():
    window = Window()
    device = torch.device("cpu")
    weights = [window.weight(rows, 2, device, even=False) for rows in (0, 6)]
    assert weights[0] == 0
    assert [w * window.close(2) / 2 for w in weights[1:]] == [1.0]  # all of the mean is the second batch's
    assert window.weight(5, 1, device, even=True) == 1.0 == window.close(1)


@knows_nothing
def test_a_batch_without_tokens_moves_nothing(tmp_path):
    (student, teacher), ids, labels = language_parts()
    for chunk in (0, 8):
        made = DistillModule(student, teacher, KD, changes=CHANGES, task="language", chunk=chunk)
        loss = {"input_ids": ids, "labels": torch.full_like(labels, -100)}
        fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        before = [p.detach().clone() for p in made.students.parameters()]
        fit.fit(made, DataLoader([loss], batch_size=None))
        decay = 1 - 0.1 * 0.02
        for p, b in zip(made.students.parameters(), before, strict=True):
            torch.testing.assert_close(p, b * decay if p.ndim > 1 else b)


class Fixed(nn.Module):
    """Answers by the brightest quarter, moved by some classes."""

    def __init__(self, moved):
        super().__init__()
        self.moved, self.free = moved, nn.Parameter(torch.zeros(()))

    def forward(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return 50 * quarters.roll(self.moved, 1) + self.free


def test_a_teacher_that_knows_nothing_is_doubted(tmp_path):
    made = DistillModule(linear(1), Fixed(1), KD, changes=CHANGES, classes=CLASSES)
    with pytest.warns(UserWarning, match=r"the teacher is right on 0.000 of the validation rows, no more than always"):
        trainer(tmp_path, max_epochs=1).fit(made, datamodule=Data())
    assert list(made.doubts) == ["validation chance"]


def test_a_teacher_no_better_than_its_student_is_doubted(tmp_path):
    made = DistillModule({"a": Fixed(0), "b": Fixed(1)}, Fixed(0), changes=CHANGES, classes=CLASSES)
    data = Data()
    data.rows.labels[:12] = (data.rows.labels[:12] + 2) % 4
    with pytest.warns(UserWarning, match=r"student a is right on 0.750 of the test rows and the teacher on 0.750"):
        found = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    assert list(made.doubts) == ["test student a"]
    assert found["test/teacher_accuracy"] == 0.75
    assert (found["test/a/accuracy"], found["test/b/accuracy"]) == (0.75, 0.0)


def text_network(names, seed=0, labels=None):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    config = BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=labels or len(names), **sizes, **more)
    torch.manual_seed(seed)
    return BertForSequenceClassification(config).eval()


def test_classes_go_by_name():
    words = {"input_ids": torch.randint(30, (5, 7), generator=torch.Generator().manual_seed(0))}
    words["attention_mask"] = torch.ones_like(words["input_ids"])
    wanted = ["food", "money", "sport"]
    teacher, student = text_network(["Sport", "food", "money"]), text_network(["sport", "money", "food"], 1)
    options = {"task": "texts", "classes": 3, "changes": CHANGES}
    made = DistillModule(student, teacher, KD, labels=wanted, **options)
    with torch.no_grad():
        raw = teacher(**words).logits, student(**words).logits
        assert torch.equal(made.teacher(words).logits, raw[0][:, [1, 2, 0]])
        assert torch.equal(made.students["student"](words).logits, raw[1][:, [2, 1, 0]])
    assert student.config.id2label == {0: "sport", 1: "money", 2: "food"}  # its own outputs keep their own names
    alone = DistillModule(text_network(None, labels=3), teacher, KD, **options)  # unnamed: taken as the teacher's
    assert list(alone.students["student"].model.config.id2label.values()) == ["Sport", "food", "money"]
    with pytest.raises(
        DistillError, match="the teacher knows the classes Sport, food, money, but the data has a, b, c;"
    ):
        DistillModule(text_network(None, labels=3), teacher, KD, labels=["a", "b", "c"], **options)
    learner = text_network(["x", "y", "z"])
    DistillModule(learner, None, {"hard": {}}, labels=wanted, **options)
    assert learner.config.label2id == {"food": 0, "money": 1, "sport": 2}


def test_orders_of_classes():
    assert class_order(["a", "b"], ["a", "b"], "x") is None
    assert class_order(None, ["a", "b"], "x") is None
    assert class_order(["neg", "pos"], ["0", "1"], "x") is None
    assert class_order(["NEGATIVE", "positive"], ["positive", "negative"], "x") == [1, 0]
    assert class_order(["a", "A"], ["A", "a"], "x") == [1, 0]
    for other in (["a", "c"], ["a", "b", "c"], ["a", "a"]):
        with pytest.raises(DistillError, match=", but the data has a, b; give one"):
            class_order(other, ["a", "b"], "x")
