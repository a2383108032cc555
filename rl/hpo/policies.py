"""The hybrid policy: separate networks for the modes, for the continuous part of every mode, and for the value."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gapbridge.arguments import Count, Finite, Whole, check_arguments
from rl.envs.hybrid import HybridSimulator, State, law_columns
from rl.hpo.acting import Actor, drawn
from rl.hpo.simulators import place
from rl.processes import over_processes

CHILDREN = ("discrete", "continuous", "critic")
GAINS = {"discrete": 0.01, "continuous": 0.01, "critic": 1.0}  # of the last layers


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

    With ``heads`` the law is a product of as many categorical laws, and the continuous network, which then gives a
    single part, also sees the sampled modes of all heads, one-hot, behind the observation.

    The three networks share nothing. A shared trunk would keep the full estimator unbiased, but without the cross term
    it would also lose a part of its own gradient, and the value's loss would move the policy.

    Networks of your own come as a module with three children, none of which shares a parameter with another, and each
    of which takes observations (..., O) with any number of leading dimensions, row by row and without chance:
    ``discrete`` gives logits (..., J), ``continuous`` the raw parts of all modes (..., J * m), mode by mode, and
    ``critic`` a value (..., 1). Begin with outputs near 0. With heads, ``discrete`` gives the logits of all heads, one
    head after the other, and ``continuous`` takes (..., O + sum of heads) and gives (..., m). Without a continuous
    part, ``continuous`` is not asked for.

    Args:
        observation_dim: Length of an observation.
        n_modes: Number of modes J; 1 with heads.
        action_dim: Length of the continuous part m, 0 for none.
        hidden: Widths of the SiLU layers of each network.
        log_std: Initial log standard deviation of the continuous part where it is made random; of the raw output.
        networks: Your own in place of those of ``hidden``.
        heads: Number of modes of each head, none for a single choice.
        normalise: Shift and scale observations by their moments so far before any network sees them; `follow` keeps
            them.

    Raises:
        ValueError: If a size is below what it must be, ``log_std`` is not finite, or networks of your own break their
            contract.

    Example:
        >>> from rl.envs.newsvendor import Newsvendor
        >>> policy = HybridPolicy(1, 2, 1)
        >>> policy.bind(Newsvendor())
        >>> action = policy.act([0.0])
        >>> action.mode.shape, action.parameters.shape, bool(action.parameters > 0)
        (torch.Size([]), torch.Size([1]), True)
    """

    discrete: nn.Module
    continuous: nn.Module
    critic: nn.Module
    columns: Tensor
    seen_updates: Tensor
    seen_mean: Tensor
    seen_variance: Tensor

    def __init__(
        self,
        observation_dim: Count,
        n_modes: Count,
        action_dim: Whole,
        hidden: Sequence[Count] = (64, 64),
        log_std: Finite = -0.5,
        networks: nn.Module | None = None,
        heads: Sequence[Count] | None = None,
        normalise: bool = False,
    ) -> None:
        check_arguments(HybridPolicy.__init__, locals())
        super().__init__()
        # plain numbers, where numpy's were given: files hold them as text
        self.observation_dim, self.shape = int(observation_dim), (int(n_modes), int(action_dim))
        self.heads = tuple(int(size) for size in heads or ())
        sizes = network_sizes(observation_dim, n_modes, action_dim, self.heads)
        if networks is not None:
            check_networks(networks, sizes)
        for name, (inputs, outputs) in sizes.items():
            made = network(inputs, outputs, hidden, GAINS[name]) if networks is None else getattr(networks, name)
            setattr(self, name, made)
        if not action_dim:
            self.continuous = _Nothing()
        if self.heads:
            self.register_buffer("columns", law_columns(self.heads), persistent=False)
        self.normalise = normalise
        if normalise:
            self.register_buffer("seen_updates", torch.zeros((), dtype=torch.long))
            self.register_buffer("seen_mean", torch.zeros(observation_dim))
            self.register_buffer("seen_variance", torch.ones(observation_dim))
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))
        self.simulator: HybridSimulator | None = None
        self.masked = False

    def bind(self, simulator: HybridSimulator) -> None:
        """Take from a simulator what turns raw outputs into actions: its ``action_map`` and ``seen_state``."""
        self.simulator, self.masked = simulator, _masks(simulator)

    def _law(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        return self.log_probs(seen, mask)

    def _actions(self, seen: Tensor, mode: Tensor, state: State | None) -> Tensor:
        if self.simulator is None:
            raise ValueError("the policy is bound to no simulator, so it has no actions to give; call bind(simulator).")
        simulator = place(self.simulator, self.log_std.device, self.log_std.dtype)
        seen = seen.to(simulator.dtype)
        try:
            return simulator.action_map(
                self.raw_actions(seen, mode), simulator.seen_state(seen) if state is None else state
            )
        except KeyError as error:
            raise ValueError(
                f"the simulator's action_map reads the state {error}, which its observations do not give: define "
                "seen_state in it, or pass state= to act."
            ) from error

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
        """Modes and the raw continuous parts (batch, J, m), with heads (batch, 1, m), before the action map.

        Args:
            observation: (batch, O).
            mask: Boolean (batch, J), with heads (batch, H, J), or None where all modes are allowed.
            deterministic: Take the likeliest mode; else draw it.
            generator: Of the draws.

        Raises:
            ValueError: As for :meth:`act`.
        """
        seen, mask = self.readable(observation, mask)
        mode = drawn(self.log_probs(seen, mask), deterministic, generator)
        return mode, self.raw_actions(seen, mode)

    def log_probs(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the modes (..., J), with heads (..., H, J); minus infinity where no mode may be chosen.

        Args:
            observation: (..., O).
            mask: Boolean of the same shape, true where a mode may be chosen.
        """
        return self.logits(observation, mask).log_softmax(-1)

    def logits(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the modes, otherwise as :meth:`log_probs`."""
        logits = self._every_logit(observation)
        return logits if mask is None else logits.masked_fill(~mask, float("-inf"))

    def _every_logit(self, observation: Tensor) -> Tensor:
        logits: Tensor = self.discrete(self._normal(observation)).to(observation.dtype)
        if not self.heads:
            return logits
        if len(set(self.heads)) == 1:
            return logits.reshape(*logits.shape[:-1], *self.law_shape)
        places = (self.columns.flatten().cumsum(0) - 1).clamp(min=0)
        padded = logits[..., places].reshape(*logits.shape[:-1], *self.law_shape)
        return padded.masked_fill(~self.columns, float("-inf"))

    def raw_actions(self, observation: Tensor, mode: Tensor | None = None) -> Tensor:
        """Unconstrained continuous parts of all modes (..., J, m).

        Args:
            observation: (..., O).
            mode: With heads, the modes that were chosen, int64 (..., H); the result is then (..., 1, m).
        """
        seen = self._normal(observation)
        if self.heads:
            if mode is None:
                raise ValueError("with heads, the continuous part depends on the modes of all of them; give mode.")
            chosen = mode.unsqueeze(-1) == torch.arange(self.law_shape[1], device=mode.device)
            known = chosen.flatten(-2)[..., self.columns.flatten()] if len(set(self.heads)) > 1 else chosen.flatten(-2)
            seen = torch.cat([seen, known.to(seen.dtype)], -1)
        raw: Tensor = self.continuous(seen).to(observation.dtype)
        if not self.shape[1]:  # runtimes of ONNX do not reshape what is empty
            return raw.new_zeros((*raw.shape[:-1], *self.shape))
        return raw.reshape(*raw.shape[:-1], *self.shape)

    def value(self, observation: Tensor) -> Tensor:
        """Standardised value (...)."""
        value: Tensor = self.critic(self._normal(observation)).to(observation.dtype)
        return value.squeeze(-1)

    def _normal(self, observation: Tensor) -> Tensor:
        """Observations as the networks see them."""
        seen = observation.to(self.log_std.dtype)
        if not self.normalise:
            return seen
        spread = torch.where(self.seen_variance > 1e-8, self.seen_variance, 1.0).sqrt()
        return (seen - self.seen_mean) / spread

    @torch.no_grad()
    def follow(self, observations: Tensor) -> None:
        """Take observations (..., O) of all processes into the moments, every call with the same weight."""
        rows = observations.detach().reshape(-1, self.observation_dim).to(self.seen_mean.dtype)
        mean = over_processes(rows.mean(0))
        variance = over_processes((rows - mean).square().mean(0))
        # New tensors: the graph of a loss that is not yet differentiated holds the old ones.
        self.seen_updates = self.seen_updates + 1
        weight = 1 / self.seen_updates.to(mean)
        apart = (mean - self.seen_mean).square() * (1 - weight)
        self.seen_variance = (1 - weight) * self.seen_variance + weight * (variance + apart)
        self.seen_mean = self.seen_mean + weight * (mean - self.seen_mean)


def _masks(simulator: HybridSimulator) -> bool:
    """Whether a simulator ever forbids modes."""
    if type(simulator).mode_mask is HybridSimulator.mode_mask and "mode_mask" not in vars(simulator):
        return False
    state = simulator.reset(simulator.sample_noise(1, torch.Generator().manual_seed(0)))
    return any(simulator.mode_mask(state, t) is not None for t in range(simulator.horizon))


class _Nothing(nn.Module):
    """The continuous policy of a simulator without a continuous part."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation[..., :0]


def network_sizes(
    observation_dim: int, n_modes: int, action_dim: int, heads: Sequence[int] = ()
) -> dict[str, tuple[int, int]]:
    """Width of the input and of the output of every network of a policy, by name.

    Args:
        observation_dim: Length of an observation.
        n_modes: Number of modes J; 1 with heads.
        action_dim: Length of the continuous part m; with 0 there is no such network.
        heads: Number of modes of each head.
    """
    together = sum(heads)
    sizes = {"discrete": (observation_dim, together or n_modes), "critic": (observation_dim, 1)}
    if action_dim:
        sizes["continuous"] = (observation_dim + together, n_modes * action_dim)
    return {name: sizes[name] for name in CHILDREN if name in sizes}


def check_networks(networks: nn.Module, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse networks that training would use wrongly; see `HybridPolicy` for what is asked of them.

    Args:
        networks: A module with the children ``discrete``, ``continuous`` and ``critic``.
        sizes: As :func:`network_sizes` gives them.

    Raises:
        ValueError: If a child is missing, has outputs of another width, shares parameters with another, mixes rows,
            draws at random, or has a gradient that is not that of its values.
    """
    owners: dict[int, str] = {}
    generator = torch.Generator().manual_seed(0)
    for name, (inputs, width) in sizes.items():
        seen = torch.randn(2, 3, inputs, generator=generator, dtype=torch.float64)
        child = getattr(networks, name, None)
        if not isinstance(child, nn.Module):
            raise ValueError(f"networks has no child module {name!r}; give it {', '.join(sizes)}.")
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
                f"networks.{name} fails on observations of shape (2, 3, {inputs}) or ({inputs},): "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; it must take any leading "
                "dimensions."
            ) from error
        if tuple(found.shape) != (2, 3, width):
            raise ValueError(
                f"networks.{name} maps observations (2, 3, {inputs}) to {tuple(found.shape)}, but it must be "
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
