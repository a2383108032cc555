"""Configurations of mergekit give the tensors that mergekit gives, and what cannot be done is said."""

import subprocess

import pytest
import torch
import yaml

from benchmarks.mergekit_cpu import ENVIRONMENT, RUN_ALL
from tests.twinmerge.big.small import read, write_family
from twinmerge.big.command import main
from twinmerge.big.merge import merge_files
from twinmerge.big.mergekit import read_mergekit
from twinmerge.errors import CheckpointError

GRADIENT = [0.2, 0.9, 0.4]
BY_NAME = [{"filter": "mlp", "value": 0.8}, {"filter": "self_attn", "value": GRADIENT}, {"value": 0.5}]
# Method, parameters of the whole, parameters of every model, whether the base is named, models that are merged.
CASES = {
    "linear": ("linear", {"normalize": True}, [{"weight": w} for w in (1.0, 0.5, 2.0)], False, 3),
    "linear_layers": ("linear", {}, [{"weight": GRADIENT}, {"weight": BY_NAME}, {"weight": 1.0}], False, 3),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.4, "lambda": 0.9}, [{}, {"weight": BY_NAME}, {}], True, 3),
    "ties": ("ties", {"weight": 1.0, "density": 0.4}, [{}, {"weight": 0.5}, {"density": BY_NAME}], True, 3),
    "ties_sum": ("ties", {"weight": 0.5, "density": 0.3, "normalize": False, "lambda": 1.2}, [{}] * 3, True, 3),
    "breadcrumbs": ("breadcrumbs", {"weight": 0.4, "density": 0.7, "gamma": 0.05}, [{}] * 3, True, 3),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"weight": 0.4, "density": 0.7, "gamma": 0.05}, [{}] * 3, True, 3),
    "sce": ("sce", {"select_topk": 0.4}, [{}] * 3, True, 3),
    "model_stock": ("model_stock", {}, [{}] * 3, True, 3),
    "model_stock_rows": ("model_stock", {"filter_wise": True}, [{}] * 3, True, 3),
    "slerp": ("slerp", {"t": BY_NAME}, [{}], True, 1),
    "multislerp": ("multislerp", {"weight": 1.0}, [{}, {"weight": 2.0}, {}], True, 3),
    "karcher": ("karcher", {}, [{}] * 3, False, 3),
}
FAMILIES = {
    "float32": ({"dtype": torch.float32}, {}),
    "bfloat16_tied_sharded": (
        {"dtype": torch.bfloat16, "files": 3, "tied": True},
        {"dtype": "float32", "out_dtype": "bfloat16"},
    ),
}


def configuration(base, experts, name, beside):
    method, whole, own, named, count = CASES[name]
    models = [
        {"model": str(where), "parameters": given} if given else {"model": str(where)}
        for where, given in zip(list(experts.values())[:count], own, strict=True)
    ]
    found = {"merge_method": method, "models": models, **beside}
    return {**found, **({"base_model": str(base)} if named else {}), **({"parameters": whole} if whole else {})}


@pytest.mark.slow
@pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="no mergekit: bash benchmarks/mergekit_cpu/make.sh FOLDER")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_are_those_of_mergekit(family, tmp_path):
    shape, beside = FAMILIES[family]
    base, experts = write_family(tmp_path, hidden=64, **shape)
    for name in CASES:
        config = configuration(base, experts, name, {"dtype": "float32", **beside})
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / f"{name}.yml").write_text(yaml.safe_dump(config))
    subprocess.run([ENVIRONMENT / "bin" / "python", RUN_ALL, tmp_path / "theirs"], check=True, timeout=1500)
    wrong = {}
    for name, (method, *_) in CASES.items():
        arguments = read_mergekit(tmp_path / "theirs" / f"{name}.yml").arguments()
        merge_files(**arguments, folder=tmp_path / "ours" / name)
        theirs, ours = read(tmp_path / "theirs" / name), read(tmp_path / "ours" / name)
        assert ours.keys() == theirs.keys()
        rounding = 2**-7 if ours["model.norm.weight"].dtype == torch.bfloat16 else 0.0  # one place of bfloat16
        for key, value in ours.items():
            assert value.dtype == theirs[key].dtype
            size = theirs[key].float().abs()
            apart = (value.float() - theirs[key].float()).abs() > 1e-5 + rounding * size
            # In half precision many magnitudes are equal, and which of them mergekit keeps at a threshold is open.
            trims = rounding and method in ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
            if int(apart.sum()) > (max(8, 0.02 * apart.numel()) if trims else 0):
                wrong[name, key] = int(apart.sum())
    assert not wrong


def test_what_is_read(tmp_path):
    base, experts = write_family(tmp_path, experts=2)
    config = {
        "merge_method": "ties",
        "base_model": {"model": {"path": str(base)}},
        "models": [
            {"model": str(base)},
            {"model": str(experts["e0"]), "parameters": {"weight": [0.1, 0.9], "density": "3e-1"}},
            {"model": str(experts["e1"]), "parameters": {"weight": [{"filter": "mlp", "value": 0.5}]}},
        ],
        "parameters": {"weight": 0.7, "density": 0.5, "int8_mask": True},
        "dtype": "bfloat16",
        "tokenizer_source": "base",
    }
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    found = read_mergekit(tmp_path / "c.yml")
    assert found.base == str(base)
    assert found.experts == {"expert0": str(experts["e0"]), "expert1": str(experts["e1"])}
    assert (found.method, found.dtype) == ("ties", "bfloat16")
    assert found.options == {
        "weights": [[0.1, 0.9], {"mlp": 0.5, "*": 0.7}],
        "scale": 1.0,
        "density": [0.3, 0.5],
        "trim": "tensor",
        "normalize": True,
    }
    assert found.remarks == [
        "keeps the first of the entries that are equal at its threshold, where mergekit keeps any of them",
        "is computed in float32, where mergekit computes in the models' format",
    ]


def test_the_command_checks_merges_and_refuses(tmp_path, capsys):
    base, experts = write_family(tmp_path, experts=2)
    config = {
        "merge_method": "slerp",
        "base_model": str(base),
        "slices": [{"sources": [{"model": str(m), "layer_range": [0, 3]} for m in (base, experts["e0"])]}],
        "parameters": {"t": 0.25},
        "dtype": "float32",
    }
    file = tmp_path / "c.yml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file), "--check"]) == 0
    assert "memory: at most" in capsys.readouterr().out
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    merged, start, end = (read(folder)["model.norm.weight"] for folder in (tmp_path / "out", base, experts["e0"]))
    torch.testing.assert_close(merged, 0.75 * start + 0.25 * end, rtol=0.05, atol=1e-3)
    config["slices"][0]["sources"][1]["layer_range"] = [0, 2]
    config |= {"chat_template": "auto", "tokenizer_source": "union", "parameters": {"t": 0.25, "tea": 1}}
    file.write_text(yaml.safe_dump(config))
    assert main([str(file), "--check"]) == 2
    said = capsys.readouterr().err
    for problem in (
        "are not all of its 3",
        "'chat_template' is not",
        "tokenizer union is not",
        "'tea' is none of slerp",
    ):
        assert problem in said


def test_the_first_value_that_is_for_a_tensor_counts(tmp_path):
    """As mergekit reads them: a value without filter ends the list, and that of a model ends them all."""
    _, experts = write_family(tmp_path, experts=2)
    layered = [{"filter": "mlp", "value": 0.25}, {"value": 0.5}, {"filter": "self_attn", "value": 0.75}]
    own = [{"model": str(experts["e0"]), "parameters": {"weight": 1.0}}, {"model": str(experts["e1"])}]
    config = {"merge_method": "linear", "models": own, "parameters": {"weight": layered, "normalize": False}}
    file = tmp_path / "c.yml"
    file.write_text(yaml.safe_dump(config))
    found = read_mergekit(file)
    assert found.options["weights"] == [1.0, {"mlp": 0.25, "*": 0.5}]
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    merged, first, second = (read(folder) for folder in (tmp_path / "out", experts["e0"], experts["e1"]))
    for name, weight in (("model.layers.0.self_attn.q_proj.weight", 0.5), ("model.layers.0.mlp.up_proj.weight", 0.25)):
        torch.testing.assert_close(merged[name], first[name] + weight * second[name])


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.yml"), "--out", str(tmp_path / "out")])
    assert "out exists already; give another folder, or --force to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"merge_method": "nearswap"}, "merge_method nearswap is not supported"),
        ({"models": []}, "it has no merge_method"),
        ({"merge_method": "ties", "models": [{"model": "a"}]}, "base_model is missing; parameter 'weight' of a"),
        ({"merge_method": "linear", "models": [{"model": "a@main"}]}, "names a revision"),
        ({"merge_method": "passthrough"}, "is not supported; supported are linear"),
        (
            {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": w}} for w in (0.2, 0.8)]},
            "model a is listed twice; list it once with the sum of its weights",
        ),
        ({"merge_method": "linear"}, "neither 'models' nor one slice"),
    ],
)
def test_refusals(config, problem, tmp_path):
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=problem):
        read_mergekit(tmp_path / "c.yml")
