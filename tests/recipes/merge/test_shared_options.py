"""The shared expert of a merge takes what its method takes: numbers, words, lists by layer, values by expert's name."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from recipes.fields import FieldError
from recipes.merge.baselines import SHARED, Candidates, Shared, told
from tests.recipes.tiny import World
from twinmerge.folders import Expert
from twinmerge.merging import shared_expert
from twinmerge.one_call import merge_experts

LAYER = "encoder.layer.{}.intermediate.dense.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with two experts that plain transformers wrote; the last of them in the folder's name first."""
    world = World(tmp_path_factory.mktemp("options"))
    words = AutoTokenizer.from_pretrained(world.base)
    for seed, name in enumerate(("zeta", "alpha")):
        torch.manual_seed(seed)
        model = AutoModel.from_pretrained(world.base)
        for value in model.parameters():
            value.data += 0.05 * torch.randn_like(value)
        model.save_pretrained(world.folder / "theirs" / name)
        words.save_pretrained(world.folder / "theirs" / name)
    return world


def alone(world, shared):
    """A merge of the two experts without data."""
    theirs = {name: str(world.folder / "theirs" / name) for name in ("zeta", "alpha")}
    return {
        "recipe": "merge", "name": "tiny", "base": str(world.base), "experts": theirs, "exclusive": {"rank": 2},
        "shared": shared,
    }  # fmt: skip


def states(world):
    folders = (world.base, world.folder / "theirs/zeta", world.folder / "theirs/alpha")
    return [{n: v.numpy() for n, v in load_file(folder / "model.safetensors").items()} for folder in folders]


def ties(base, experts, weights, density):
    """TIES as mergekit has it, one tensor: trimmed by itself, signs of the weighted sum, no division."""
    vectors = []
    for expert, weight in zip(experts, weights, strict=True):
        vector, kept = (expert - base).ravel(), int(density * base.size)
        order = np.argsort(-np.abs(vector), kind="stable")[:kept]
        trimmed = np.zeros_like(vector)
        trimmed[order] = vector[order]
        vectors.append(weight * trimmed)
    total = sum(vectors)
    sign = np.where(total >= 0, 1.0, -1.0)
    return base + sum(np.where(vector * sign > 0, vector, 0) for vector in vectors).reshape(base.shape)


def test_words_booleans_and_values_by_name_make_the_shared_expert(world):
    options = {"weights": {"alpha": 0.5, "zeta": 1.5}, "density": 0.4, "trim": "tensor", "normalize": False}
    recipe = alone(world, {"method": "ties", "options": options})
    checked = world.run(recipe, "checked", "--check")
    assert checked.code == 0, checked.err
    done = world.run(recipe, "words")
    assert done.code == 0, done.err
    base, zeta, alpha = states(world)
    for place in ("words/static/ties", "words/merged"):
        found = load_file(world.folder / place / "model.safetensors")
        for name in (LAYER.format(0), "embeddings.LayerNorm.weight"):
            expected = ties(base[name], (zeta[name], alpha[name]), (1.5, 0.5), 0.4)
            np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-5)


def test_lists_over_layers_and_parts_of_names_reach_the_tensors(world):
    weights = {"zeta": [1.0, 0.2], "alpha": {"intermediate": 0.7, "*": 0.1}}
    done = world.run(
        alone(world, {"method": "task_arithmetic", "options": {"scale": 0.5, "weights": weights}}), "lists"
    )
    assert done.code == 0, done.err
    base, zeta, alpha = states(world)
    found = load_file(world.folder / "lists/merged/model.safetensors")
    last = max(int(name.split(".")[2]) for name in base if name.startswith("encoder.layer."))
    for name, of_zeta, of_alpha in (
        (LAYER.format(0), 1.0, 0.7),
        (LAYER.format(last), 0.2, 0.7),
        ("pooler.dense.weight", 1.0, 0.1),
    ):
        expected = base[name] + 0.5 * (of_zeta * (zeta[name] - base[name]) + of_alpha * (alpha[name] - base[name]))
        np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ({"options": {"weights": {"zeta": 1.0}}}, "option 'weights' is given by expert, but 'alpha' is missing"),
        ({"options": {"weights": {"zeta": 1.0, "alfa": 1.0}}}, "but 'alfa' is missing or no expert's name"),
        ({"options": {"weights": [1.0, 2.0, 3.0]}}, "3 values are given for 2 experts"),
        ({"options": {"scale": "much"}}, "scale: expected a finite number or a list"),
        ({"options": {"scale": {"intermediate": 0.5}}}, "add one for '*'"),
        ({"method": "ties", "options": {"trim": "tensors"}}, "trim: expected one of 'model', 'tensor', got 'tensors'"),
        ({"method": "ties", "options": {"normalize": 1}}, "normalize: expected True or False, got 1"),
        ({"method": "ties", "options": {"density": {"zeta": 0.2, "alpha": 5}}}, "5"),
    ],
    ids=str,
)
def test_a_check_refuses_what_the_method_refuses(world, shared, said):
    done = world.run(alone(world, shared), "refused", "--check")
    assert done.code == 2
    assert said in done.err
    assert "shared: " in done.err


def test_a_check_warns_of_a_part_of_names_that_no_tensor_has(world):
    with pytest.warns(UserWarning, match="an option is given for 'intermediat_', which no tensor's name has in it"):
        done = world.run(alone(world, {"options": {"scale": {"intermediat_": 0.5, "*": 1.0}}}), "unfit", "--check")
    assert done.code == 0, done.err


def test_only_numbers_are_tuned(world):
    done = world.run(world.recipe("merge", shared={"method": "ties", "tune": {"trim": ["model"]}}), "tuned", "--check")
    assert done.code == 2
    assert "shared.tune.trim" in done.err
    with pytest.raises(FieldError, match=r"options.density: expected a number > 0 and <= 1, got 3"):
        Shared("ties", {"density": 3})


def test_a_tuned_scale_goes_with_options_that_are_no_numbers(world):
    model = AutoModel.from_pretrained(world.base)
    base, *experts = ({n: torch.from_numpy(v) for n, v in state.items()} for state in states(world))
    theirs = dict(zip(("zeta", "alpha"), experts, strict=True))
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shared = Shared("task_arithmetic", {"weights": {"alpha": 0.5, "zeta": 1.5}}, {"scale": [0.2, 0.8]})
    made = Candidates(named, lambda method, options: shared_expert(model, theirs, method, **options), 0)
    for method, options in shared.grid():
        assert method == SHARED
        found = made(shared.method, options)
        expected = base[LAYER.format(0)] + options["scale"] * sum(
            weight * (theirs[name][LAYER.format(0)] - base[LAYER.format(0)])
            for name, weight in (("zeta", 1.5), ("alpha", 0.5))
        )
        torch.testing.assert_close(found[LAYER.format(0)], expected, atol=1e-5, rtol=1e-4)
    assert len(made._directions) == 1
    by_layer = made("task_arithmetic", {"scale": [0.5, 0.5]})
    whole = made("task_arithmetic", {"scale": 0.5})
    torch.testing.assert_close(by_layer[LAYER.format(0)], whole[LAYER.format(0)], atol=1e-6, rtol=1e-5)
    assert told(shared.options) == f"weights {json.dumps({'alpha': 0.5, 'zeta': 1.5})}"


def test_adapters_are_weighed_too(world, tmp_path):
    """The exact product form knows one scale only: weights of the experts must not be lost in it."""
    from twinmerge.folders import read_folder

    expected, read = None, {}
    for seed, name in enumerate(("zeta", "alpha")):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModel.from_pretrained(world.base),
            LoraConfig(r=2, lora_alpha=4, target_modules=["query"], init_lora_weights=False),
        )
        model.save_pretrained(tmp_path / name)
        query = "encoder.layer.0.attention.self.query"
        change = model.get_submodule(f"base_model.model.{query}").get_delta_weight("default").detach()
        expected = (0 if expected is None else expected) + {"zeta": 1.5, "alpha": -0.5}[name] * change
        base = AutoModel.from_pretrained(world.base)
        read[name] = read_folder(tmp_path / name, world.base, base)
        assert isinstance(read[name], Expert)
        assert read[name].terms
    start = base.get_parameter(f"{query}.weight").detach().clone()
    options = {"scale": 0.5, "weights": {"alpha": -0.5, "zeta": 1.5}}
    twin, _ = merge_experts(base, read, "task_arithmetic", {"rank": 2}, **options)
    torch.testing.assert_close(twin.get_parameter(f"{query}.weight").detach(), start + 0.5 * expected)
