"""The protocol of a batched, differentiable simulator with hybrid actions: a mode and, for every mode, real numbers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from rl.errors import SimulatorError

State = dict[str, Tensor]
Noise = dict[str, Tensor]


class HybridSimulator(ABC):
    r"""A Markov decision process with exogenous noise, whose cost and next state are smooth once the mode is fixed.

    An action is a pair of a mode :math:`x \in \{0, \dots, J - 1\}` and a vector :math:`b \in R^m`. In the mode anything
    may jump; in the state and in ``b``, for a fixed mode, nothing does (kinks such as those of ``abs``, ``clamp`` and
    ``max`` are fine). The law of the noise does not depend on actions, all of it is drawn before the episode, and
    the simulator draws nothing else: the same noise and the same actions give the same costs, bit by bit.

    Several decisions at once, such as which of ten machines to set up, are ``heads``: one categorical choice each, in
    place of one mode among all their combinations. The policy's law is then the product of the heads' laws, a mode is
    a row of one number for each head, and there is one continuous part, which the policy gives knowing the modes of
    all heads.

    Every tensor has the batch first. Tensors of the state are live, that is, part of an autograd graph: build new
    tensors instead of writing into old ones, and detach nothing. Costs are minimised; the objective is
    :math:`E \sum_t g^t c_t` with ``discount`` = g. What is *reported* is what the problem's literature reports, see
    :func:`reported_cost`; it never trains anything.

    A subclass sets the attributes below, defines the four abstract methods, and may override the others. A tensor it
    keeps must be a plain attribute, so that :meth:`to` finds it.

    Attributes:
        n_modes: Number of modes J, at least 1; 1 where there is nothing to choose. Leave it out where there are heads.
        heads: Number of modes of each head, each at least 1; none for a single choice among ``n_modes``.
        action_dim: Length m of the continuous part, the same for all modes; a mode that needs fewer ignores the rest. 0
            where all is said by the mode.
        observation_dim: Length of an observation.
        horizon: Number of decisions T of an episode, at least 1.
        discount: g in (0, 1], the discount that training uses unless told otherwise.
        report: ``mean`` cost per step or ``total`` cost.
        report_from: First step whose cost counts; steps before it warm up.
        buffer: Last decisions of an episode that training leaves out, because too few of their consequences are seen;
            less than half the horizon.
        endless: Whether the horizon only cuts a process that goes on, so that a value of the last state is due.
        differentiable: False where costs carry no gradient; only model-free methods can train there.
        device: Where states, noise and costs live.
        dtype: Their floating type.
    """

    n_modes: int
    heads: tuple[int, ...] = ()
    action_dim: int
    observation_dim: int
    horizon: int
    discount: float = 1.0
    report: Literal["mean", "total"] = "mean"
    report_from: int = 0
    buffer: int = 0
    endless: bool = False
    differentiable: bool = True
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def alternatives(self) -> int:
        """How many continuous parts the policy gives: one for each mode, or with heads 1, which knows their modes."""
        return 1 if self.heads else self.n_modes

    @property
    def law_shape(self) -> tuple[int, ...]:
        """Shape of a law over the modes: (J,), or with heads (heads, modes of the largest head)."""
        return (len(self.heads), max(self.heads)) if self.heads else (self.n_modes,)

    @abstractmethod
    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Everything random of ``batch`` episodes.

        Args:
            batch: Number of episodes.
            generator: The only source of randomness; drawn from on its own device, then moved to ``device``.

        Returns:
            Tensors by name: (batch, horizon, ...) for noise of every step, (batch, ...) for what is drawn once.
        """

    @abstractmethod
    def reset(self, noise: Noise) -> State:
        """The first state of every episode, tensors (batch, ...) by name."""

    @abstractmethod
    def observe(self, state: State, t: int) -> Tensor:
        """What is seen before decision ``t``, or at the end with ``t`` = horizon, live: (batch, observation_dim)."""

    @abstractmethod
    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """Carry decision ``t`` out.

        Args:
            state: As :meth:`reset` or :meth:`step` returned it.
            mode: int64 (batch,), below ``n_modes``; with heads (batch, heads). Index with it or compare it; never use
                it as a number.
            action: The feasible action of that mode, (batch, action_dim).
            noise: As :meth:`sample_noise` returned it, whole.
            t: Which decision, in [0, horizon).

        Returns:
            The next state and the cost (batch,), both smooth in ``state`` and ``action`` for the given mode.
        """

    def action_map(self, raw: Tensor, state: State) -> Tensor:
        """Feasible actions of all modes from a network's raw outputs; here every real number is feasible.

        Args:
            raw: Real numbers (batch, n_modes, action_dim), around 0 at the start of training; with heads
                (batch, 1, action_dim).
            state: The current state, live: a bound that depends on it keeps its gradient.

        Returns:
            Actions of the same shape, smooth in both arguments. What the modes of several heads share, a capacity for
            example, :meth:`step` divides.
        """
        return raw

    def mode_mask(self, state: State, t: int) -> Tensor | None:
        """Boolean (batch, n_modes), true where a mode may be chosen; None if all of them always may.

        With heads it is (batch, heads, modes of the largest head); what is beyond a head's own modes is not read.
        """
        return None

    def seen_state(self, observation: Tensor) -> State:
        """What :meth:`action_map` reads of the state, taken from an observation (batch, observation_dim).

        A trained policy that acts outside the simulator has observations only; it turns its raw outputs into actions by
        ``action_map(raw, seen_state(observation))``. Define this where ``action_map`` reads the state; by itself it is
        empty.
        """
        return {}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy whose tensors are on ``device``, those of a floating type in ``dtype``."""
        moved = copy.copy(self)
        moved.device = self.device if device is None else torch.device(device)
        moved.dtype = self.dtype if dtype is None else dtype
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(moved.device, moved.dtype if value.is_floating_point() else None))
        return moved


Value = TypeVar("Value", float, Tensor)
Decide = Callable[[State, int], tuple[Tensor, Tensor]]


def chosen_action(actions: Tensor, mode: Tensor) -> Tensor:
    """The action of the chosen mode.

    Args:
        actions: (batch, n_modes, action_dim), or (batch, 1, action_dim) with heads.
        mode: int64 (batch,), or (batch, heads).

    Returns:
        (batch, action_dim).

    Example:
        >>> chosen_action(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([1, 0]))
        tensor([[2.],
                [3.]])
    """
    if mode.dim() == 2:
        return actions.squeeze(1)
    return actions.gather(1, mode[:, None, None].expand(-1, 1, actions.shape[2])).squeeze(1)


def check_modes(mode: Tensor, simulator: HybridSimulator, t: int, batch: int | None = None) -> None:
    """Refuse modes from outside that are none.

    Args:
        mode: int64 (batch,), or (batch, heads).
        simulator: Whose modes they should be.
        t: The step, for the error.
        batch: Number of episodes; None takes as many as there are.

    Raises:
        SimulatorError: If modes are no int64, one is below 0 or not below the number of modes, or there is not one for
            each episode and head.
    """
    heads = simulator.heads
    if not isinstance(mode, Tensor) or mode.dtype != torch.int64:
        found = mode.dtype if isinstance(mode, Tensor) else f"a {type(mode).__name__}"
        raise SimulatorError(f"step {t}: the modes are {found}, but they must be a tensor of torch.int64, as .long()")
    rows = (len(mode) if mode.dim() else 1) if batch is None else batch
    if tuple(mode.shape) != ((rows, len(heads)) if heads else (rows,)):
        first = "batch" if batch is None else batch
        wanted = f"({first}, {len(heads)}), one number a head" if heads else f"({first},)"
        raise SimulatorError(f"step {t}: the modes have shape {tuple(mode.shape)}, but they must be {wanted}")
    count = torch.as_tensor(heads or simulator.n_modes, device=mode.device)
    wrong = (mode < 0) | (mode >= count)
    if bool(wrong.any()):
        at = wrong.nonzero()[0]
        which, last = (f" of head {int(at[1])}", heads[int(at[1])]) if heads else ("", simulator.n_modes)
        raise SimulatorError(f"step {t}: the mode{which} is {int(mode[wrong][0])}, but modes are 0 to {last - 1}")


def check_allowed(mode: Tensor, mask: Tensor | None, t: int) -> None:
    """Refuse modes that a mask, as :meth:`HybridSimulator.mode_mask` returns it, forbids."""
    if mask is None:
        return
    forbidden = ~mask.gather(-1, mode[..., None]).squeeze(-1)
    if bool(forbidden.any()):
        row = forbidden.nonzero()[0].tolist()
        which = f" of head {row[1]}" if len(row) > 1 else ""
        raise SimulatorError(
            f"step {t}: mode {int(mode[forbidden][0])}{which} is chosen in episode {row[0]}, where mode_mask forbids "
            "it; choose among the modes that it allows"
        )


def law_columns(heads: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Which columns of a padded law (heads, modes of the largest head) are modes of their head, boolean.

    Example:
        >>> law_columns((2, 3)).tolist()
        [[True, True, False], [True, True, True]]
    """
    return torch.arange(max(heads), device=device) < torch.tensor(heads, device=device)[:, None]


def play(simulator: HybridSimulator, decide: Decide, noise: Noise) -> Tensor:
    """Costs of whole episodes under any policy, live if the policy is.

    Args:
        simulator: The simulator.
        decide: Takes the state and the step; gives the mode, as :meth:`HybridSimulator.step` takes it, and its feasible
            action (batch, action_dim).
        noise: As ``simulator.sample_noise`` gives it.

    Returns:
        Costs (batch, horizon).

    Raises:
        SimulatorError: If a mode is none of the simulator's or is forbidden by its mask, or there is not a mode and an
            action for each episode.
    """
    state, costs = simulator.reset(noise), []
    batch = len(next(iter(noise.values())))
    for t in range(simulator.horizon):
        mode, action = decide(state, t)
        check_modes(mode, simulator, t, batch)
        check_allowed(mode, simulator.mode_mask(state, t), t)
        if not isinstance(action, Tensor) or tuple(action.shape) != (batch, simulator.action_dim):
            found = f"have shape {tuple(action.shape)}" if isinstance(action, Tensor) else f"are {action!r}"
            wanted = f"a tensor of shape {(batch, simulator.action_dim)}"
            raise SimulatorError(f"step {t}: the actions {found}, but they must be {wanted}")
        state, cost = simulator.step(state, mode, action, noise, t)
        costs.append(cost)
    return torch.stack(costs, dim=1)


def reported_cost(simulator: HybridSimulator, costs: Tensor) -> Tensor:
    """What the problem's literature reports of an episode, undiscounted: mean or total cost after the warm-up.

    Args:
        simulator: Says which, and how long the warm-up is.
        costs: (batch, horizon).

    Returns:
        (batch,).
    """
    counted = costs[:, simulator.report_from :]
    return counted.mean(dim=1) if simulator.report == "mean" else counted.sum(dim=1)


def relative_gap(cost: Value, best: float) -> Value:
    """How much more a cost is than the best known one, in units of the latter's size; above 0 it is worse.

    Args:
        cost: A reported cost; a reward is a negative one.
        best: The best known cost, not 0.

    Example:
        >>> relative_gap(110.0, 100.0), relative_gap(-90.0, -100.0)
        (0.1, 0.1)
    """
    return (cost - best) / abs(best)
