"""Merging files block by block gives the tensors that merging in memory gives, and survives being killed."""

import json

import pytest
import torch

from tests.twinmerge.big.small import read, write_family
from twinmerge.big import peaks
from twinmerge.big.merge import merge_files, plan_files, size_in_bytes
from twinmerge.errors import CheckpointError
from twinmerge.functional import blocks
from twinmerge.methods import find

CASES = [
    ("average", {}),
    ("linear", {"weights": [1.0, 2.0, 0.5]}),
    ("task_arithmetic", {"scale": 0.4}),
    ("task_arithmetic", {"scale": 1.0, "weights": [[0.1, 0.9], {"mlp": 0.5, "*": 0.2}, 0.3]}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "trim": "tensor"}),
    ("dare", {"drop": 0.5}),
    ("dare_ties", {"drop": 0.5}),
    ("della", {}),
    ("breadcrumbs", {"elect": True}),
    ("karcher", {}),
    ("sce", {"select": 0.5}),
    ("iso_c", {}),
    ("iso_cts", {}),
    ("knots", {}),
    ("wudi", {}),
]


@pytest.fixture(scope="module", params=[(False, torch.float32, 1), (True, torch.bfloat16, 3)], ids=str)
def family(request, tmp_path_factory):
    tied, dtype, files = request.param
    return write_family(tmp_path_factory.mktemp("family"), tied=tied, dtype=dtype, files=files)


@pytest.mark.parametrize(("method", "options"), CASES)
def test_files_and_memory_give_the_same_tensors(family, tmp_path, method, options, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 500)  # several blocks a tensor
    base, experts = family
    merge_files(base, experts, tmp_path / "out", method=method, options=options, shard="40KB")
    states = [read(folder) for folder in (base, *experts.values())]
    expected = find(method)(states[0], states[1:], **options)
    found = read(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.slow  # transformers
def test_the_folder_is_an_ordinary_model(family, tmp_path):
    base, experts = family
    merge_files(base, experts, tmp_path / "out", shard="40KB", dtype="float16")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert not list(tmp_path.glob(".*"))


def test_a_killed_merge_goes_on_and_ends_in_the_same_bytes(family, tmp_path, monkeypatch):
    from twinmerge.big.writing import Journal

    base, experts = family
    merge_files(base, experts, tmp_path / "whole", method="ties", shard="40KB")
    noted, note = [], Journal.note

    def stop(self, what):
        if len(noted) == 7:
            raise KeyboardInterrupt
        noted.append(what)
        note(self, what)

    monkeypatch.setattr(Journal, "note", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files(base, experts, tmp_path / "out", method="ties", shard="40KB")
    assert not (tmp_path / "out").exists()
    again = []
    monkeypatch.setattr(Journal, "note", lambda self, what: (again.append(what), note(self, what)))
    merge_files(base, experts, tmp_path / "out", method="ties", shard="40KB")
    assert not set(again) & set(noted)
    assert len(again) + len(noted) == len(read(tmp_path / "out"))
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_another_task_does_not_go_on_in_what_was_left(family, tmp_path, monkeypatch):
    from twinmerge.big.streams import FileModel

    base, experts = family
    merge = FileModel.merge

    def stop(self, *arguments):
        merge(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(FileModel, "merge", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files(base, experts, tmp_path / "out", options={"scale": 0.9})
    monkeypatch.setattr(FileModel, "merge", merge)
    merge_files(base, experts, tmp_path / "out", options={"scale": 0.1})
    merge_files(base, experts, tmp_path / "expected", options={"scale": 0.1})
    for name, value in read(tmp_path / "expected").items():
        assert torch.equal(read(tmp_path / "out")[name], value)


def test_options_by_expert_and_refusals(family, tmp_path):
    base, experts = family
    named = {"weights": {"e1": 2.0, "e0": 1.0, "e2": 0.0}, "scale": 0.5}
    listed = {"weights": [1.0, 2.0, 0.0], "scale": 0.5}
    for folder, options in (("a", named), ("b", listed)):
        merge_files(base, experts, tmp_path / folder, options=options)
    for name, value in read(tmp_path / "a").items():
        assert torch.equal(read(tmp_path / "b")[name], value)
    with pytest.raises(ValueError, match="by expert, but 'e2' is missing"):
        merge_files(base, experts, tmp_path / "c", options={"weights": {"e0": 1.0, "e1": 1.0}})
    with pytest.raises(ValueError, match="has no option 'scala'; did you mean 'scale'"):
        plan_files(base, experts, options={"scala": 0.5})
    with pytest.warns(UserWarning, match="an option is given for 'mpl', which no tensor's name has in it"):
        plan_files(base, experts, options={"scale": {"mpl": 0.5, "*": 1.0}})
    with pytest.raises(ValueError, match="give a number above 0 with B"):
        size_in_bytes("5 apples")
    with pytest.raises(FileExistsError):
        merge_files(base, experts, tmp_path / "a")
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_merged_is_refused(tmp_path):
    base, experts = write_family(tmp_path, experts=1)
    other, _ = write_family(tmp_path / "wide", experts=0, hidden=48)
    with pytest.raises(CheckpointError, match="hidden_size"):
        plan_files(base, {"x": other})
    from safetensors.torch import load_file, save_file

    file = experts["e0"] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.up_proj.weight' of expert 'e0' contains NaN"):
        merge_files(base, experts, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "out").exists()


def test_a_plan_comes_from_headers(family):
    base, experts = family
    plan = plan_files(base, experts, method="ties")
    tensors = read(base)
    assert plan.tensors == len(tensors)
    assert plan.values == sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert (plan.read, plan.written, plan.passes) == (4 * size, size, 3)
    assert len(plan.lines()) == 4
    assert peaks.BLOCK == blocks.BLOCK
