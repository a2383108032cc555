"""Every static method is the shared expert and is tuned on validation; methods that look at inputs are rows."""

import json
import re
from html import escape
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.fields import FieldError
from recipes.merge.baselines import DATA, DYNAMIC, SHARED, Baselines, Candidates, Shared, options_of, tune
from recipes.merge.dynamic import layered
from recipes.merge.schema import Recipe
from recipes.merge.trial import check_options
from recipes.merge.with_data import _MERGES, with_data
from tests.recipes.tiny import World
from twinmerge.folders import Expert
from twinmerge.merging import shared_expert
from twinmerge.methods import methods
from twinmerge.one_call import merge_experts

# A value to try beside the default of an option that every method of this project may be tuned by.
TRIED = {"scale": [0.5, 0.9], "density": [0.3], "drop": [0.5], "t": [0.25, 0.5], "rows": [0.0], "normalize": [1.0]}


def bert(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=50, **sizes)).eval()


@pytest.fixture(scope="module")
def experts():
    base, states = bert(0), {}
    for seed, task in enumerate("ab", 1):
        torch.manual_seed(seed)
        states[task] = {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in base.named_parameters()}
    return base, states


@pytest.mark.parametrize("method", methods())
def test_every_method_is_tuned_and_is_the_shared_expert(method, experts):
    base, states = experts
    own = [name for name in options_of(method) if name in ("scale", "t", "density", "drop")]
    shared = Shared(method, {}, {name: TRIED[name] for name in own})
    named = {name: parameter.detach() for name, parameter in base.named_parameters()}
    made = Candidates(named, lambda m, options: shared_expert(base, states, m, **options), 0)
    goal = shared_expert(base, states, method, **{name: TRIED[name][-1] for name in own})

    def validate(name, options, part):
        assert name == SHARED
        merged = made(method, options)
        return -sum(float((merged[n] - value).square().sum()) for n, value in goal.items())

    if own:
        best = tune(shared.grid(), validate)[SHARED]
        assert best[1] == {name: TRIED[name][-1] for name in own}
        assert best[0] == pytest.approx(0, abs=1e-6)
        shared = Shared(method, best[1])
    read = {task: Expert(state, {}, None, None, "", 0) for task, state in states.items()}
    twin, exclusive = merge_experts(bert(0), read, method, {"rank": 2}, **shared.options)
    for name, value in twin.named_parameters():
        if name in goal:
            torch.testing.assert_close(value.detach(), goal[name], atol=1e-5, rtol=1e-4)
    assert all(0 <= residual <= 1 for row in exclusive.residuals.values() for residual in row.values())


class Given:
    """What methods with data look at, without data: statistics and logits made up, and scores by nearness to a goal."""

    def __init__(self, recipe, base, states):
        self.recipe, self.base, self.states = recipe, base, states
        self.folder = SimpleNamespace(say=lambda told: None)
        self.goal, self.made = None, []

    def information(self, task, expert):
        return {name: p.detach() ** 2 for name, p in expert.named_parameters()}

    def grams(self, task, expert):
        weights = {n: p.detach() for n, p in expert.named_parameters() if n.endswith("dense.weight")}
        return {name: torch.eye(p.shape[1]) + p.T @ p for name, p in weights.items()}

    def logits(self):
        return lambda weights, step: [weights["pooler.dense.weight"]]

    def validated(self, name, model):
        self.made.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return -sum(float((p.detach() - self.goal[n]).square().sum()) for n, p in model.named_parameters())

    def row(self, name, model):
        return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("as_row", [False, True])
@pytest.mark.parametrize(
    ("method", "tried"),
    [
        ("fisher", {"floor": [1e-6, 1.0]}),
        ("regmean", {"shrink": [0.1, 0.3, 0.9]}),
        ("adamerging", {"initial": [0.1, 0.6]}),
        ("adamerging_layers", {}),
    ],
)
def test_every_method_with_data_is_tuned_and_is_the_shared_expert(method, tried, as_row, experts):
    base, states = experts
    recipe = Recipe(
        tasks=[TaskSource(name=name) for name in ("trec", "spam")],
        shared=Shared(method, {}, tried),
        baselines=Baselines(data=[method] if as_row else [], data_steps=2),
    )
    source = Given(recipe, base, states)
    options = {name: values[-1] for name, values in tried.items()}
    goal = source.goal = _MERGES[method](source, base, states)(options)
    looked = with_data(source, base, states)
    assert list(looked.rows) == ([method] if as_row else [])
    assert len(source.made) == {"fisher": 2 + as_row, "regmean": 3 + as_row, "adamerging": 2 + as_row}.get(method, 1)
    if tried:
        assert looked.best[SHARED][1] == options
    else:
        assert SHARED not in looked.best
    chosen = recipe.with_shared(dict(looked.best), lambda told: None).shared
    assert chosen.options == options
    read = {task: Expert(state, {}, None, None, "", 0) for task, state in states.items()}
    how, rest = looked.method(chosen)
    twin, _ = merge_experts(bert(0), read, how, {"rank": 2}, **rest)
    for name, value in twin.named_parameters():
        if name in goal:
            torch.testing.assert_close(value.detach(), goal[name], atol=1e-5, rtol=1e-4)
    plain = shared_expert(base, states, "average")
    assert any((value - goal[name]).abs().max() > 1e-3 for name, value in plain.items())


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        (Shared("slerp"), "shared: slerp cannot merge 3 experts: SLERP lies between two models and got 3"),
        (Shared("breadcrumbs", {"gamma": 5}), "shared: breadcrumbs with gamma 5 cannot merge 3 experts: gamma is 5"),
        (Shared("regmean", {}, {"shrink": [0.1, 3]}), "shared: regmean with shrink 3 cannot merge 3 experts"),
        (Shared("fisher", {"floor": -1}), "shared: fisher with floor -1 cannot merge 3 experts"),
        (Shared("adamerging", {"rate": 0}), "shared: adamerging with rate 0 cannot merge 3 experts"),
    ],
)
def test_options_that_a_method_refuses_are_found_before_anything_is_read(shared, said):
    tasks = [TaskSource(name=name) for name in ("trec", "spam", "movie")]
    assert "accepted" in check_options(Recipe(tasks=tasks))
    with pytest.raises(RecipeError, match=re.escape(said)):
        check_options(Recipe(tasks=tasks, shared=shared))
    with pytest.raises(RecipeError, match=re.escape("baselines.further.1: slerp cannot merge 3 experts")):
        check_options(Recipe(tasks=tasks, baselines=Baselines(further=["karcher", "slerp"])))


@pytest.mark.parametrize("kind", ["smile", "arrow"])
def test_layers_choose_experts_for_every_token(kind, experts):
    base, states = experts
    made, stored = layered(base, states, 16, kind)  # all directions: one expert alone is that expert's layer
    name = "encoder.layer.0.intermediate.dense"
    layer, own = made.get_submodule(name), [state[f"{name}.weight"] for state in states.values()]
    inputs = torch.randn(3, 5, 16)
    gates = layer.gates(inputs)
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 5))
    biases = [state[f"{name}.bias"] for state in states.values()]
    wanted = sum(gates[..., t, None] * (inputs @ own[t].T + biases[t]) for t in range(2))
    torch.testing.assert_close(layer(inputs), wanted, atol=1e-4, rtol=1e-3)
    assert stored > 0
    mean = torch.stack([state["embeddings.word_embeddings.weight"] for state in states.values()]).mean(0)
    torch.testing.assert_close(made.embeddings.word_embeddings.weight.detach(), mean)
    assert made(torch.zeros(2, 4, dtype=torch.long))[0].isfinite().all()


def test_what_is_tuned_is_checked():
    with pytest.raises(FieldError, match="ties has no such option; did you mean 'scale'"):
        Shared("ties", {}, {"scal": [0.1]})
    with pytest.raises(FieldError, match="expected values of an option that is not set"):
        Shared("ties", {"scale": 0.1}, {"scale": [0.2]})
    with pytest.raises(FieldError, match="unknown merge method 'fishe'; did you mean 'fisher'"):
        Baselines(data=["fishe"])
    with pytest.raises(FieldError, match="none without tasks, whose validation rows"):
        Recipe(experts={"a": "x", "b": "y"}, shared=Shared("ties", {}, {"scale": [0.2]}))
    with pytest.raises(FieldError, match="expected a merge of weights alone without tasks, got 'fisher'"):
        Recipe(experts={"a": "x", "b": "y"}, shared=Shared("fisher"))
    with pytest.raises(FieldError, match="regmean has no such option"):
        Shared("regmean", {"inputs": 1.0})
    assert Shared("ties", {"density": 0.1}, {"scale": [0.2, 0.4]}).grid() == [
        (SHARED, {"density": 0.1, "scale": 0.2}),
        (SHARED, {"density": 0.1, "scale": 0.4}),
    ]
    assert set(_MERGES) == set(DATA)


def test_a_merge_tunes_its_shared_expert_and_compares_methods_with_data(tmp_path):
    world = World(tmp_path)
    recipe = world.recipe(
        "merge",
        ("mood", "count"),
        shared={
            "method": "ties",
            "options": {"weights": {"count": 0.5, "mood": 1.0}, "trim": "tensor"},
            "tune": {"scale": [0.4, 0.8], "density": [0.3]},
        },
        baselines={"data": list(DATA), "data_items": 12, "data_steps": 4, "dynamic": list(DYNAMIC), "probe": False},
    )
    done = world.run(recipe, "out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert found["shared"]["method"] == "ties"
    assert found["shared"]["options"]["density"] == 0.3
    assert found["shared"]["options"]["scale"] in (0.4, 0.8)
    assert found["shared"]["options"]["weights"] == {"count": 0.5, "mood": 1.0}
    said = 'shared expert: ties with weights {"count": 0.5, "mood": 1.0}, trim tensor, scale 0.'
    assert said in done.out + done.err
    assert set(found["rows"]) >= set(DATA)
    assert set(found["tuned"]) >= set(DATA)
    assert SHARED not in found["rows"]
    assert found["tuned"]["regmean"]["shrink"] in (0.1, 0.5, 0.9)
    assert all(found["rows"][name]["bytes"] == found["rows"]["pretrained"]["bytes"] for name in DATA)
    for name in DYNAMIC:
        assert 0 <= found["rows"][name]["mean"] <= 1
        assert found["rows"][name]["bytes"] > found["rows"]["pretrained"]["bytes"]
    page = (tmp_path / "out/report.html").read_text()
    assert all(
        escape(told) in page
        for told in (*DYNAMIC.values(), "by its Fisher information", "learned on unlabelled validation inputs")
    )


def test_the_twin_of_a_recipe_has_the_shared_expert_that_data_made(tmp_path):
    world = World(tmp_path)
    recipe = world.recipe(
        "merge",
        ("mood", "count"),
        shared={"method": "regmean", "tune": {"shrink": [0.2, 1.0]}},
        baselines={"scales": [0.5], "data": ["regmean"], "data_items": 12, "probe": False},
    )
    done = world.run(recipe, "out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert found["shared"]["method"] == "regmean"
    assert found["shared"]["options"]["shrink"] in (0.2, 1.0)
    assert found["tuned"]["regmean"]["shrink"] in (0.1, 0.5, 0.9)
    whole = load_file(tmp_path / "out/merged/model.safetensors")
    base = load_file(world.base / "model.safetensors")
    moved = [name for name in base if name in whole and not whole[name].equal(base[name])]
    assert any("dense.weight" in name for name in moved)
