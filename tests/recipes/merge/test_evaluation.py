"""Scores against independent computations: normalised, recovered gap, NaN rows, regression; what the router sees."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import BertConfig, BertModel

from recipes.data.splits import Split, TextTask
from recipes.merge.baselines import Candidates, options_of, seeded, trials, tune
from recipes.merge.evaluation import (
    Scores,
    apply_heads,
    evaluate,
    evaluate_rows,
    in_precision,
    linear_probe,
    with_experts,
    with_heads,
)
from twinmerge.methods import OURS, find
from twinmerge.modeling_twin import Head, Router, attach
from twinmerge.states import states_of

NAN = float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:.*in the buffer")  # the recipes hush it


def task(name, labels, truth, metric="accuracy", train=()):
    split = Split([f"text {i}" for i in range(len(truth))], list(truth))
    learned = Split([f"seen {i}" for i in range(len(train))], list(train)) if len(train) else split
    kind = "classification" if labels else "regression"
    return TextTask(name, tuple("abcdefgh"[:labels]), learned, split, split, metric, kind)


def batches_of(tasks, size=3, seed=0):
    """All tasks' rows shuffled together; `row` numbers them, so that a model of the tests can look its answer up."""
    rows = [(index, i, y) for index, t in enumerate(tasks) for i, y in enumerate(t.test.labels)]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    floats = any(not t.labels for t in tasks)
    return [
        {
            "row": torch.tensor([r[1] for r in part]),
            "task": torch.tensor([r[0] for r in part]),
            "labels": torch.tensor([float(r[2]) if floats else r[2] for r in part]),
        }
        for part in (rows[start : start + size] for start in range(0, len(rows), size))
    ]


def look_up(logits):
    """A model that answers row i of a task with `logits[task][i]`, padded with minus infinity."""
    width = max(values.shape[1] for values in logits.values())

    def model(inputs, asked):
        out = torch.full((len(asked), width), -math.inf)
        for i, (name, row) in enumerate(zip(asked, inputs["row"].tolist(), strict=True)):
            out[i, : logits[name].shape[1]] = logits[name][row]
        return out

    return model


def run(model, tasks, **options):
    return evaluate(model, tasks, batches_of(tasks, **options), lambda: None)


@pytest.fixture
def three():
    """Three tasks, classes of different numbers and a regression, with random answers."""
    draw = np.random.default_rng(1)
    tasks = [
        task("two", 2, draw.integers(0, 2, 40)),
        task("five", 5, draw.integers(0, 5, 50), metric="accuracy_f1"),
        task("number", 0, draw.normal(size=30), metric="pearson_spearman"),
    ]
    logits = {t.name: torch.tensor(draw.normal(size=(len(t.test), len(t.labels) or 1))).float() for t in tasks}
    logits["number"] += torch.tensor(tasks[2].test.labels)[:, None]
    return tasks, logits


@pytest.mark.parametrize("size", [1, 7, 200])
def test_scores_are_those_of_sklearn_and_scipy(three, size):
    tasks, logits = three
    two, five, number = (logits[t.name].numpy() for t in tasks)
    truth = [t.test.labels for t in tasks]
    guess = five.argmax(1)
    wanted = {
        "two": accuracy_score(truth[0], two.argmax(1)),
        "five": (accuracy_score(truth[1], guess) + f1_score(truth[1], guess, average="macro")) / 2,
        "number": (pearsonr(truth[2], number[:, 0])[0] + spearmanr(truth[2], number[:, 0])[0]) / 2,
    }
    scores = run(look_up(logits), tasks, size=size)
    assert scores.tasks == pytest.approx(wanted, abs=1e-5)
    assert scores.mean == pytest.approx(np.mean(list(wanted.values())), abs=1e-5)
    assert scores.milliseconds > 0


def test_normalised_and_recovered_gap():
    row, experts, base = (
        dict(zip("abcd", v, strict=True)) for v in ((0.8, 0.5, 0.6, 0.1), (0.9, 0.5, 0.7, 0.0), (0.4, 0.49, 0.8, 0.0))
    )
    shares = [row[t] / experts[t] for t in "abc"]  # the expert of d scores nothing
    assert Scores(row, 1).normalised(Scores(experts, 1)) == pytest.approx(sum(shares) / 3)
    # b's gap is below two points, c's and d's base is no worse than the expert
    recovered = Scores(row, 1).recovered(Scores(experts, 1), Scores(base, 1))
    assert recovered == pytest.approx({"a": (0.8 - 0.4) / (0.9 - 0.4)})
    assert Scores(experts, 1).normalised(Scores(experts, 1)) == 1
    assert Scores(experts, 1).recovered(Scores(experts, 1), Scores(base, 1)) == {"a": 1.0}
    assert math.isnan(Scores({"d": 0.1}, 1).normalised(Scores({"d": 0.0}, 1)))


def test_a_row_of_nan_counts_as_wrong():
    truth = [0, 1, 1, 0]
    tasks = [task("two", 2, truth)]
    right = torch.nn.functional.one_hot(torch.tensor(truth), 2).float()
    right[[0, 2]] = NAN
    assert run(look_up({"two": right}), tasks).tasks["two"] == 0.5
    beside = [*tasks, task("number", 0, [0.0, 1.0, 2.0], "pearson_spearman")]  # makes all labels of a batch floats
    both = {"two": right, "number": torch.tensor([[0.0], [1.0], [2.0]])}
    assert run(look_up(both), beside, size=7).tasks == pytest.approx({"two": 0.5, "number": 1.0})


def test_a_missed_row_of_a_regression_is_answered_by_the_mean_of_the_training_labels():
    truth, train = [0.0, 1.0, 2.0, 5.0], [1.0, 3.0]
    tasks = [task("number", 0, truth, "pearson_spearman", train)]
    guess = torch.tensor([[0.1], [NAN], [1.9], [4.0]])
    known = [0.1, 2.0, 1.9, 4.0]
    wanted = (pearsonr(truth, known)[0] + spearmanr(truth, known)[0]) / 2
    assert run(look_up({"number": guess}), tasks).tasks["number"] == pytest.approx(wanted, abs=1e-5)


def test_an_undefined_correlation_counts_nothing():
    tasks = [task("number", 0, [0.0, 1.0, 2.0], "pearson_spearman")]
    for value in (0.7, NAN):
        assert run(look_up({"number": torch.full((3, 1), value)}), tasks).tasks["number"] == 0


def test_one_forward_answers_several_rows(three):
    tasks, logits = three
    model, calls = look_up(logits), []

    def both(inputs, asked):
        calls.append(1)
        out = model(inputs, asked)
        return {"one": out, "other": -out}

    rows = evaluate_rows(both, tasks, batches_of(tasks), lambda: None)
    assert len(calls) == len(batches_of(tasks))
    assert rows["one"].tasks == run(model, tasks).tasks
    assert rows["other"].tasks == run(lambda x, asked: -model(x, asked), tasks).tasks


# ---------------------------------------------------------------------------------------------------------------------
# Models.


def bert(seed):
    torch.manual_seed(seed)
    size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(**size, intermediate_size=32, max_position_embeddings=16)).eval()


@pytest.fixture
def twin():
    """A routed twin of two experts, with heads of different sizes."""
    model = bert(0)
    torch.manual_seed(1)
    layers = [(n, p.shape) for n, p in model.named_parameters() if p.dim() == 2 and "layer" in n]
    experts = [
        {n: (torch.randn(rows, 2), 0.3 * torch.randn(2, columns)) for n, (rows, columns) in layers} for _ in "ab"
    ]
    made = attach(model, ["spam", "trec"], experts, Router(16, 2).eval())
    made.heads.update({"spam": Head(16, 2), "trec": Head(16, 5, layer_norm=True)})
    return made.eval()


@pytest.fixture
def inputs():
    torch.manual_seed(2)
    mask = torch.ones(6, 9, dtype=torch.long)
    mask[::2, 6:] = 0
    return {"input_ids": torch.randint(0, 50, (6, 9)) * mask, "attention_mask": mask}


@pytest.mark.parametrize(("precision", "near"), [("32", 0.0), ("bf16", 0.05)])
def test_a_forward_in_bfloat16_is_near_and_in_32_the_same(twin, inputs, precision, near):
    def ask(**x):
        return twin.classify(**x, head=["spam", "trec"] * 3)

    with torch.inference_mode():
        plain, other = ask(**inputs), in_precision(precision, "cpu", ask)(**inputs)
    assert other.logits.dtype == torch.float32
    difference = (plain.logits - other.logits).nan_to_num(0.0).abs().max()
    assert difference <= near
    assert (difference > 0) == (near > 0)


def test_the_router_never_sees_the_question(twin, inputs):
    asked = ["spam", "trec"] * 3
    with torch.no_grad():
        one, other = twin.classify(**inputs, head=asked), twin.classify(**inputs, head=asked[::-1])
        alone = twin.classify(**inputs)
    assert torch.equal(one.router_weights, other.router_weights)
    assert torch.equal(one.router_weights, alone.router_weights)
    assert one.router_weights.std(0).min() > 0  # and it is no constant
    assert not torch.equal(one.logits, other.logits)
    assert torch.equal(one.task, 1 - other.task)


def test_the_routed_rows_follow_from_one_another(twin, inputs):
    from recipes.merge.rows import _oracle, _routed

    asked = ["spam", "spam", "spam", "trec", "trec", "trec"]
    with torch.no_grad():
        rows = _routed(twin, iter([twin.route(**inputs)]), inputs, asked)
        alone = twin.classify(**inputs)
        named = [twin.tasks.index(name) for name in asked]
        agree = alone.task == torch.tensor(named)
        assert 0 < agree.sum() < 6
        torch.testing.assert_close(rows["routed, head routed too"][agree], alone.logits[agree])
        assert rows["routed, head routed too"][~agree].isnan().all()
        assert not rows["routed"].isnan().any()
        for i, name in enumerate(asked):
            part = {k: v[i : i + 1] for k, v in inputs.items()}
            weights = torch.nn.functional.one_hot(torch.tensor([named[i]]), 2).float()
            wanted = twin.classify(**part, head=name, router_weights=weights).logits
            torch.testing.assert_close(_oracle(twin, inputs, asked)[i : i + 1], wanted, atol=1e-5, rtol=1e-5)


def test_every_question_gets_its_own_head_and_expert(inputs):
    heads = {"a": Head(16, 2), "b": Head(16, 3)}
    experts = {"a": bert(1), "b": bert(2)}
    asked = ["b", "a", "a", "b", "b", "a"]
    with torch.no_grad():
        shared, own = with_heads(bert(0), heads)(inputs, asked), with_experts(experts, heads)(inputs, asked)
        for i, name in enumerate(asked):
            part = {k: v[i : i + 1] for k, v in inputs.items()}
            outputs = heads[name].out_proj.out_features
            for got, encoder in ((shared, bert(0)), (own, experts[name])):
                wanted = heads[name](encoder(**part)[0], part["attention_mask"])
                torch.testing.assert_close(got[i : i + 1, :outputs], wanted, atol=1e-5, rtol=1e-5)
                assert (got[i, outputs:] == -math.inf).all()
        states = states_of(bert(0), bert(0)(**inputs))
        torch.testing.assert_close(shared, apply_heads(states, inputs["attention_mask"], asked, heads))


def test_the_probe_fits_the_rows_it_is_given_and_chooses_on_validation():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 60)
    tasks = [task("three", 3, labels), task("number", 0, draw.normal(size=40), "pearson_spearman")]
    x = torch.tensor(draw.normal(size=(100, 16))).float()
    x[torch.arange(60), torch.tensor(labels)] += 4.0
    x[60:, 3] = torch.tensor(tasks[1].train.labels).float()
    ids = torch.tensor([0] * 60 + [1] * 40)
    probe = linear_probe({"train": (x, ids), "validation": (x, ids)}, tasks)
    asked, states = ["three", "number"] * 3, x[[0, 60, 1, 61, 2, 62]]
    got, swapped = probe(states, asked), probe(states, asked[::-1])
    assert got.shape == (6, 3)
    assert got[::2].argmax(1).tolist() == labels[:3].tolist()
    assert got[::2].sum(1).tolist() == [1.0] * 3  # one-hot classes
    assert torch.equal(got[1::2, 0], got[1::2, 1])  # a number
    assert not torch.equal(got, swapped)


def test_halving_finds_the_best_and_tries_less():
    grid = [("average", {})] + [("ties", {"scale": s}) for s in (0.1, 0.3, 0.5, 0.7, 1.0, 2.0)]
    tried = []

    def validate(method, options, part):
        tried.append((method, part))
        return 0.5 if method == "average" else 1.0 - abs(options["scale"] - 0.6) - 0.001 * options["scale"]

    found = tune(grid, validate, parts=3)
    assert found["ties"] == (pytest.approx(0.8995), {"scale": 0.5})
    assert found["average"] == (0.5, {})
    assert [sum(part == p for _, part in tried) for p in range(3)] == trials(grid, 3) == [7, 4, 3]
    tried.clear()
    assert tune(grid, validate) == found
    assert len(tried) == len(grid)
    assert tune([("ties", {"scale": 1.0}), ("ties", {"scale": 2.0})], lambda *_: math.nan)["ties"][1] == {"scale": 1.0}


def test_candidates_that_differ_in_scale_share_their_direction():
    torch.manual_seed(0)
    base = {"w": torch.randn(6, 5), "frozen": torch.randn(3)}
    experts = [{"w": base["w"] + torch.randn(6, 5), "frozen": base["frozen"]} for _ in range(3)]
    calls = []

    def merge(method, options):
        calls.append((method, options))
        return find(method)(base, experts, **options)

    candidates = Candidates(base, merge, seed=3)
    for method in OURS:
        for scale in (0.3, 1.5):
            options = {name: value for name, value in (("scale", scale), ("drop", 0.5)) if name in options_of(method)}
            made, wanted = candidates(method, options), find(method)(base, experts, **seeded(method, options, 3))
            assert torch.equal(made["frozen"], base["frozen"])
            assert torch.allclose(made["w"], wanted["w"], atol=1e-5)
    assert len(calls) == 5 + 2  # one direction of each method with a scale, and the average as often as it was asked


def test_what_was_counted_before_counts(three):
    tasks, logits = three
    batches = batches_of(tasks)
    whole, counted = evaluate(look_up(logits), tasks, batches, lambda: None), {}
    evaluate(look_up(logits), tasks, batches[:2], lambda: None, counted=counted)
    rest = evaluate(look_up(logits), tasks, batches[2:], lambda: None, counted=counted)
    assert rest.tasks == pytest.approx(whole.tasks)
