"""A policy in one small file: its computation as data, which loads without the simulator and without its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rl.envs.hybrid import State
from rl.hpo.acting import Actor, drawn
from rl.hpo.policies import HybridPolicy
from rl.programs import Program, as_data, read_program, require_equal, trace, write_program

FORMAT = "gapbridge-policy-3"
ADVICE = "write networks, seen_state and action_map in operations of torch, without branches on values"


class SavedPolicy(Actor):
    """A policy as :func:`load_policy` gives it; it only acts.

    Args:
        header: What the file says of it.
        tensors: Weights and constants by name.
    """

    def __init__(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.program = Program(header, tensors)
        self.observation_dim, self.masked = header["observation_dim"], header["masked"]
        self.shape, self.heads = (header["n_modes"], header["action_dim"]), tuple(header["heads"])

    def to(self, device: torch.device | str) -> Self:
        """Move it to a device."""
        self.program.to(device)
        return self

    @property
    def _place(self) -> Tensor:
        return self.program.place

    def _law(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        logits = self.program.output(0, seen)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.log_softmax(-1)

    def _actions(self, seen: Tensor, mode: Tensor, state: State | None) -> Tensor:
        if state is not None:
            raise ValueError("a saved policy acts on observations alone; leave state out.")
        return self.program.output(1, seen, mode)


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
    return trace(_Program(policy), example, ADVICE)


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
    header, tensors, _ = as_data(export_policy(policy), policy.log_std.dtype)
    header |= {
        "format": FORMAT,
        "observation_dim": policy.observation_dim,
        "n_modes": policy.shape[0],
        "action_dim": policy.shape[1],
        "heads": policy.heads,
        "masked": policy.masked,
    }
    _check_equal(policy, SavedPolicy(header, tensors))
    write_program(path, header, tensors)


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> SavedPolicy:
    """Load what :func:`save_policy` saved.

    Args:
        path: The file.
        device: Where it acts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no policy, or is damaged.
    """
    return SavedPolicy(*read_program(path, FORMAT)).to(device)


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
            require_equal(one, other)
