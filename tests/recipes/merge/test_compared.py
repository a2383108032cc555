"""Number format by a trial; EMR-Merging and the kNN router as rows with the twin's own inputs; what they need."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

from recipes.merge import precision
from recipes.merge.compared import EMR, KNN, Beside, _picked, elected
from recipes.merge.precision import agree, settled
from recipes.merge.routing import RouterTraining
from tests.recipes.tiny import World
from twinmerge.functional import emr
from twinmerge.modeling_twin import Head

CPU = torch.device("cpu")


def answers(half, plain, calls=None):
    """A forward whose logits depend on the number format."""

    def answer(batch):
        rows = len(batch["input_ids"])
        if calls is not None:
            calls.append(rows)
        return (half if torch.is_autocast_enabled("cpu") else plain)[:rows]

    return answer


@pytest.fixture
def clock(monkeypatch):
    """Seconds of every forward, by number format, instead of the real ones."""
    seconds = {"32": 1.0, "bf16": 0.5}
    run = precision.timed

    def timed(answer, batch, kind, device):
        return run(answer, batch, kind, device)[0], seconds[kind]

    monkeypatch.setattr(precision, "timed", timed)
    return seconds


BATCH = {"input_ids": torch.zeros(4, 2, dtype=torch.long)}
PLAIN = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -torch.inf], [0.0, 4.0]])


def test_bf16_is_taken_when_it_agrees_and_is_faster(clock):
    near = PLAIN + torch.tensor([[0.01, 0.0]])
    assert settled("auto", CPU, answers(near, PLAIN), BATCH)[0] == "bf16"
    clock["bf16"] = 0.9
    assert settled("auto", CPU, answers(near, PLAIN), BATCH) == ("32", "bf16 is not faster on this processor")


def test_a_processor_that_emulates_bf16_is_found_on_two_rows(clock):
    calls = []
    clock["bf16"] = 30.0
    assert settled("auto", CPU, answers(PLAIN, PLAIN, calls), BATCH) == ("32", "bf16 is not faster on this processor")
    assert set(calls) == {2}


@pytest.mark.parametrize(("row", "column", "value"), [(0, 1, 2.5), (2, 0, 3.1)])
def test_another_answer_or_another_number_keeps_32_bits(clock, row, column, value):
    other = PLAIN.clone()
    other[row, column] = value
    assert settled("auto", CPU, answers(other, PLAIN), BATCH) == ("32", "bf16 gives other answers on a trial batch")
    assert not agree(PLAIN, other)


@pytest.mark.parametrize("asked", ["32", "bf16"])
def test_what_the_recipe_says_is_not_tried(asked):
    assert settled(asked, CPU, lambda _: pytest.fail("tried"), BATCH) == (asked, "as the recipe says")


def bert(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=50, **sizes)).eval()


def test_emr_answers_by_the_model_picked_and_the_head_asked_for():
    base = bert(0)
    states = {task: dict(bert(seed).named_parameters()) for seed, task in enumerate("ab", 1)}
    states = {task: {name: value.detach() for name, value in state.items()} for task, state in states.items()}
    made, models = elected(base, states)
    pretrained = {name: value.detach() for name, value in base.named_parameters()}
    wanted = emr(pretrained, list(states.values()))
    assert made.rescalers == wanted.rescalers
    for index, model in enumerate(models):
        expert = wanted.expert(pretrained, index)
        assert all(torch.equal(value, expert[name]) for name, value in model.named_parameters())
    heads = {"a": Head(16, 2, "mean").eval(), "b": Head(16, 3, "first").eval()}
    inputs = {"input_ids": torch.randint(0, 50, (5, 6)), "attention_mask": torch.ones(5, 6, dtype=torch.long)}
    asked, picked = list("abbab"), torch.tensor([0, 0, 1, 1, 0])
    with torch.no_grad():
        got = _picked(models, heads, iter([picked]), inputs, asked)
        for row, (question, model) in enumerate(zip(asked, picked.tolist(), strict=True)):
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            alone = heads[question](models[model](**one)[0], one["attention_mask"])[0]
            torch.testing.assert_close(got[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
            assert (got[row, len(alone) :] == -torch.inf).all()


def test_bytes_count_all_that_a_row_needs():
    places = {"shared expert": 100, "factors": 20, "kept whole": 5, "heads": 3, "router": 7}
    sizes = Beside(stored={EMR: 40, KNN: 1000}).sizes(100, places)
    assert sizes == {EMR: 100 + 40 + 3 + 7, KNN: 100 + 20 + 5 + 3 + 1000}
    assert Beside().sizes(100, places) == {}


def test_a_merge_has_the_rows_that_it_is_asked_for(tmp_path):
    world = World(tmp_path)
    recipe = world.recipe("merge", baselines={"emr": True, "knn": True, "probe": True})
    done = world.run(recipe, "out")
    assert done.code == 0, done.err
    assert "scored in" in done.out + done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["rows"])[-5:] == ["routed, head routed too", "oracle", EMR, KNN, "linear probe"]
    base = result["rows"]["pretrained"]
    for name in (EMR, KNN):
        assert result["rows"][name]["bytes"] > base["bytes"]
        assert 0 <= result["rows"][name]["mean"] <= 1
    # One forward answers both rows of the base.
    assert result["rows"]["linear probe"]["ms_per_input"] == base["ms_per_input"]
    assert (tmp_path / "out" / "merged" / "router").is_dir()
    assert result["scored_in"] in ("32 bits", "bfloat16")
    assert "Number format" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "encoder", "causal"),
    [
        ({}, ("linear", "all"), ("mlp", "last")),
        ({"kind": "mlp"}, ("mlp", "last"), ("mlp", "last")),
        ({"kind": "knn"}, ("knn", "last"), ("knn", "last")),
        ({"kind": "linear"}, ("linear", "all"), ("linear", "last")),
        ({"features": "last"}, ("linear", "last"), ("mlp", "last")),
        ({"kind": "mlp", "features": "all"}, ("mlp", "all"), ("mlp", "all")),
    ],
)
def test_an_encoder_is_routed_by_a_linear_router_over_all_layers(given, encoder, causal):
    for wanted, is_causal in ((encoder, False), (causal, True)):
        made = RouterTraining(**given).settled(is_causal)
        assert (made.kind, made.features) == wanted
        assert made.settled(is_causal) == made
