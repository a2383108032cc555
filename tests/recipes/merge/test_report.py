"""The table of a merge: its numbers by hand, and the bytes of every alternative."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from recipes.merge.evaluation import Scores
from recipes.merge.report import EXPLAINED, finish, places, result, sizes
from recipes.merge.warnings import warnings_of
from recipes.running.folder import RunFolder

ROWS = {
    "experts": Scores({"a": 0.9, "b": 0.8}, 2.0),
    "pretrained": Scores({"a": 0.5, "b": 0.79}, 1.0),
    "average": Scores({"a": 0.6, "b": 0.8}, 1.0),
    "ties": Scores({"a": 0.7, "b": 0.7}, 1.0),
    "routed": Scores({"a": 0.8, "b": 0.8}, 1.5),
}
STATIC = {"average": (0.95, {}), "ties": (0.90, {"scale": 0.5})}


def test_the_best_static_merge_is_the_best_on_validation_and_not_on_test():
    outcome = result(ROWS, STATIC, {"accuracy": 0.75}, {"routed": 7, "experts": 9})
    assert outcome["best_static"] == "average"
    assert outcome["best_static_normalised"] == pytest.approx((0.6 / 0.9 + 1) / 2)
    assert outcome["tuned"] == {"average": {}, "ties": {"scale": 0.5}}
    assert outcome["router"] == {"accuracy": 0.75}
    routed = outcome["rows"]["routed"]
    assert routed["gap_recovered_tasks"] == pytest.approx({"a": 0.75})  # b's gap is too small to tell
    assert routed["gap_recovered"] == pytest.approx(0.75)
    assert outcome["routed_gap_recovered"] == routed["gap_recovered"]
    assert outcome["routed_normalised"] == routed["normalised"] == pytest.approx((0.8 / 0.9 + 1) / 2)
    assert (routed["mean"], routed["ms_per_input"], routed["bytes"]) == (pytest.approx(0.8), 1.5, 7)
    assert outcome["rows"]["ties"]["bytes"] is None


def test_without_a_gap_nothing_is_recovered():
    rows = {name: Scores({"a": 0.5}, 1.0) for name in ROWS}
    outcome = result(rows, STATIC, {"accuracy": 1.0}, {})
    assert outcome["routed_gap_recovered"] is None


def test_bytes_of_every_alternative(tmp_path):
    (tmp_path / "experts/a").mkdir(parents=True)
    for name, count in (("model.safetensors", 100), ("experts/a/adapter_model.safetensors", 11), ("twin.json", 5)):
        (tmp_path / name).write_bytes(b"0" * count)
    full = {"a": SimpleNamespace(bytes=90, terms={}), "b": SimpleNamespace(bytes=95, terms={})}
    found = sizes(90, full, tmp_path)
    assert set(found) == set(EXPLAINED)
    assert (found["experts"], found["routed"], found["oracle"], found["ties"]) == (185, 111, 111, 90)
    adapters = {t: SimpleNamespace(bytes=10, terms={"w": ()}) for t in "ab"}
    assert sizes(90, adapters, tmp_path)["experts"] == 110  # the base is needed under them


def test_bytes_of_a_twin_by_their_place(tmp_path):
    made = {
        "model": {"w": torch.zeros(10, 10)},
        "experts/a/adapter_model": {"x.lora_A.weight": torch.zeros(2, 5), "x.norm.weight": torch.zeros(3)},
        "heads/a": {"out_proj.weight": torch.zeros(2, 2)},
        "router/router": {"net.weight": torch.zeros(4)},
    }
    for name, tensors in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, tmp_path / f"{name}.safetensors")
    found = places(tmp_path)
    assert (found["factors"], found["kept whole"]) == (40, 12)
    assert 400 < found["shared expert"] < 600
    assert all(found.values())


def task(name, metric="accuracy", kind="classification"):
    return SimpleNamespace(name=name, metric=metric, kind=kind)


def test_the_report_warns_of_what_proves_nothing():
    assert warnings_of(ROWS, "average", [task("a"), task("b")], {"routed": 7, "experts": 9}) == []
    probe = ROWS | {"linear probe": Scores({"a": 0.9, "b": 0.5}, 1.0)}
    assert warnings_of(probe, "ties")[0].startswith(
        "The experts of a score no better than a linear probe on the frozen base"
    )
    weak = ROWS | {"pretrained": Scores({"a": 0.9, "b": 0.8}, 1.0)}
    assert warnings_of(weak, "ties")[0].startswith("The experts of a and b score no better than the base itself")
    under = warnings_of(ROWS | {"ties": Scores({"a": 0.9, "b": 0.8}, 1.0)}, "ties")
    assert under[0].startswith("The routed twin (94.4% of the experts) is under the static merge ties (100.0%)")
    kinds = [task("a", "pearson_spearman", "regression"), task("b")]
    said = warnings_of(ROWS | {"routed, head routed too": ROWS["routed"]}, "average", kinds)
    assert "a wrong head on a counts as the mean" in said[0]
    assert "averages unlike metrics (pearson_spearman and accuracy)" in said[1]
    assert "larger than its experts together" in warnings_of(ROWS, "average", (), {"routed": 9, "experts": 7})[0]


def test_the_report_shows_table_and_figures(tmp_path, capsys):
    folder = RunFolder(tmp_path, "merge-test")
    outcome = result(ROWS, STATIC, {"accuracy": 0.75}, {"routed": 7, "experts": 5})
    outcome["twin_bytes"] = {"shared expert": 6, "factors": 1}
    residuals = {"a": {"w": 0.5, "v": 0.1}, "b": {"w": 0.2}}
    finish(folder, outcome, residuals, [[0.9, 0.1], [0.3, 0.7]])
    said = capsys.readouterr().out
    assert "Routed twin: 94.4% of the experts, 75.0% of the gap to the experts recovered." in said
    assert "(average): 83.3%" in said
    page = (tmp_path / "report.html").read_text()
    assert "The twin (0.0 MB) is larger than its experts together" in said
    assert "The twin (0.0 MB) is larger than its experts together" in page
    assert "Routed twin: 94.4% of the experts, 75.0% of the gap to the experts recovered." in page
    assert "Bytes of the twin" in page
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(outcome))
    with (tmp_path / "figures/mixture.csv").open() as file:
        assert list(csv.reader(file)) == [["task", "a", "b"], ["a", "0.9", "0.1"], ["b", "0.3", "0.7"]]
    with (tmp_path / "figures/residuals.csv").open() as file:
        assert len(list(csv.reader(file))) == 4
    assert {f.stem for f in (tmp_path / "figures").glob("*.png")} == {"normalised", "tasks", "mixture", "residuals"}
