"""The hybrid policy: separate networks for the modes, for the continuous part of every mode, and for the value."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gapbridge.arguments import Count, Finite, check_arguments
from rl.envs.hybrid import HybridSimulator, State
from rl.hpo.acting import Actor, drawn
from rl.hpo.simulators import place

CHILDREN = ("discrete", "continuous", "critic")


def network(inputs: int, outputs: int, hidden: Sequence[int], gain: float) -> nn.Sequential:
    """SiLU layers with orthogonal weights, the last one scaled by ``gain`` so that outputs begin near 0.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        hidden: Widths between them.
        gain: Of the last layer.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5 if layer is not layers[-1] else gain)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class HybridPolicy(nn.Module, Actor):
    """Modes by a categorical law, then the deterministic action of the sampled mode.

    The three networks share nothing. A shared trunk would keep the full estimator unbiased, but without the cross term
    it would also lose a part of its own gradient, and the value's loss would move the policy.

    Networks of your own come as a module with three children, none of which shares a parameter with another, and each
    of which takes observations (..., O) with any number of leading dimensions, row by row and without chance:
    ``discrete`` gives logits (..., J), ``continuous`` the raw parts of all modes (..., J * m), mode by mode, and
    ``critic`` a value (..., 1). Begin with outputs near 0.

    Args:
        observation_dim: Length of an observation.
        n_modes: Number of modes J.
        action_dim: Length of the continuous part m.
        hidden: Widths of the SiLU layers of each network.
        log_std: Initial log standard deviation of the continuous part where it is made random; of the raw output.
        networks: Your own in place of those of ``hidden``.

    Raises:
        ValueError: If a size is below 1, ``log_std`` is not finite, or networks of your own break their contract.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> policy = HybridPolicy(1, 2, 1)
        >>> policy.bind(Newsvendor())
        >>> action = policy.act([0.0])
        >>> action.mode.shape, action.parameters.shape, bool(action.parameters > 0)
        (torch.Size([]), torch.Size([1]), True)
    """

    def __init__(
        self,
        observation_dim: Count,
        n_modes: Count,
        action_dim: Count,
        hidden: Sequence[Count] = (64, 64),
        log_std: Finite = -0.5,
        networks: nn.Module | None = None,
    ) -> None:
        check_arguments(HybridPolicy.__init__, locals())
        super().__init__()
        self.observation_dim, self.shape = observation_dim, (n_modes, action_dim)
        if networks is None:
            self.discrete: nn.Module = network(observation_dim, n_modes, hidden, 0.01)
            self.continuous: nn.Module = network(observation_dim, n_modes * action_dim, hidden, 0.01)
            self.critic: nn.Module = network(observation_dim, 1, hidden, 1.0)
        else:
            check_networks(networks, observation_dim, n_modes, action_dim)
            self.discrete, self.continuous, self.critic = (getattr(networks, name) for name in CHILDREN)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.simulator: HybridSimulator | None = None
        self.masked = False

    def bind(self, simulator: HybridSimulator) -> None:
        """Take from a simulator what turns raw outputs into actions: its ``action_map`` and ``seen_state``."""
        self.simulator, self.masked = simulator, _masks(simulator)

    def _decision(self, seen: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and feasible actions of all modes."""
        if self.simulator is None:
            raise ValueError("the policy is bound to no simulator, so it has no actions to give; call bind(simulator).")
        simulator = place(self.simulator, self.log_std.device, self.log_std.dtype)
        seen = seen.to(simulator.dtype)
        try:
            actions = simulator.action_map(
                self.raw_actions(seen), simulator.seen_state(seen) if state is None else state
            )
        except KeyError as error:
            raise ValueError(
                f"the simulator's action_map reads the state {error}, which its observations do not give: define "
                "seen_state in it, or pass state= to act."
            ) from error
        return self.log_probs(seen, mask), actions

    @property
    def _place(self) -> Tensor:
        return self.log_std

    @torch.no_grad()
    def decide(
        self,
        observation: Tensor,
        mask: Tensor | None = None,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Modes (batch,) and the raw continuous parts of all modes (batch, J, m), before the action map.

        Args:
            observation: (batch, O).
            mask: Boolean (batch, J), or None where all modes are allowed.
            deterministic: Take the likeliest mode; else draw it.
            generator: Of the draws.

        Raises:
            ValueError: As for :meth:`act`.
        """
        seen, mask = self.readable(observation, mask)
        return drawn(self.log_probs(seen, mask), deterministic, generator), self.raw_actions(seen)

    def log_probs(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the modes (..., J); minus infinity where the mask is false.

        Args:
            observation: (..., O).
            mask: Boolean (..., J), true where a mode may be chosen.
        """
        logits = self.discrete(observation.to(self.log_std.dtype)).to(observation.dtype)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return cast(Tensor, logits.log_softmax(-1))

    def raw_actions(self, observation: Tensor) -> Tensor:
        """Unconstrained continuous parts of all modes (..., J, m)."""
        raw: Tensor = self.continuous(observation.to(self.log_std.dtype)).to(observation.dtype)
        return raw.reshape(*raw.shape[:-1], *self.shape)

    def value(self, observation: Tensor) -> Tensor:
        """Standardised value (...)."""
        value: Tensor = self.critic(observation.to(self.log_std.dtype)).to(observation.dtype)
        return value.squeeze(-1)


def _masks(simulator: HybridSimulator) -> bool:
    """Whether a simulator ever forbids modes."""
    if type(simulator).mode_mask is HybridSimulator.mode_mask and "mode_mask" not in vars(simulator):
        return False
    state = simulator.reset(simulator.sample_noise(1, torch.Generator().manual_seed(0)))
    return any(simulator.mode_mask(state, t) is not None for t in range(simulator.horizon))


def check_networks(networks: nn.Module, observation_dim: int, n_modes: int, action_dim: int) -> None:
    """Refuse networks that training would use wrongly; see `HybridPolicy` for what is asked of them.

    Args:
        networks: A module with the children ``discrete``, ``continuous`` and ``critic``.
        observation_dim: Length of an observation.
        n_modes: Number of modes J.
        action_dim: Length of the continuous part m.

    Raises:
        ValueError: If a child is missing, has outputs of another width, shares parameters with another, mixes rows,
            draws at random, or has a gradient that is not that of its values.
    """
    owners: dict[int, str] = {}
    widths = {"discrete": n_modes, "continuous": n_modes * action_dim, "critic": 1}
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(2, 3, observation_dim, generator=generator, dtype=torch.float64)
    for name, width in widths.items():
        child = getattr(networks, name, None)
        if not isinstance(child, nn.Module):
            raise ValueError(f"networks has no child module {name!r}; give it {', '.join(CHILDREN)}.")
        for parameter in child.parameters():
            if owners.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"networks.{name} shares a parameter with networks.{owners[id(parameter)]}; separate them, or one "
                    "part's gradient moves the other."
                )
        tried = copy.deepcopy(child).double().train()
        try:
            found, again, row = tried(seen), tried(seen), tried(seen[0, 0])
        except Exception as error:  # whatever a user's own code raises
            raise ValueError(
                f"networks.{name} fails on observations of shape (2, 3, {observation_dim}) or ({observation_dim},): "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; it must take any leading "
                "dimensions."
            ) from error
        if tuple(found.shape) != (2, 3, width):
            raise ValueError(
                f"networks.{name} maps observations (2, 3, {observation_dim}) to {tuple(found.shape)}, but it must be "
                f"(2, 3, {width})."
            )
        if not torch.allclose(found, again) or not torch.allclose(found[0, 0], row):
            raise ValueError(
                f"networks.{name} gives a row another output at random or with other rows beside it, as dropout and "
                "batch normalisation do; take these out, or use LayerNorm."
            )
        _check_slope(tried, seen, f"networks.{name}")


def _check_slope(child: nn.Module, seen: Tensor, name: str) -> None:
    """The gradient by the observation must be that of the values: the mixed gradient flows through it."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(seen.shape, generator=generator, dtype=seen.dtype)
    live = seen.clone().requires_grad_()
    output = child(live)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    slope = torch.zeros(())
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output, live, weight, allow_unused=True)
        slope = slope if gradient is None else (gradient * direction).sum()
    with torch.no_grad():
        ends = [(child(seen + sign * 1e-6 * direction) * weight).sum() for sign in (1, -1)]
    truth = (ends[0] - ends[1]) / 2e-6
    if not torch.isclose(slope.double(), truth, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"{name} has a gradient of {float(slope):.4g} by its observation where its values change by "
            f"{float(truth):.4g}; detach nothing inside it, and keep to torch."
        )
