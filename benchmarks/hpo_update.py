"""What an update costs beside the same update written by hand, with no checks, no protocol and no Lightning.

One update of the switched LQR at dimension 24: 128 episodes of 20 steps, two layers of 96, one pass of reuse:
``update_over_hand_written`` is the whole training step, with everything that the trainer does around it, over a loop of
forty lines that ends in the same weights (the script compares them and stops where they differ);
``update_over_matmuls`` is over the matrix products alone of both directions, as bare ``torch.mm``;
``compiled_over_plain`` is the update with the simulator's step under ``torch.compile`` over the update without, each
over its own hand-written rounds. All are medians, over rounds in which each runs once, of ratios of the seconds of
processor time that the one thread took, so that other work on the machine leaves them alone.
``hand_written_over_matmuls`` says how much of that is torch's own: activations, samples, costs and the optimizer.
Takes about two minutes on an idle core.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
import warnings
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from benchmarks.common import median_ratio, write_results
from rl.hpo.data import SeedDataModule, Seeds
from rl.hpo.module import HPOModule

WARM_UP, ROUNDS = 8, 60
DIMENSION, WIDTH, BATCH = 24, 96, 128
OPTIONS: dict[str, Any] = {"diagnose_every": 0, "final_rate": 1.0, "entropy_start": 0.3, "entropy_end": 0.3}


def make(dimension: int = DIMENSION, width: int = WIDTH, **options: Any) -> HPOModule:
    """The module whose update is measured; its rates and its entropy bonus stand still."""
    arguments = {"dimension": dimension, "modes": 2}
    return HPOModule("rl.envs.switched_lqr.switched_lqr", arguments, hidden=[width, width], **OPTIONS, **options)


class HandWritten:
    """The same update for this one problem and these options.

    Args:
        module: Whose networks are copied.
    """

    def __init__(self, module: HPOModule) -> None:
        policy, plant = copy.deepcopy(module.policy), module.simulator
        self.discrete, self.continuous, self.critic = policy.discrete, policy.continuous, policy.critic
        self.log_std = policy.log_std
        self.Q, self.R, self.plant = plant.Q, plant.R, plant.plant  # type: ignore[attr-defined]
        self.initial, self.horizon = plant.initial, plant.horizon  # type: ignore[attr-defined]
        self.shift, self.scale = torch.zeros(()), torch.zeros(())
        self.groups = [
            [*self.continuous.parameters(), self.log_std],
            list(self.discrete.parameters()),
            list(self.critic.parameters()),
        ]
        rates = (3e-3, 5e-3, 3e-3)
        groups = [{"params": held, "lr": rate} for held, rate in zip(self.groups, rates, strict=True)]
        self.adam = torch.optim.Adam(groups, eps=1e-5)

    def draw(self, batch: Seeds) -> tuple[Tensor, Tensor]:
        """First states and Gumbel noise."""
        states, gumbels = [], []
        for seed in batch.seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(batch.episodes, len(self.Q), generator=generator)
            states.append((2 * uniform - 1) * self.initial)
            noise = torch.empty(batch.episodes, self.horizon, 2).exponential_(generator=generator)
            gumbels.append(-noise.log())
        return torch.cat(states), torch.cat(gumbels)

    def update(self, batch: Seeds) -> None:
        """Simulate, one step along the mixed gradient, four of reuse."""
        x, gumbel = self.draw(batch)
        seen, logits, modes, costs = [], [], [], []
        for t in range(self.horizon):
            scores = self.discrete(x)
            mode = (scores.detach() + gumbel[:, t]).argmax(-1)
            pick = mode[:, None, None].expand(-1, 1, len(self.Q))
            action = self.continuous(x).unflatten(1, (2, -1)).gather(1, pick).squeeze(1)
            costs.append(((x @ self.Q) * x).sum(1) + ((action @ self.R) * action).sum(1))
            seen.append(x.detach())
            logits.append(scores)
            modes.append(mode)
            following = (torch.cat([x, action], 1) @ self.plant).unflatten(1, (2, -1))
            x = following.gather(1, pick).squeeze(1).clamp(-100, 100)
        observations, cost, mode = torch.stack([*seen, x.detach()], 1), torch.stack(costs, 1), torch.stack(modes, 1)
        law = torch.stack(logits, 1).log_softmax(-1)
        taken = law.gather(-1, mode.unsqueeze(-1)).squeeze(-1)
        advantages, targets, scale = self.judge(observations, cost.detach())
        loss = (cost.sum(1) + (taken * advantages).sum(1)).mean() / (scale * self.horizon)
        self.step(loss, [])
        data = (observations[:, :-1], mode, advantages / scale, targets, taken.detach())
        places = (torch.arange(self.horizon) + torch.arange(len(cost))[:, None]).flatten() % 4
        order = places.argsort(stable=True)
        rows = [part.flatten(0, 1)[order].chunk(4) for part in data]
        kl = torch.zeros(())
        for part in zip(*rows, strict=True):
            kl = self.reuse(*part, kl)

    @torch.no_grad()
    def judge(self, observations: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages less their mean, standardised targets of the value, and the scale of the advantages."""
        values = self.shift + self.scale * self.critic(observations).squeeze(-1)
        values[:, -1] = 0
        surprise, found, later = cost + 0.99 * values[:, 1:] - values[:, :-1], [], torch.zeros(len(cost))
        for each in surprise.unbind(1)[::-1]:
            later = each + 0.99 * 0.98 * later
            found.append(later)
        advantages = torch.stack(found[::-1], 1)
        targets = advantages + values[:, :-1]
        mean, scale = advantages.mean(), (advantages - advantages.mean()).square().mean().sqrt()
        spread = (targets - targets.mean()).square().mean().sqrt()
        weight = 1.0 if self.scale == 0 else 0.05
        self.shift, self.scale = self.shift.lerp(targets.mean(), weight), self.scale.lerp(spread, weight)
        return advantages - mean, (targets - self.shift) / self.scale, scale

    def reuse(self, seen: Tensor, mode: Tensor, advantages: Tensor, targets: Tensor, old: Tensor, kl: Tensor) -> Tensor:
        """A step of the value, and a clipped one of the modes as long as they are near."""
        loss = (self.critic(seen).squeeze(-1) - targets).square().mean()
        still = [*self.groups[0], *self.groups[1]]
        if kl <= 0.015:
            law = self.discrete(seen).log_softmax(-1)
            new = law.gather(-1, mode.unsqueeze(-1)).squeeze(-1)
            with torch.no_grad():
                log_ratio = new - old
                kl = (log_ratio.exp() - 1 - log_ratio).mean()
            if kl <= 0.015:
                still = self.groups[0]
                ratio = (new - old).exp()
                clipped = torch.maximum(ratio * advantages, ratio.clamp(0.85, 1.15) * advantages)
                loss = loss + clipped.mean() + 0.3 * (law.exp() * law).sum(-1).mean()
        self.step(loss, still)
        return kl

    def step(self, loss: Tensor, still: list[nn.Parameter]) -> None:
        """Backward, clip each network, Adam."""
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.groups:
            for parameter in group:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        for parameter in still:
            parameter.grad = None
        for group in self.groups:
            torch.nn.utils.clip_grad_norm_(group, 5.0)
        self.adam.step()


class Products:
    """The matrix products of an update, forward and backward, and nothing else.

    Args:
        hand: Whose networks say their sizes.
    """

    def __init__(self, hand: HandWritten) -> None:
        def of(net: nn.Module) -> list[Tensor]:
            return [layer.weight.detach().T.contiguous() for layer in net.modules() if isinstance(layer, nn.Linear)]

        n, B, T = len(hand.Q), BATCH, hand.horizon
        live = [*of(hand.discrete), *of(hand.continuous), hand.Q, hand.R, hand.plant]
        constant = 3  # products with the simulator's matrices need no gradient by them
        self.calls: list[tuple[Tensor, Tensor]] = []
        for index, w in enumerate(live * T):
            place = index % len(live)
            self._add(w, B, by_weight=place < len(live) - constant)
        for w in of(hand.critic):
            self._add(w, B * (T + 1), by_weight=False, by_input=False)
        for w in (of(hand.critic) + of(hand.discrete)) * 4:
            self._add(w, B * T // 4, by_weight=True, by_input=w.shape[0] != n)

    def _add(self, w: Tensor, rows: int, *, by_weight: bool, by_input: bool = True) -> None:
        a, g = torch.randn(rows, w.shape[0]), torch.randn(rows, w.shape[1])
        self.calls.append((a, w))
        if by_input:
            self.calls.append((g, w.T))
        if by_weight:
            self.calls.append((a.T, g))

    def run(self) -> None:
        """All of them."""
        for one, other in self.calls:
            torch.mm(one, other)


class Clock(lightning.Callback):
    """Times every update of a trainer, and after each the hand-written one and the products."""

    def __init__(self, hand: HandWritten) -> None:
        self.hand, self.products = hand, Products(hand)
        self.times: dict[str, list[float]] = {"update": [], "hand_written": [], "matmuls": []}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self.last = time.thread_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Seeds, batch_idx: int) -> None:
        """Everything since the last call, but what this method does, belongs to the update."""
        stamps = [self.last, time.thread_time()]
        for function in (lambda: self.hand.update(batch), self.products.run):
            function()
            stamps.append(time.thread_time())
        for times, one, other in zip(self.times.values(), stamps, stamps[1:], strict=False):
            times.append(other - one)
        self.last = time.thread_time()


def measure(*, compiled: bool = False, rounds: int = ROUNDS) -> tuple[dict[str, list[float]], float]:
    """Seconds by round of each, and the largest difference of a weight after all updates."""
    module = make()
    if compiled:
        module.simulator.step = torch.compile(module.simulator.step)  # type: ignore[method-assign]
    hand = HandWritten(module)
    clock = Clock(hand)
    data = SeedDataModule(WARM_UP + rounds, BATCH, group_size=64, validation_episodes=64, test_episodes=64)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "limit_val_batches": 0}
    lightning.Trainer(max_epochs=1, callbacks=[clock], **quiet).fit(module, data)
    parts = ("discrete", "continuous", "critic")
    pairs = [
        (one, other)
        for name in parts
        for one, other in zip(getattr(module.policy, name).parameters(), getattr(hand, name).parameters(), strict=True)
    ]
    apart = max(float((one - other).detach().abs().max()) for one, other in pairs)
    return {name: times[WARM_UP:] for name, times in clock.times.items()}, apart


def main() -> None:
    """Measure and write the figures."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    plain, apart = measure()
    print(f"largest difference of a weight after {WARM_UP + ROUNDS} updates: {apart:.1e}")
    if apart > 1e-2:
        raise ValueError("the hand-written update is not the same update; its time says nothing.")
    compiled, _ = measure(compiled=True)
    ratios = {
        name: median_ratio(times["update"], times["hand_written"])
        for name, times in (("plain", plain), ("compiled", compiled))
    }
    figures: dict[str, Any] = {
        "update_over_hand_written": ratios["plain"],
        "update_over_matmuls": median_ratio(plain["update"], plain["matmuls"]),
        "hand_written_over_matmuls": median_ratio(plain["hand_written"], plain["matmuls"]),
        "compiled_over_plain": ratios["compiled"]["value"] / ratios["plain"]["value"],
        "largest_difference": apart,
    }
    rows = [
        {"update": name, **{what: statistics.median(seconds) for what, seconds in times.items()}}
        for name, times in (("plain", plain), ("compiled", compiled))
    ]
    for name, value in figures.items():
        print(name, value)
    print(write_results("hpo_update", figures, {"median seconds": rows}, seeds=1))


if __name__ == "__main__":
    main()
