"""The target's data in memory, as the data term wants them: equal pairs counted once, weighted by how often seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl.csp.update import DataBatch, Law

REFERENCE_ROWS = 4096  # what counting compares with at most


class Pairs(NamedTuple):
    """Observations and actions of the target, in the order they were seen.

    Attributes:
        observations: float32 (n, O).
        actions: int64 (n,) or float32 (n, D).
        masks: Legal actions, boolean (n, A), or None.
        episodes: Which episode each is of, int64 (n,).
        tracks: Which episode and player of the seat, int64 (n,); equal numbers stand together.
    """

    observations: Tensor
    actions: Tensor
    masks: Tensor | None
    episodes: Tensor
    tracks: Tensor

    def rows(self, index: Tensor) -> Pairs:
        """Some of the pairs."""
        masks = None if self.masks is None else self.masks[index]
        return Pairs(self.observations[index], self.actions[index], masks, self.episodes[index], self.tracks[index])

    def split(self, share: float, seed: int) -> tuple[Pairs, Pairs]:
        """Training and held-out pairs, split by whole episodes, all players of each; one episode alone is both.

        Args:
            share: Of the episodes that are held out, at least one.
            seed: Decides which.
        """
        names = torch.unique(self.episodes)
        if len(names) < 2:
            return self, self
        generator = torch.Generator().manual_seed(seed)
        held = names[torch.randperm(len(names), generator=generator)[: max(1, round(share * len(names)))]]
        out = torch.isin(self.episodes, held)
        return self.rows((~out).nonzero().squeeze(1)), self.rows(out.nonzero().squeeze(1))


class Coverage:
    """How often the data saw an observation, or one near it.

    Args:
        observations: Of the data, (n, O).
        radius: What counts as near: the root mean square of the differences in all entries, each in standard deviations
            of that entry over the data; 0 for equality.
    """

    def __init__(self, observations: Tensor, radius: float = 0.0) -> None:
        rows, counts = torch.unique(observations, dim=0, return_counts=True)
        if len(rows) > REFERENCE_ROWS:
            index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:REFERENCE_ROWS]
            counts = counts[index] * (len(observations) / counts[index].sum())
            rows = rows[index]
        exactly = observations.double()  # a mean that is rounded moves a column that never changes, by far on its scale
        self.scale = exactly.std(0, correction=0).clamp(min=1e-6).to(observations)
        self.centre = exactly.mean(0).to(observations)
        self.rows, self.counts, self.radius = (rows - self.centre) / self.scale, counts.float(), radius

    def __call__(self, observations: Tensor) -> Tensor:
        """Counts (...) of observations (..., O)."""
        flat = ((observations.flatten(0, -2) - self.centre.to(observations)) / self.scale.to(observations)).to(
            self.rows
        )
        # |x - r|^2 <= w (radius^2 + 1e-4), solved for the product: one matrix product, and no square root.
        half = self.rows.square().sum(1) / 2 - self.rows.shape[1] * (self.radius**2 + 1e-4) / 2
        found = []
        for block in torch.split(flat, 128):  # few enough for a processor's cache
            near = torch.addmm(-half, block, self.rows.T).ge_(block.square().sum(1, keepdim=True) / 2)  # 1 or 0
            found.append(near @ self.counts)
        return torch.cat(found).reshape(observations.shape[:-1]).to(observations)


class PairSampler:
    r"""Batches for the data term.

    State s, seen n(s) times, has the weight :math:`w_s \propto n(s)^{power}`: 1 counts every step alike, 0 every state
    alike, so that rare states cannot escape, 1/2 gives a state a slack like :math:`1/\sqrt{n(s)}`.

    Args:
        pairs: The data.
        power: In [0, 1].
        radius: See `Coverage`.
        batch: Pairs of a batch; when there are no more than that, every batch is all of them and has no noise.
        sequences: Give whole episodes instead, for recurrent policies.
    """

    def __init__(
        self, pairs: Pairs, *, power: float = 0.0, radius: float = 0.0, batch: int = 512, sequences: bool = False
    ) -> None:
        weights = torch.ones(len(pairs.observations))
        if power < 1:
            weights = Coverage(pairs.observations, radius)(pairs.observations).clamp(min=1) ** (power - 1)
        self.whole = _episodes(pairs, weights) if sequences else _unique(pairs, weights)
        self.total = self.whole.weights.sum(0)
        self.size = max(1, batch // int((self.whole.weights > 0).sum(0).max()))

    def draw(self, generator: torch.Generator) -> DataBatch:
        """A batch of pairs or episodes, drawn by their weights."""
        whole, size = self.whole, self.size
        if len(self.total) <= size:
            return whole
        chosen = torch.multinomial(self.total, size, replacement=True, generator=generator).to(whole.weights.device)
        weights = whole.weights[:, chosen]
        weights = weights / weights.sum(0) / size
        masks = None if whole.masks is None else whole.masks[:, chosen]
        model = None if whole.model is None else _columns(whole.model, chosen)
        return DataBatch(whole.observations[:, chosen], whole.actions[:, chosen], masks, weights, model)

    def to(self, device: torch.device) -> PairSampler:
        """Move the data; a model has to be evaluated again."""
        self.whole = DataBatch(*(x.to(device) if isinstance(x, Tensor) else None for x in self.whole))  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> None:
        """Evaluate a frozen policy on all the data once, so that no step has to."""
        self.whole = self.whole._replace(model=model(self.whole.observations, self.whole.masks, None)[0])


def _columns(law: Law, chosen: Tensor) -> Law:
    """The laws of some columns, of an object that holds them as tensors (L, B, ...) or as other laws."""
    part = copy.copy(law)
    for name, value in vars(law).items():
        if isinstance(value, Tensor):
            setattr(part, name, value[:, chosen])
        elif hasattr(value, "log_prob"):
            setattr(part, name, _columns(value, chosen))
    return part


def _unique(pairs: Pairs, weights: Tensor) -> DataBatch:
    """Distinct (observation, action, mask) with the sum of their weights, as sequences of length 1."""
    actions = pairs.actions[:, None] if pairs.actions.dim() == 1 else pairs.actions
    parts: Sequence[Tensor] = [pairs.observations, actions] + ([] if pairs.masks is None else [pairs.masks])
    table = torch.cat([part.double() for part in parts], 1)
    _, group = torch.unique(table, dim=0, return_inverse=True)
    size = int(group.max()) + 1
    first = torch.full((size,), len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")
    summed = torch.zeros(size, dtype=weights.dtype).index_add(0, group, weights)
    rows = pairs.rows(first)
    masks = None if rows.masks is None else rows.masks[None]
    return DataBatch(rows.observations[None], rows.actions[None], masks, (summed / summed.sum())[None])


def _episodes(pairs: Pairs, weights: Tensor) -> DataBatch:
    """Whole episodes, padded at the end with pairs of weight 0."""
    _, lengths = torch.unique_consecutive(pairs.tracks, return_counts=True)

    def pad(x: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(x, lengths.tolist())))

    masks = pairs.masks
    padded = None if masks is None else pad(masks)
    if padded is not None:
        padded = padded | ~padded.any(-1, keepdim=True)
    return DataBatch(pad(pairs.observations), pad(pairs.actions), padded, pad(weights / weights.sum()))
