"""A traced computation in one small file: weights and calls as data, which load without the code that made them."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

# What a file may call: operations of torch that change none of their inputs, and arithmetic of sizes.
ARITHMETIC: dict[str, Callable[..., object]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
WORDS = ("none", "tanh", "floor", "trunc")
KINDS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


Header = dict[str, Any]  # of a file: JSON, whose parts are checked where they are read


class Program:
    """A computation as a file holds it: what it calls, one call after the other.

    Args:
        header: ``inputs`` and ``outputs``, names of values; ``calls``; ``dtype``, the floating type of the weights.
        tensors: Weights and constants by name.

    Raises:
        ValueError: If it calls what a file may not.
    """

    def __init__(self, header: Header, tensors: dict[str, Tensor]) -> None:
        self.header, self.tensors = header, tensors
        self._calls = [
            [(call["name"], _operation(call["call"]), call) for call in _needed(header["calls"], output)]
            for output in header["outputs"]
        ]
        self.place = torch.zeros((), dtype=getattr(torch, header["dtype"]))

    def to(self, device: torch.device | str) -> None:
        """Move it to a device."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
        self.place = self.place.to(device)

    def output(self, which: int, *inputs: Tensor) -> Tensor:
        """One of the outputs; only what it needs is computed, so that inputs it does not need may be left out.

        Args:
            which: Its number.
            inputs: In their order.
        """
        values: Header = {**self.tensors, **dict(zip(self.header["inputs"], inputs, strict=False))}
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
            return self.place.device
        found = getattr(torch, what) if kind in KINDS else None
        if not isinstance(found, KINDS.get(kind, ())):
            raise ValueError(f"the policy file has an argument {value!r} that is none of a policy's; it is damaged.")
        return found


def trace(module: nn.Module, example: tuple[Tensor, ...], advice: str) -> torch.export.ExportedProgram:
    """A module as a program of `torch.export`, for batches of any length.

    Args:
        module: What is traced.
        example: Its inputs, tensors whose first axis is the batch, of length 2.
        advice: What to write otherwise, for the error.

    Raises:
        ValueError: If it cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    learning = [part for part in module.modules() if part.training]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of attributes that a recurrent layer sets while it is traced; what is written is compared afterwards.
            warnings.simplefilter("ignore", UserWarning)
            return torch.export.export(module.eval(), example, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(f"the policy cannot be traced ({str(error).splitlines()[0]}); {advice}.") from error
    finally:
        for part in learning:
            part.training = True


class Traced(NamedTuple):
    """What a file says of a program.

    Attributes:
        header: As `Program` reads it.
        tensors: Weights and constants by name.
        sources: Names of the weights in the module's state, by their name here.
    """

    header: Header
    tensors: dict[str, Tensor]
    sources: dict[str, str]

    def with_state(self, state: Mapping[str, Tensor]) -> Traced:
        """The same computation with other weights, those of a module of the same build."""
        weights = {name: _stored(state[source]) for name, source in self.sources.items()}
        return Traced(self.header, self.tensors | weights, self.sources)


def as_data(program: torch.export.ExportedProgram, dtype: torch.dtype) -> Traced:
    """What a file says of a program.

    Args:
        program: As :func:`trace` gives it.
        dtype: The floating type of the weights.

    Raises:
        ValueError: If it does what a file cannot hold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as in `trace`
        program = program.run_decompositions()
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    entries = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == torch.export.graph_signature.InputKind.USER_INPUT:
            entries.append(spec.arg.name)
            continue
        if spec.target in program.state_dict:
            sources[spec.arg.name] = spec.target
        held = program.state_dict if spec.target in program.state_dict else program.constants
        tensors[spec.arg.name] = _stored(held[spec.target])
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
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": entries,
        "outputs": outputs,
        "calls": calls,
    }
    tensors = {name: value for name, value in tensors.items() if name in needed}
    return Traced(header, tensors, {name: source for name, source in sources.items() if name in needed})


def _stored(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def write_program(path: str | Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write a program to a file in the format of safetensors, with a sum over all of it.

    Args:
        path: The file.
        header: Of :func:`as_data`, with ``format`` and what else the reader wants to know.
        tensors: Likewise.
    """
    text = json.dumps(header, allow_nan=False)
    save_file(tensors, path, metadata={"policy": text, "sha256": digest(text, tensors)})


def read_program(path: str | Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Read what :func:`write_program` wrote.

    Args:
        path: The file.
        kind: The ``format`` that is wanted.

    Returns:
        Header and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no policy of this format, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(told.get("policy", "{}"))
        known = isinstance(header, dict) and header.get("format") == kind
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is no whole policy file ({reason}); copy it again, or save the policy anew."
        ) from error
    if not known:
        raise ValueError(f"{path} holds no policy of format {kind}; save one with save_policy.")
    if told.get("sha256") != digest(told["policy"], tensors):
        raise ValueError(f"{path} was changed since it was saved (sha256 differs); copy it again.")
    return header, tensors


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """The sum over a file's header and tensors."""
    return hashlib.sha256(text.encode() + save(tensors)).hexdigest()


def require_equal(found: Tensor, wanted: Tensor) -> None:
    """Refuse an output of a saved policy that is not the policy's own, as where a trace froze what depends on values.

    Raises:
        ValueError: If they differ.
    """
    if not torch.allclose(found, wanted.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ValueError(
            "the saved policy would decide otherwise than the policy itself: something in it branches on values or "
            "draws at random; write it in operations of torch, torch.where in place of if."
        )


def _needed(calls: list[Header], output: str) -> list[Header]:
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
        f"the policy calls {name}, which a policy file cannot hold; write it in plain operations of torch."
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
