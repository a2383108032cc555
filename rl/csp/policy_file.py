"""A seat's policy in one small file: its computation as data, which loads without game, data and module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rl.csp.acting import Decision, Seat, decide
from rl.csp.policies import CategoricalLaw, GaussianLaw, PlainLaw, SeatPolicy
from rl.csp.tables import TablePolicy
from rl.envs.markov_game import BatchedGame
from rl.programs import Program, Traced, as_data, read_program, require_equal, trace, write_program

FORMAT = "gapbridge-seat-policy-1"
ADVICE = "write its forward in operations of torch, without branches on values"


class SavedSeatPolicy(nn.Module):
    """A policy as :func:`load_policy` gives it: it acts, and plays wherever a policy of its seat does.

    Args:
        header: What the file says of it.
        tensors: Weights and constants by name.

    Attributes:
        seat: What it sees and may do.
        memory: Width of what it remembers; 0 for none.
    """

    def __init__(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.program = Program(header, tensors)
        self.seat, self.memory = Seat(**header["seat"]), int(header["memory"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device with the module."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.program.to(fn(self.program.place).device)
        return self

    def act(
        self,
        observation: object,
        mask: object = None,
        memory: Tensor | None = None,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Actions for observations; see :func:`rl.csp.decide`, which says what is given and comes back."""
        return decide(self, self.seat, observation, mask, memory, deterministic=deterministic, generator=generator)

    @torch.no_grad()
    def forward(
        self,
        observations: Tensor,
        masks: Tensor | None = None,
        memories: Tensor | None = None,
        active: Tensor | None = None,
    ) -> tuple[PlainLaw, Tensor | None]:
        """Laws of actions along sequences, as of `rl.csp.SeatPolicy`."""
        if self.seat.masked and masks is None:  # a law is asked for where nothing is forbidden
            masks = torch.ones(*observations.shape[:-1], self.seat.n_actions, dtype=torch.bool)
        if not self.memory:
            return self._law(observations, masks, None)[0], None
        laws = []
        memory = observations.new_zeros(*observations.shape[1:-1], self.memory) if memories is None else memories
        for step in range(len(observations)):
            law, after = self._law(observations[step], None if masks is None else masks[step], memory)
            laws.append(law)
            memory = after if active is None else torch.where(active[step][..., None], after, memory)
        return _stacked(laws), memory

    def _law(self, seen: Tensor, mask: Tensor | None, memory: Tensor | None) -> tuple[PlainLaw, Tensor]:
        """Law (...) for observations (..., O), and what is remembered after them, (..., H)."""
        leading, place = seen.shape[:-1], self.program.place
        inputs = [seen.to(place).reshape(-1, seen.shape[-1])]
        if self.seat.masked and mask is not None:
            inputs.append(mask.to(place.device).reshape(-1, mask.shape[-1]))
        if memory is not None:
            inputs.append(memory.to(place).reshape(-1, self.memory))
        first = self.program.output(0, *inputs).to(seen).reshape(*leading, -1)
        after = seen if memory is None else self.program.output(-1, *inputs).to(seen).reshape(*leading, -1)
        if self.seat.n_actions:
            return CategoricalLaw(first, None if mask is None else mask.to(first.device)), after
        return GaussianLaw(first, self.program.output(1, *inputs).to(seen).reshape(*leading, -1)), after


def _stacked(laws: list[PlainLaw]) -> PlainLaw:
    """Laws of steps as the law of a sequence."""
    if isinstance(laws[0], GaussianLaw):
        means, deviations = ([getattr(law, name) for law in laws] for name in ("mean", "log_std"))
        return GaussianLaw(torch.stack(means), torch.stack(deviations))
    rows = [law for law in laws if isinstance(law, CategoricalLaw)]
    masks = [law.masks for law in rows if law.masks is not None]
    return CategoricalLaw(torch.stack([law.log_probs for law in rows]), torch.stack(masks) if masks else None)


class _Step(nn.Module):
    """One decision of K players: the numbers of their laws, and what they remember after it."""

    def __init__(self, policy: nn.Module, seat: Seat) -> None:
        super().__init__()
        self.policy, self.seat = policy, seat

    def forward(
        self, observation: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        # What a policy does not take is no input: the mask comes first where there is one, then the memory.
        mask, memory = (first, second) if self.seat.masked else (None, first)
        law, after = self.policy(
            observation[None, :, None],
            None if mask is None else mask[None, :, None],
            None if memory is None else memory[:, None],
        )
        numbers = (law.log_probs,) if self.seat.n_actions else (law.mean, law.log_std)
        found = tuple(number[0, :, 0] for number in numbers)
        return found if after is None else (*found, after[:, 0])


def export_policy(policy: nn.Module, game: BatchedGame, seat: str | None = None) -> torch.export.ExportedProgram:
    """A policy as a program of `torch.export`, which runs without game, data and module.

    It takes observations float32 (K, O); where the game has masks, legal actions, boolean (K, A); where the policy has
    a memory, that before the step (K, H), zeros at an episode's start. It gives log-probabilities (K, A), or means and
    log standard deviations (K, D) each; then the memory after the step. ``torch.onnx.export`` makes ONNX of it.

    Args:
        policy: As ``module.agent``, what :func:`rl.csp.imitate` gives, or one of your own.
        game: Its game.
        seat: Which seat it plays; ours when None.

    Raises:
        ValueError: If it plays by another law than a `CategoricalLaw` or a `GaussianLaw`, or cannot be traced.
    """
    return _exported(policy, Seat.of(game, seat))


def _exported(policy: nn.Module, place: Seat) -> torch.export.ExportedProgram:
    example = _inputs(policy, place, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        law = policy(example[0][None, :, None], example[1][None, :, None] if place.masked else None, None)[0]
    kind = CategoricalLaw if place.n_actions else GaussianLaw
    if not isinstance(law, kind):
        raise ValueError(
            f"the policy of {place.name} plays by a {type(law).__name__}, which a file cannot hold; it must be a "
            f"{kind.__name__} of rl.csp.policies."
        )
    return trace(_Step(policy, place), example, ADVICE)


def save_policy(policy: nn.Module, path: str | Path, game: BatchedGame, seat: str | None = None) -> None:
    """Save what a policy computes to one file in the format of safetensors.

    Args:
        policy: As of :func:`export_policy`.
        path: The file.
        game: Its game; of it, the file holds what the seat sees and may do.
        seat: Which seat it plays; ours when None.

    Raises:
        ValueError: As :func:`export_policy`, or if the policy does what a file cannot hold.

    Example:
        >>> from rl.csp import SeatPolicy
        >>> from rl.envs import VaultMaze
        >>> path = getfixture("tmp_path") / "policy.safetensors"
        >>> save_policy(SeatPolicy.of(VaultMaze(), "agent", hidden=[8]), path, VaultMaze())
        >>> load_policy(path).act([1, 0, 0, 0, 0, 0, 0]).action.shape
        torch.Size([])
    """
    save_policies({Path(path): policy}, game, seat)


def save_policies(policies: Mapping[Path, nn.Module], game: BatchedGame, seat: str | None = None) -> None:
    """Save the policies of a report; those that are built alike are traced once.

    Args:
        policies: By the file of each.
        game: Their game.
        seat: Which seat they play; ours when None.

    Raises:
        ValueError: As :func:`save_policy`.
    """
    place = Seat.of(game, seat)
    known: dict[str, Traced] = {}
    for path, policy in policies.items():
        build = _build(policy)
        if build in known:
            traced = known[build].with_state({f"policy.{name}": value for name, value in policy.state_dict().items()})
        else:
            traced = as_data(_exported(policy, place), torch.float32)
            if build:
                known[build] = traced
        header = traced.header | {"format": FORMAT, "seat": place._asdict(), "memory": policy.memory}
        _check_equal(policy, SavedSeatPolicy(header, traced.tensors))
        write_program(path, header, traced.tensors)


def _build(policy: nn.Module) -> str:
    """What decides the computation of our own policies besides their weights; empty for those of users."""
    if type(policy) not in {SeatPolicy, TablePolicy}:
        return ""
    return f"{policy!r} {getattr(policy, 'floor', None)} {[tuple(x.shape) for x in policy.state_dict().values()]}"


def _check_equal(policy: nn.Module, saved: SavedSeatPolicy) -> None:
    """A trace may have frozen what depends on values: it must decide as the policy does, on other batches too."""
    place, step = saved.seat, _Step(policy, saved.seat)
    for batch, scale in ((1, 1.0), (3, 1.0), (64, 5.0)):
        inputs = _inputs(policy, place, batch, torch.Generator().manual_seed(batch), scale)
        with torch.no_grad():
            wanted = step(*inputs)
        for number, output in enumerate(wanted):
            require_equal(saved.program.output(number, *(each.cpu() for each in inputs)), output)


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> SavedSeatPolicy:
    """Load what :func:`save_policy` saved; no code but torch's operations is run.

    Args:
        path: The file.
        device: Where it acts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no policy of a seat, or is damaged.
    """
    return SavedSeatPolicy(*read_program(path, FORMAT)).to(device)


def _inputs(
    policy: nn.Module, seat: Seat, batch: int, generator: torch.Generator, scale: float = 1.0
) -> tuple[Tensor, ...]:
    """Random inputs of a step, on the policy's device."""
    place = next(policy.parameters(), torch.zeros(()))
    inputs = [scale * torch.randn(batch, seat.observation_dim, generator=generator)]
    if seat.masked:
        mask = torch.rand(batch, seat.n_actions, generator=generator) < 0.5
        mask[:, 0] = True
        inputs.append(mask)
    if policy.memory:
        inputs.append(torch.rand(batch, int(policy.memory), generator=generator) - 0.5)  # type: ignore[arg-type]
    return tuple(each.to(place.device) for each in inputs)
