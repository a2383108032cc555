"""A policy goes to ONNX and back: the same laws and actions from another runtime."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.envs import LotSizing, single_item
from rl.hpo import HPOModule, export_policy


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("simulator", [single_item(), LotSizing([10.0, 6.0], 40.0)])
def test_a_program_of_torch_export_decides_as_the_policy(simulator: Any, normalise: bool, tmp_path: Path) -> None:
    policy = HPOModule(simulator, hidden=(8,), normalise=normalise).policy
    if normalise:
        policy.follow(3 * torch.randn(50, simulator.observation_dim))
    torch.export.save(export_policy(policy), tmp_path / "policy.pt2")
    program = torch.export.load(tmp_path / "policy.pt2").module()
    inputs = _inputs(policy, 5)
    _same(program(*inputs), policy, inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("simulator", [single_item(), LotSizing([10.0, 6.0], 40.0)])
def test_onnx_decides_as_the_policy(simulator: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    policy = HPOModule(simulator, hidden=(8,)).policy
    torch.onnx.export(export_policy(policy), dynamo=True).save(str(tmp_path / "policy.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    for batch in (1, 7):
        inputs = _inputs(policy, batch)
        named = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
        _same([torch.from_numpy(each) for each in session.run(None, named)], policy, inputs)


def _inputs(policy: Any, batch: int) -> tuple[torch.Tensor, ...]:
    seen = torch.rand(batch, policy.observation_dim)
    return (seen, torch.ones(batch, len(policy.heads), dtype=torch.long)) if policy.heads else (seen,)


def _same(found: Any, policy: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(found[0].log_softmax(-1), policy.log_probs(inputs[0]))
    torch.testing.assert_close(found[1], policy._actions(inputs[0], inputs[-1], None), rtol=1e-4, atol=1e-4)
