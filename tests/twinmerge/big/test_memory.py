"""No method holds more memory than its plan says, and what would take more than allowed is refused."""

import json
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.twinmerge.big.small import read, write
from twinmerge.big import peaks
from twinmerge.big.factors import extract_lora
from twinmerge.big.merge import merge_files, plan_files
from twinmerge.big.plan import GROWTH, plan_of
from twinmerge.big.twin import twin_files
from twinmerge.errors import CheckpointError
from twinmerge.functional import blocks, factorize
from twinmerge.methods import FURTHER, OURS, find

METHODS = [*OURS, *FURTHER]
OPTIONS = {"ties": [{}, {"trim": "tensor"}], "model_stock": [{}, {"rows": True}], "knots": [{}, {"elect": False}]}
SQUARE, TALL, WIDE = (96, 96), (400, 96), (96, 400)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.owners, self.bytes, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                storage = value.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if not self.owners.get(place):
                    self.bytes += size
                self.owners[place] = self.owners.get(place, 0) + 1
                weakref.finalize(value, self.drop, place, size)
        self.peak = max(self.peak, self.bytes)
        return out

    def drop(self, place, size):
        self.owners[place] -= 1
        if not self.owners[place]:
            self.bytes -= size


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that they are little beside the matrices."""
    for module in (blocks, peaks):
        monkeypatch.setattr(module, "BLOCK", 1500)
    for module, name in ((factorize, "_BLOCK_ELEMENTS"), (peaks, "CHUNK")):
        monkeypatch.setattr(module, name, 2**11)


def shaped(folder, *shapes, experts=3, dtype=torch.float32):
    """A base and experts of so many matrices."""
    draw = torch.Generator().manual_seed(0)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    base = {f"model.layers.{i}.w.weight": torch.randn(s, generator=draw) for i, s in enumerate(shapes)}
    write(folder / "base", {n: v.to(dtype) for n, v in base.items()}, config)
    for index in range(experts):
        tuned = {n: (v + 0.1 * torch.randn(v.shape, generator=draw)).to(dtype) for n, v in base.items()}
        write(folder / f"e{index}", tuned, config)
    return folder / "base", {f"e{index}": folder / f"e{index}" for index in range(experts)}


@pytest.mark.parametrize(
    ("method", "shape"),
    [(m, shape) for m in METHODS for shape in ((SQUARE, TALL, WIDE) if m in peaks.HELD else (SQUARE,))],
    ids=str,
)
def test_tensors_alive_are_within_the_plan(method, shape, tmp_path, small_blocks):
    base, experts = shaped(tmp_path, shape, experts=2 if method == "slerp" else 3, dtype=torch.bfloat16)
    for options in OPTIONS.get(method, [{}]):
        plan = plan_files(base, experts, method=method, options=options)
        with Live() as live:
            merge_files(base, experts, tmp_path / "out", method=method, options=options, memory="1GB", overwrite=True)
        counters = 3 * 2**19 * len(experts) if "elect" not in options else 0  # of thresholds, and what sums them
        assert live.peak <= plan.peak - GROWTH + counters + 20_000
        if method in peaks.HELD:  # the plan is no wild guess either
            assert live.peak + counters >= 0.25 * (plan.peak - GROWTH)


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=str)
def test_adapters_are_aligned_without_square_matrices(shape, tmp_path, small_blocks):
    base, experts = shaped(tmp_path, shape, experts=3)
    loras = {}
    for name, folder in experts.items():
        extract_lora(base, folder, tmp_path / f"lora-{name}", rank=2)
        loras[name] = tmp_path / f"lora-{name}"
    plan = plan_files(base, loras, method="knots")
    assert plan.peak < plan_files(base, experts, method="knots").peak
    with Live() as live:
        merge_files(base, loras, tmp_path / "out", method="knots", options={"density": 0.5})
    assert live.peak <= plan.peak - GROWTH + 3 * 2**19 * 3 + 20_000
    start, states = read(base), []
    for folder in loras.values():
        factors = read(folder)
        pairs = {k.split(".lora_")[0]: None for k in factors}
        states.append({
            f"{k.removeprefix('base_model.model.')}.weight":
                start[f"{k.removeprefix('base_model.model.')}.weight"]
                + factors[f"{k}.lora_B.weight"].double() @ factors[f"{k}.lora_A.weight"].double()
            for k in pairs
        })  # fmt: skip
    expected = find("knots")({n: v.double() for n, v in start.items()}, states, density=0.5)
    for name, value in read(tmp_path / "out").items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_more_memory_than_allowed_is_refused(tmp_path):
    base, experts = shaped(tmp_path, (64, 64))
    with pytest.raises(
        CheckpointError, match=r"iso_cts takes up to 0.0\d GB of memory at the tensor 'model.layers.0.w"
    ):
        merge_files(base, experts, tmp_path / "out", method="iso_cts", memory="1MB")
    with pytest.raises(CheckpointError, match=r"allow more, as in memory=0\.\dGB, or choose"):
        twin_files(base, experts, tmp_path / "out", rank=2, memory="1MB")
    assert not (tmp_path / "out").exists()
    plan = plan_of({"w": ("BF16", (28672, 8192))}, "wudi", 8, 0, 0)
    assert plan.peak > plan.limit == int(2.5 * 2 * 28672 * 8192 + 400e6)
    assert "allow more, as in memory=" in plan.refusal()


@pytest.mark.parametrize("method", METHODS)
def test_seven_billion_values_are_within_the_bound(method):
    """Shapes of Llama-2-7B in bfloat16, four experts: refused are only methods that square the long side of a layer."""
    names = {"embed": (32000, 4096), "up": (11008, 4096), "down": (4096, 11008), "o": (4096, 4096), "norm": (4096,)}
    plan = plan_of({n: ("BF16", s) for n, s in names.items()}, method, 2 if method == "slerp" else 4, 0, 0)
    assert (plan.refusal() is None) == (method not in ("wudi", "knots"))
    adapters = plan_of(
        {n: ("BF16", s) for n, s in names.items()}, method, 4, 0, 0, lora=dict.fromkeys(names, 64), all_lora=True
    )
    assert (adapters.refusal() is None) == (method != "wudi")


MEASURE = """
import json, os, sys
from pathlib import Path
from twinmerge.big.merge import merge_files, plan_files
from twinmerge.big.twin import twin_files
folder, tiny, out = map(Path, sys.argv[1:4])
def experts(where): return {f"e{i}": where / f"e{i}" for i in range(2)}
def merge(where, method, target):
    if method == "twin":
        twin_files(where / "base", experts(where), target, rank=8)
    else:
        merge_files(where / "base", experts(where), target, method=method, memory="4GB")
for method in sys.argv[4:]:
    merge(tiny, method, out / f"tiny-{method}")
    read, write = os.pipe()
    if os.fork() == 0:
        Path("/proc/self/clear_refs").write_text("5")
        start = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        merge(folder, method, out / method)
        peak = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        os.write(write, str(peak * 1024 - start).encode())
        os._exit(0)
    os.close(write)
    used = int(os.read(read, 99) or -1)
    os.wait()
    planned = plan_files(folder / "base", experts(folder), method="task_arithmetic" if method == "twin" else method)
    print(json.dumps([method, used, planned.peak]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux says the peak of a process")
def test_the_resident_memory_is_within_the_plan(tmp_path):
    shaped(tmp_path / "large", (2304, 768), (768, 2304), experts=2, dtype=torch.bfloat16)
    shaped(tmp_path / "tiny", (48, 24), (24, 48), experts=2, dtype=torch.bfloat16)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "tiny"), str(tmp_path)]
    done = subprocess.run([*command, *METHODS, "twin"], capture_output=True, text=True, check=True, timeout=1500)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(METHODS) + 1
    from twinmerge.big.merge import job_of, planned

    job = job_of(tmp_path / "large/base", {f"e{i}": tmp_path / f"large/e{i}" for i in range(2)})
    rows[-1][2] = planned(job, "task_arithmetic", rank=8).peak
    assert not [row for row in rows if not 0 < row[1] <= row[2]], rows
