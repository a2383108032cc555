"""The recipe merge_files through the real command."""

import json

import pytest
import torch

from recipes.fields import FieldError
from recipes.merge.baselines import Baselines, Shared
from recipes.run import main
from tests.twinmerge import foreign
from tests.twinmerge.big.small import read, write_family


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, experts = write_family(tmp_path / "models", 2)
    experts["e0"].rename("models/math")
    experts["e1"].rename("models/code")
    return tmp_path


def test_the_tiny_recipe_checks_merges_and_tells(models, capsys):
    assert main(["merge_files_tiny.yaml", "--check"]) == 0
    assert "memory: at most" in capsys.readouterr().out
    assert not (models / "runs").exists()
    assert main(["merge_files_tiny.yaml", "--quiet"]) == 0
    run = models / "runs/merge_files-tiny/1"
    assert json.loads((run / "result.json").read_text())["experts"] == ["math", "code"]
    start, math, code = (read(models / "models" / name) for name in ("base", "math", "code"))
    merged = read(run / "merged")
    for layer, weight in ((0, 0.5), (2, 1.0)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        expected = start[name] + 0.5 * (math[name] - start[name] + weight * (code[name] - start[name]))
        torch.testing.assert_close(merged[name], expected)


def test_a_rank_makes_a_twin_and_mistakes_are_one_sentence(models, capsys):
    assert main(["merge_files_tiny.yaml", "rank=3", "--out", "twin", "--quiet"]) == 0
    card = json.loads((models / "twin/merged/twin.json").read_text())
    assert set(card["ranks"]["math"].values()) == {3}
    for override, said in (
        ("options.scala=1.0", "options.scala: task_arithmetic has no such option"),
        ("method=tie", "method: unknown merge method 'tie'; did you mean 'ties'"),
        ("experts.math=./none", "none is not a folder"),
        ("shard=big", "the size is 'big'"),
        ("options.scale=much", "scale: expected a finite number"),
        ("options.weights={math: 1.0}", "option 'weights' is given by expert, but 'code' is missing"),
        ("rank=1000", "the rank is 1000, but the largest matrix takes a rank from 1 to 32"),
    ):
        assert main(["merge_files_tiny.yaml", override, "--check"]) == 2
        assert said in capsys.readouterr().err
    assert main(["merge_files_tiny.yaml", "rank=3", "density=0.1", "--check"]) == 2
    assert "expected one of rank, density, energy, budget at most" in capsys.readouterr().err


def test_further_methods_are_tuned_when_they_are_named():
    plain = Baselines(scales=[0.5], drops=[0.7])
    assert {method for method, _ in plain.grid()} == {
        "average",
        "task_arithmetic",
        "ties",
        "dare",
        "dare_ties",
        "tsv_m",
    }
    named = Baselines(scales=[0.5, 1.0], further=["sce", "karcher"])
    assert named.grid()[-3:] == [("sce", {"scale": 0.5}), ("sce", {"scale": 1.0}), ("karcher", {})]
    with pytest.raises(FieldError, match="unknown merge method 'sca'; did you mean 'sce'"):
        Baselines(further=["sca"])
    assert Shared("breadcrumbs", {"density": 0.8, "gamma": 0.02}).method == "breadcrumbs"


def test_a_twin_of_the_recipe_has_a_router_from_texts(models, capsys):
    foreign.tokenizer().save_pretrained(models / "models/base")
    for name, start in (("math", 0), ("code", 40)):
        lines = (f"word{start + i} word{start + i + 1}" for i in range(10))
        (models / f"{name}.txt").write_text("\n".join(lines))
    words = ["rank=2", "router=knn", "texts.math=math.txt", "texts.code=code.txt", "memory=2GB"]
    assert main(["merge_files_tiny.yaml", *words, "--out", "twin", "--quiet"]) == 0
    card = json.loads((models / "twin/merged/twin.json").read_text())
    assert card["router"]["kind"] == "knn"
    assert (models / "twin/merged/router/router.safetensors").is_file()
    assert main(["merge_files_tiny.yaml", "memory=1MB", "--check"]) == 2
    assert "memory: task_arithmetic takes up to 0.0" in capsys.readouterr().err
    for overrides, said in (
        (["router=knn"], "router: expected none without one of rank, density, energy, budget and texts"),
        (["rank=2", "texts.math=math.txt"], "texts: expected none without a router"),
        (["method=fisher", "options={}"], "fisher needs statistics of every expert"),
        (["vocabulary=longer"], "vocabulary"),
    ):
        assert main(["merge_files_tiny.yaml", *overrides, "--check"]) == 2
        assert said in capsys.readouterr().err
