"""Policies and critics of a seat: categorical with masks or Gaussian, with or without memory, shared by its players."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rl.csp.update import masked_mean
from rl.envs.markov_game import BatchedGame


class CategoricalLaw:
    """Laws over A actions.

    Args:
        logits: (..., A).
        masks: Legal actions (..., A), or None where all are.
    """

    dimension = 1

    def __init__(self, logits: Tensor, masks: Tensor | None = None) -> None:
        self.masks = masks
        self.log_probs = (logits if masks is None else logits.masked_fill(~masks, -math.inf)).log_softmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of int64 actions (...)."""
        return self.log_probs.gather(-1, actions[..., None]).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats."""
        return -(self.log_probs.exp() * self._finite()).sum(-1)

    def kl(self, other: CategoricalLaw) -> Tensor:
        """KL(self, other) (...) in nats."""
        return (self.log_probs.exp() * (self._finite() - other._finite())).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions (...): the first arrival among exponential clocks of these rates."""
        clocks = torch.empty(self.log_probs.shape).exponential_(generator=generator).to(self.log_probs)
        return (self.log_probs - clocks.log()).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest actions (...)."""
        return self.log_probs.argmax(-1)

    def _finite(self) -> Tensor:
        # An illegal action has probability 0 on either side, and 0 * infinity would be NaN, also in the gradient.
        return self.log_probs if self.masks is None else self.log_probs.masked_fill(~self.masks, 0.0)


class GaussianLaw:
    """Independent normal laws over D action dimensions; games clip actions to [-1, 1], laws do not.

    Args:
        mean: (..., D).
        log_std: Broadcasts to the mean.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)
        self.dimension = mean.shape[-1]

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-densities of actions (..., D), summed over the dimensions: (...)."""
        scaled = (actions - self.mean) * (-self.log_std).exp()
        return -(0.5 * scaled.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (...) in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: GaussianLaw) -> Tensor:
        """KL(self, other) (...) in nats."""
        ratio = 2 * (self.log_std - other.log_std)
        distance = (self.mean - other.mean).square() * (-2 * other.log_std).exp()
        return 0.5 * (ratio.exp() + distance - 1 - ratio).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions (..., D)."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        drawn: Tensor = self.mean + noise * self.log_std.exp()
        return drawn

    def mode(self) -> Tensor:
        """The means (..., D)."""
        return self.mean


PlainLaw = CategoricalLaw | GaussianLaw


class MixedLaw:
    """The gate: a frozen law with probability kappa, a free one otherwise; only the free one learns.

    Args:
        frozen: Law of the model of the target.
        free: Law of the free policy.
        kappa: Probability of the frozen law, in [0, 1], (...).
    """

    def __init__(self, frozen: PlainLaw, free: PlainLaw, kappa: Tensor) -> None:
        self.frozen, self.free, self.kappa = frozen, free, kappa
        self.dimension = free.dimension

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of the mixture (...)."""
        tiny = torch.finfo(self.kappa.dtype).tiny
        mixed: Tensor = torch.logaddexp(
            self.kappa.clamp(min=tiny).log() + self.frozen.log_prob(actions),
            (1 - self.kappa).clamp(min=tiny).log() + self.free.log_prob(actions),
        )
        return mixed

    def entropy(self) -> Tensor:
        """Entropy of the free part, times its probability: what an entropy bonus can raise."""
        free: Tensor = self.free.entropy()
        return (1 - self.kappa) * free

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions of either law."""
        chosen = torch.rand(self.kappa.shape, generator=generator).to(self.kappa) < self.kappa
        frozen, free = self.frozen.sample(generator), self.free.sample(generator)
        return torch.where(chosen.reshape(chosen.shape + (1,) * (free.dim() - chosen.dim())), frozen, free)


def layers(inputs: int, hidden: Sequence[int], *, normalise: bool = False) -> tuple[list[nn.Module], int]:
    """SiLU layers with orthogonal weights, and the width after them.

    Args:
        inputs: Width of the input.
        hidden: Widths of the layers.
        normalise: Begin with layer normalisation, for observations of uneven scale.
    """
    made: list[nn.Module] = [nn.LayerNorm(inputs)] if normalise else []
    for width in hidden:
        made += [linear(inputs, width, 2**0.5), nn.SiLU()]
        inputs = width
    return made, inputs


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer with orthogonal weights of this gain and no bias at the start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class SeatPolicy(nn.Module):
    """The policy of every player of a seat: shared parameters, each player on its own observation.

    Args:
        observation_dim: Length O of an observation.
        n_actions: Number of discrete actions A; 0 for real ones.
        action_dim: Length D of a real action; 0 for discrete ones.
        hidden: Widths of the layers.
        memory: Width of a GRU after them; 0 for none.
        normalise: Begin with layer normalisation.
        log_std: Initial log standard deviation of real actions.
        log_std_floor: Lowest one; without a floor the likelihood of data is unbounded, and C has no scale.
    """

    def __init__(
        self,
        observation_dim: int,
        n_actions: int,
        action_dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        memory: int = 0,
        normalise: bool = False,
        log_std: float = -0.5,
        log_std_floor: float = -2.0,
    ) -> None:
        super().__init__()
        if (n_actions > 0) == (action_dim > 0):
            raise ValueError(
                f"a seat has {n_actions} discrete actions and {action_dim} real ones; exactly one must be 0."
            )
        made, width = layers(observation_dim, hidden, normalise=normalise)
        self.trunk = nn.Sequential(*made)
        self.cell = nn.GRU(width, memory) if memory else None
        self.head = linear(memory or width, n_actions or action_dim, 0.01)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std)) if action_dim else None
        self.floor, self.memory = log_std_floor, memory

    @classmethod
    def of(cls, game: BatchedGame, seat: str, **options: Any) -> SeatPolicy:
        """The policy of a seat of a game; options as above."""
        return cls(game.observation_dim[seat], game.n_actions[seat], game.action_dim[seat], **options)

    def forward(
        self,
        observations: Tensor,
        masks: Tensor | None = None,
        memories: Tensor | None = None,
        active: Tensor | None = None,
    ) -> tuple[PlainLaw, Tensor | None]:
        """Laws of actions along sequences.

        Args:
            observations: (L, ..., O), L steps of the same episode.
            masks: Legal actions (L, ..., A), or None.
            memories: Before the first step, (..., H); None is the start of the episode.
            active: Where a player decides, boolean (L, ...); elsewhere its memory stays as it was. None is everywhere.

        Returns:
            The laws (L, ...), and the memories after the last step.
        """
        features = self.trunk(observations.to(self.head.weight.dtype))
        if self.cell is not None:
            batch = features.shape[1:-1]
            start = None if memories is None else memories.reshape(1, -1, self.memory).to(features.dtype).contiguous()
            features, last = self._remember(self.cell, features.flatten(1, -2), start, active)
            features, memories = features.reshape(len(features), *batch, self.memory), last.reshape(*batch, self.memory)
        out = self.head(features).to(observations.dtype)  # laws are not computed in half precision
        if self.log_std is not None:
            return GaussianLaw(out, self.log_std.clamp(min=self.floor)), memories
        return CategoricalLaw(out, masks), memories

    @staticmethod
    def _remember(cell: nn.GRU, features: Tensor, start: Tensor | None, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs (L, B, H) and the last memory (1, B, H); step by step where some of the B players wait."""
        if active is None or bool(active.all()):
            found: tuple[Tensor, Tensor] = cell(features, start)
            return found
        memory = features.new_zeros(1, features.shape[1], cell.hidden_size) if start is None else start
        outputs = []
        for step, deciding in zip(features, active.flatten(1), strict=True):
            output, after = cell(step[None], memory)
            outputs.append(output)
            memory = torch.where(deciding[None, :, None], after, memory)
        return torch.cat(outputs), memory


class GatedPolicy(nn.Module):
    r"""A proxy consistent by construction: :math:`\kappa(o) \hat\alpha + (1 - \kappa(o)) \nu`, with only ν free.

    Args:
        model: Frozen policy fitted to the data.
        free: The policy that learns.
        confidence: Gives kappa in [0, 1] for observations (..., O).
    """

    def __init__(self, model: nn.Module, free: nn.Module, confidence: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.free, self.confidence = model, free, confidence
        self.memories = [cast(int, model.memory), cast(int, free.memory)]
        self.memory = sum(self.memories)

    def forward(
        self,
        observations: Tensor,
        masks: Tensor | None = None,
        memories: Tensor | None = None,
        active: Tensor | None = None,
        sure: Tensor | None = None,
    ) -> tuple[MixedLaw, Tensor | None]:
        """Mixed laws along sequences; see `SeatPolicy`. ``sure`` is the confidence where it is known already."""
        first, second = (None, None) if memories is None else torch.split(memories, self.memories, -1)
        waiting = {} if active is None else {"active": active}
        with torch.no_grad():
            frozen, after_first = self.model(observations, masks, first, **waiting)
        free, after_second = self.free(observations, masks, second, **waiting)
        after = None if after_first is None or after_second is None else torch.cat([after_first, after_second], -1)
        return MixedLaw(frozen, free, self.confidence(observations) if sure is None else sure), after


class Critic(nn.Module):
    """The value of a side from all observations of both, in units that follow its own returns.

    Args:
        inputs: Length of all observations together.
        hidden: Widths of the layers.
        normalise: Begin with layer normalisation.
        pace: Weight of a new update in the running mean and deviation.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int] = (64, 64), *, normalise: bool = False, pace: float = 0.1
    ) -> None:
        super().__init__()
        made, width = layers(inputs, hidden, normalise=normalise)
        self.network = nn.Sequential(*made, linear(width, 1, 1.0))
        self.pace = pace
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, central: Tensor) -> Tensor:
        """Standardised values (...)."""
        value: Tensor = self.network(central.to(self.shift.dtype))
        return value.squeeze(-1).to(central.dtype)

    def value(self, central: Tensor) -> Tensor:
        """Values (...) in units of reward."""
        value: Tensor = self.shift + self.scale * self(central)
        return value.to(central.dtype)

    def follow(self, targets: Tensor, live: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Move the units towards the targets' mean and deviation, and return the targets in them.

        Args:
            targets: Returns (T, N) in units of reward.
            live: Which entries count, (T, N).
            reduce: Mean over processes.
        """
        mean = reduce(masked_mean(targets, live, reduce))
        scale = reduce(masked_mean((targets - mean).square(), live, reduce)).sqrt().clamp(min=1e-4)
        pace = 1.0 if self.scale == 0 else self.pace
        self.shift.lerp_(mean.to(self.shift), pace)
        self.scale.lerp_(scale.to(self.scale), pace)
        standard: Tensor = (targets - self.shift) / self.scale
        return standard.to(targets.dtype)


Act = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]


class ScriptedPolicy(nn.Module):
    """A policy that is a plain function of what a player sees, to play with and not to train.

    Args:
        act: ``act(observations, mask, generator)`` gives actions (N, P) or (N, P, D) for observations (N, P, O).
    """

    memory = 0

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act

    def forward(
        self, observations: Tensor, masks: Tensor | None = None, memories: Tensor | None = None
    ) -> tuple[_ScriptedLaw, None]:
        """A law that only knows how to sample; its log-probabilities are 0."""
        return _ScriptedLaw(self.act, observations.cpu(), None if masks is None else masks.cpu()), None


class _ScriptedLaw:
    dimension = 1

    def __init__(self, act: Act, observations: Tensor, masks: Tensor | None) -> None:
        self.act, self.observations, self.masks = act, observations, masks

    def sample(self, generator: torch.Generator) -> Tensor:
        steps = len(self.observations)
        return torch.stack(
            [
                self.act(self.observations[t], None if self.masks is None else self.masks[t], generator)
                for t in range(steps)
            ]
        )

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.observations.new_zeros(self.observations.shape[:-1])
