"""Merging on a GPU: no tensor of the CPU meets one of the device, and a device that is not there is one sentence."""

import pytest
import torch

from recipes.run import main
from tests.twinmerge.big.elsewhere import Elsewhere, PretendedCuda
from tests.twinmerge.big.small import read, write_family
from twinmerge.big import devices, merge
from twinmerge.big.command import main as imported
from twinmerge.big.factors import extract_lora
from twinmerge.big.merge import merge_files
from twinmerge.big.twin import twin_files
from twinmerge.functional import blocks
from twinmerge.methods import FURTHER, OURS


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    base, experts = write_family(folder, 2, layers=1)
    for name, where in experts.items():
        extract_lora(base, where, folder / f"lora-{name}", rank=2)
    return base, experts, {name: folder / f"lora-{name}" for name in experts}


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(blocks, "BLOCK", 3000)
    monkeypatch.setattr(PretendedCuda, "count", 0)


def test_the_pretended_device_refuses_what_a_real_one_would():
    with PretendedCuda():
        there = torch.ones(3).to("cuda")
        assert isinstance(there, Elsewhere)
        assert there.device.type == "cuda"
        assert isinstance(torch.zeros(3, device=there.device), Elsewhere)
        assert isinstance(there + 1, Elsewhere)
        assert isinstance(there.new_zeros(2), Elsewhere)
        assert not isinstance(there.cpu(), Elsewhere)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="no numpy"):
            there.numpy()


QUICK = ("ties", "iso_cts", "knots", "wudi")  # one of each kind


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in (*OURS, *FURTHER)]
)
def test_every_method_stays_on_the_device(method, family, tmp_path, cuda):
    base, experts, loras = family
    for given in (experts, loras) if method == "knots" else (experts,):
        with PretendedCuda():
            merge_files(base, given, tmp_path / "there", method=method, device="cuda", overwrite=True)
        assert PretendedCuda.count > 20
        merge_files(base, given, tmp_path / "here", method=method, overwrite=True)
        here, there = read(tmp_path / "here"), read(tmp_path / "there")
        for name, value in here.items():
            torch.testing.assert_close(there[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", [{"rank": 2}, {"energy": 0.5}], ids=str)
def test_twins_are_factorised_on_the_device(policy, family, tmp_path, cuda):
    base, experts, _ = family
    with PretendedCuda():
        twin_files(base, experts, tmp_path / "there", device="cuda", **policy)
    assert PretendedCuda.count > 50
    twin_files(base, experts, tmp_path / "here", **policy)
    for task in experts:
        here, there = (read(tmp_path / side / "experts" / task) for side in ("here", "there"))
        for key in here:
            assert there[key].shape == here[key].shape


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "torch finds no CUDA device on this machine; give cpu"), ("gpu", "give cpu, or cuda where there is"),
     ("meta", "which holds no numbers; give cpu")],
)  # fmt: skip
def test_a_device_that_is_not_there_is_one_sentence(device, said, family, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base, experts, _ = family
    for call in (
        lambda: merge_files(base, experts, tmp_path / "out", device=device),
        lambda: twin_files(base, experts, tmp_path / "out", rank=2, device=device),
        lambda: extract_lora(base, experts["e0"], tmp_path / "out", rank=2, device=device),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    words = [f"base={base}", *(f"experts.{name}={where}" for name, where in experts.items()), f"device={device}"]
    assert main(["merge_files_tiny.yaml", *words, "options={}", "--check"]) == 2
    assert said in capsys.readouterr().err
    assert imported([str(tmp_path / "no.yml"), "--check", "--device", device]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert merge.check_device is devices.check_device
