"""Statistics of experts' data against sums written out, and merges of files by them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.twinmerge.big.small import read, write_family
from twinmerge.big.merge import merge_files, plan_files
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError
from twinmerge.functional import blocks
from twinmerge.functional.fisher import fisher
from twinmerge.functional.regmean import regmean
from twinmerge.gathering import fisher_information, input_grams, sampled_fisher_information


@pytest.mark.parametrize("labels", [3, 1])
def test_fisher_information_is_the_expected_squared_slope(labels):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, labels), torch.randn(6, 4)
    found = fisher_information(
        {**dict(layer.named_parameters()), "unused": torch.ones(2, requires_grad=True)},
        [lambda x=x: layer(x) for x in inputs],
    )
    weight, bias, x = layer.weight.detach().numpy(), layer.bias.detach().numpy(), inputs.numpy()
    expected = np.zeros((labels, 4))
    for row in x:
        z = weight @ row + bias
        p = np.exp(z - z.max())
        p /= p.sum()
        for y in range(labels):  # the slope of log p_y by z is the unit vector less p
            slope = np.eye(labels)[y] - p if labels > 1 else np.ones(1)
            expected += (p[y] if labels > 1 else 1) * np.outer(slope, row) ** 2
    np.testing.assert_allclose(found["weight"], expected / len(x), rtol=1e-4, atol=1e-7)
    assert not found["unused"].any()
    with pytest.raises(ValueError, match="no input"):
        fisher_information({}, [])


def test_sampled_fisher_information_is_the_exact_one_on_average():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 3), torch.randn(2, 5, 4)  # five places an input
    exact = fisher_information(dict(layer.named_parameters()), [lambda x=x: layer(x) for x in inputs.flatten(0, 1)])
    repeats = 700
    found = sampled_fisher_information(
        {**dict(layer.named_parameters()), "unused": torch.ones(2, requires_grad=True)},
        [lambda x=x: layer(x) for x in inputs] * repeats,
        seed=1,
    )
    for name, value in exact.items():  # of all places of an input
        torch.testing.assert_close(found[name], 5 * value, rtol=0.15, atol=0.02)
    assert not found["unused"].any()
    with pytest.raises(ValueError, match="no input"):
        sampled_fisher_information({}, [])


def test_gram_matrices_leave_padding_out():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    more = torch.randn(3, 3)
    found = input_grams(model, [(lambda: model(x), mask), (lambda: model(more), None)])
    rows = torch.cat([x[0], x[1, :2], more])
    torch.testing.assert_close(found["0.weight"], rows.T @ rows / 9)
    hidden = model[1](model[0](rows)).detach()
    torch.testing.assert_close(found["2.weight"], hidden.T @ hidden / 9)
    assert not model[0]._forward_pre_hooks


@pytest.fixture
def family(tmp_path):
    base, experts = write_family(tmp_path, 2)
    draw, files = torch.Generator().manual_seed(3), {}
    for kind in ("fisher", "regmean"):
        for task in experts:
            made = {}
            for name, value in read(base).items():
                if kind == "fisher":
                    made[name] = torch.rand(value.shape, generator=draw)
                elif value.dim() == 2 and "layers" in name:
                    rows = torch.randn(100, value.shape[1], generator=draw)
                    made[name] = rows.T @ rows
            files[kind, task] = tmp_path / f"{kind}-{task}.safetensors"
            save_file(made, files[kind, task])
    return base, experts, files


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_files_are_merged_by_statistics_in_files(method, family, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 500)
    base, experts, files = family
    given = {task: files[method, task] for task in experts}
    states = [read(folder) for folder in (base, *experts.values())]
    known = [read_one(given[task]) for task in experts]
    if method == "fisher":
        expected = fisher(states[0], states[1:], information=known, floor=0.1)
        options = {"floor": 0.1}
    else:
        expected = regmean(states[0], states[1:], inputs=known, shrink=0.3)
        options = {"shrink": 0.3}
    merge_files(base, experts, tmp_path / "out", method=method, options=options, statistics=given)
    for name, value in read(tmp_path / "out").items():
        assert torch.equal(value, expected[name]), name
    twin_files(base, experts, tmp_path / "twin", method=method, options=options, statistics=given, rank=2)
    assert all(torch.equal(read(tmp_path / "twin")[name], value) for name, value in expected.items())


def read_one(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_statistics_that_do_not_fit_are_refused(family, tmp_path):
    base, experts, files = family
    with pytest.raises(ValueError, match="fisher needs statistics of every expert and of no other, but 'e0'"):
        plan_files(base, experts, method="fisher")
    with pytest.raises(ValueError, match="ties takes none; fisher and regmean do"):
        plan_files(base, experts, method="ties", statistics={"e0": "a"})
    with pytest.raises(ValueError, match="has no option 'information'"):
        plan_files(base, experts, method="fisher", options={"information": 1})
    with pytest.raises(CheckpointError, match="are no file"):
        plan_files(base, experts, method="fisher", statistics={"e0": tmp_path / "no", "e1": tmp_path / "no"})
    swapped = {task: files["regmean", task] for task in experts}
    with pytest.raises(ValueError, match=r"Fisher information of 'lm_head.weight' must be of shape"):
        merge_files(base, experts, tmp_path / "out", method="fisher", statistics=swapped)
    assert not (tmp_path / "out").exists()
