"""A policy in one small file: its computation as data, which loads without the simulator and without its code."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from rl.envs.hybrid import State
from rl.hpo.acting import Actor, drawn
from rl.hpo.policies import HybridPolicy

FORMAT = "gapbridge-policy-3"
# What a file may call: operations of torch that change none of their inputs, and arithmetic of sizes.
ARITHMETIC: dict[str, Callable[..., object]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
WORDS = ("none", "tanh", "floor", "trunc")
KINDS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class SavedPolicy(Actor):
    """A policy as :func:`load_policy` gives it; it only acts.

    Args:
        header: What the file says of it.
        tensors: Weights and constants by name.
    """

    def __init__(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.header, self.tensors = header, tensors
        self.observation_dim, self.masked = header["observation_dim"], header["masked"]
        self.shape, self.heads = (header["n_modes"], header["action_dim"]), tuple(header["heads"])
        self._calls = [
            [(call["name"], _operation(call["call"]), call) for call in _needed(header["calls"], output)]
            for output in header["outputs"]
        ]
        self._where = torch.zeros((), dtype=getattr(torch, header["dtype"]))

    def to(self, device: torch.device | str) -> Self:
        """Move it to a device."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
        self._where = self._where.to(device)
        return self

    @property
    def _place(self) -> Tensor:
        return self._where

    def _law(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        logits = self._output(0, seen)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.log_softmax(-1)

    def _actions(self, seen: Tensor, mode: Tensor, state: State | None) -> Tensor:
        if state is not None:
            raise ValueError("a saved policy acts on observations alone; leave state out.")
        return self._output(1, seen, mode)

    def _output(self, which: int, *inputs: Tensor) -> Tensor:
        """One of the outputs; only what it needs is computed, the logits without the mode for example."""
        values: dict[str, Any] = {**self.tensors, **dict(zip(self.header["inputs"], inputs, strict=False))}
        for name, call, what in self._calls[which]:
            arguments = [self._read(value, values) for value in what["args"]]
            options = {key: self._read(value, values) for key, value in what["kwargs"].items()}
            values[name] = call(*arguments, **options)
        found: Tensor = values[self.header["outputs"][which]]
        return found

    def _read(self, value: object, values: Mapping[str, object]) -> object:
        if isinstance(value, list):
            return [self._read(one, values) for one in value]
        if not isinstance(value, dict):
            return value
        ((kind, what),) = value.items()
        if kind == "value":
            return values[what]
        if kind == "number":
            return float(what)
        if kind == "device":
            return self._where.device
        found = getattr(torch, what) if kind in KINDS else None
        if not isinstance(found, KINDS.get(kind, ())):
            raise ValueError(f"the policy file has an argument {value!r} that is none of a policy's; it is damaged.")
        return found


class _Program(nn.Module):
    """Logits of all modes, and the feasible actions of all of them, or with heads of those given."""

    def __init__(self, policy: HybridPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, mode: Tensor | None = None) -> tuple[Tensor, Tensor]:
        policy = self.policy
        unread = observation.new_zeros(1, dtype=torch.long) if mode is None else mode
        return policy.logits(observation), policy._actions(observation, unread, None)


def export_policy(policy: HybridPolicy) -> torch.export.ExportedProgram:
    """The policy as a program of `torch.export`: observations (batch, O) to logits (batch, J), actions (batch, J, m).

    With heads it also takes modes, int64 (batch, H), and gives logits (batch, H, J) and the actions of these modes
    (batch, 1, m); the logits do not depend on the modes, so that a first run with any of them says which to choose.

    It runs without the simulator, in any runtime that takes such programs; ``torch.onnx.export`` makes ONNX of it.

    Args:
        policy: A policy that is bound to a simulator, as ``module.policy`` is.

    Raises:
        ValueError: If the actions cannot be told from observations, or cannot be traced.
    """
    place = policy.log_std
    example: tuple[Tensor, ...] = (torch.zeros(2, policy.observation_dim, dtype=place.dtype, device=place.device),)
    if policy.heads:
        example = (*example, torch.zeros(2, len(policy.heads), dtype=torch.long, device=place.device))
    policy._actions(example[0], example[-1], None)  # a plain error for what cannot be decided
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    try:
        with torch.no_grad():
            return torch.export.export(_Program(policy).eval(), example, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"the policy cannot be traced ({str(error).splitlines()[0]}); write networks, seen_state and action_map in "
            "operations of torch, without branches on values."
        ) from error


def save_policy(policy: HybridPolicy, path: str | Path) -> None:
    """Save what :meth:`act` computes, networks and action map, to one file in the format of safetensors.

    Args:
        policy: A policy that is bound to a simulator, as ``module.policy`` is.
        path: The file.

    Raises:
        ValueError: If the policy cannot be exported, or does what a file cannot hold.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> policy = HybridPolicy(1, 2, 1, [8])
        >>> policy.bind(Newsvendor())
        >>> save_policy(policy, getfixture("tmp_path") / "policy.safetensors")
        >>> load_policy(getfixture("tmp_path") / "policy.safetensors").act([0.5]).parameters.shape
        torch.Size([1])
    """
    program = export_policy(policy).run_decompositions()
    tensors: dict[str, Tensor] = {}
    entries = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == torch.export.graph_signature.InputKind.USER_INPUT:
            entries.append(spec.arg.name)
            continue
        held = program.state_dict if spec.target in program.state_dict else program.constants
        tensors[spec.arg.name] = held[spec.target].detach().cpu().contiguous().clone()
    nodes = {node.name: node for node in program.graph.nodes}
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    needed, waiting = set(outputs), list(outputs)
    while waiting:  # what no output needs, checks of sizes for example, stays out
        for before in nodes[waiting.pop()].all_input_nodes:
            if before.name not in needed:
                needed.add(before.name)
                waiting.append(before.name)
    calls = [_call(node) for node in program.graph.nodes if node.name in needed and node.op == "call_function"]
    header = {
        "format": FORMAT,
        "observation_dim": policy.observation_dim,
        "n_modes": policy.shape[0],
        "action_dim": policy.shape[1],
        "heads": policy.heads,
        "masked": policy.masked,
        "dtype": str(policy.log_std.dtype).removeprefix("torch."),
        "inputs": entries,
        "outputs": outputs,
        "calls": calls,
    }
    kept = {name: value for name, value in tensors.items() if name in needed}
    _check_equal(policy, SavedPolicy(header, kept))
    text = json.dumps(header, allow_nan=False)
    save_file(kept, path, metadata={"policy": text, "sha256": _digest(text, kept)})


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> SavedPolicy:
    """Load what :func:`save_policy` saved.

    Args:
        path: The file.
        device: Where it acts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no policy, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(told.get("policy", "{}"))
        known = isinstance(header, dict) and header.get("format") == FORMAT
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is no whole policy file ({reason}); copy it again, or save the policy anew."
        ) from error
    if not known:
        raise ValueError(f"{path} holds no policy of format {FORMAT}; save one with save_policy.")
    if told.get("sha256") != _digest(told["policy"], tensors):
        raise ValueError(f"{path} was changed since it was saved (sha256 differs); copy it again.")
    return SavedPolicy(header, tensors).to(device)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(text.encode() + save(tensors)).hexdigest()


def _check_equal(policy: HybridPolicy, saved: SavedPolicy) -> None:
    """A trace may have frozen what depends on the values: it must decide as the policy does, on other batches too."""
    place = policy.log_std
    for batch, scale in ((1, 1.0), (3, 1.0), (64, 5.0)):
        generator = torch.Generator().manual_seed(batch)
        seen = scale * torch.randn(batch, policy.observation_dim, generator=generator)
        with torch.no_grad():
            law = policy._law(seen.to(place), None)
            mode = drawn(law.cpu(), deterministic=False, generator=generator)
            actions = policy._actions(seen.to(place), mode.to(place.device), None)
            here = saved.to("cpu")
            found = here._law(seen.to(place.dtype), None), here._actions(seen.to(place.dtype), mode, None)
        for one, other in zip(found, (law, actions), strict=True):
            if not torch.allclose(one, other.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ValueError(
                    "the saved policy would decide otherwise than the policy itself: something in it branches on "
                    "values or draws at random; write it in operations of torch, torch.where in place of if."
                )


def _needed(calls: list[dict[str, Any]], output: str) -> list[dict[str, Any]]:
    """The calls that an output depends on, in order."""
    needed, found = {output}, []
    for call in reversed(calls):
        if call["name"] in needed:
            needed |= set(_names([*call["args"], *call["kwargs"].values()]))
            found.append(call)
    return found[::-1]


def _names(value: object) -> Iterator[str]:
    """Names of the values among arguments."""
    if isinstance(value, list):
        for one in value:
            yield from _names(one)
    elif isinstance(value, dict) and "value" in value:
        yield value["value"]


def _call(node: torch.fx.Node) -> dict[str, object]:
    target: object = node.target
    name = f"aten::{target}" if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    name = name.replace("aten::aten.", "aten.")
    _operation(name)
    return {
        "name": node.name,
        "call": name,
        "args": [_written(value) for value in node.args],
        "kwargs": {key: _written(value) for key, value in node.kwargs.items()},
    }


def _operation(name: str) -> Callable[..., object]:
    if name in ARITHMETIC:
        return ARITHMETIC[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten" and "from_file" not in parts[1]:
        found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise ValueError(
        f"the policy calls {name}, which a policy file cannot hold; write networks, seen_state and action_map in plain "
        "operations of torch."
    )


def _written(value: object) -> object:
    if isinstance(value, torch.fx.Node):
        return {"value": value.name}
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, bool | int | float) or value in WORDS:
        return value
    if isinstance(value, torch.device):
        return {"device": "where the policy is"}
    for kind, found in KINDS.items():
        if isinstance(value, found):
            return {kind: str(value).removeprefix("torch.")}
    raise ValueError(f"the policy has an argument {value!r} that a policy file cannot hold.")
