"""Batched simulators against the same environment under Stable-Baselines3, and what gradients add to a rollout.

Every figure counts whole decisions: the observation, two networks of two layers of 64, a sampled action and the step of
the simulator, on one thread. ``steps_ratio_vs_sb3`` compares steps per second of a batch of 4 096 episodes with those
of the same simulator as a Gymnasium environment, asked for actions by Stable-Baselines3's PPO policy, in Gymnasium's
``SyncVectorEnv`` or under PPO's own collection of rollouts in ``DummyVecEnv``, at 8 or 64 copies: the fastest of these.
``steps_ratio_vs_numpy`` is against the same inventory written by hand in numpy for one episode, which no tensor slows
down. ``backward_over_forward`` is a rollout with its backward pass over a forward-only rollout of the same batch, and
``update_over_forward`` a whole training step of ``HPOModule``, with the clipped epochs of the discrete head, over the
same. Figures are the worst median over the problems. Takes about ten minutes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import lightning
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from benchmarks.common import interleaved_times, median_ratio, write_results
from recipes.running.quiet import silent_trainer
from rl.envs.action_spaces import FlatActions
from rl.envs.hybrid import HybridSimulator
from rl.envs.inventory import RAW_LIMIT, Inventory, joint_replenishment, single_item
from rl.envs.switched_lqr import switched_lqr
from rl.envs.to_gymnasium import SimulatorEnv, action_space
from rl.hpo.data import SeedDataModule, Seeds
from rl.hpo.module import HPOModule
from rl.hpo.rollout import Rollout, rollout

BATCH = 4096  # of our rollouts, as an accelerator's user would choose
TRAINED = 512  # episodes of a training step
COPIES = (8, 64)  # of a peer's environment
PEER_STEPS = 1024  # that a peer takes in a round
ROUNDS = 7
SAME, BY_HAND = "same environment", "numpy environment"
PROBLEMS: Mapping[str, Callable[[], HybridSimulator]] = {
    "inventory, 1 item": single_item,
    "inventory, 10 items": partial(joint_replenishment, 10),
    "switched LQR, dimension 10": partial(switched_lqr, 10, 2),
}


class NumpyInventory(gymnasium.Env):  # type: ignore[misc]
    """The same inventory as an author of a single environment would write it: numpy, one episode, no tensors."""

    def __init__(self, simulator: Inventory) -> None:
        self.mean, self.holding, self.shortage = (
            tensor.numpy() for tensor in (simulator.mean, simulator.holding, simulator.shortage)
        )
        self.fixed_cost, self.horizon, self.lead_time = simulator.fixed_cost, simulator.horizon, simulator.lead_time
        self.action_space = action_space(simulator, 10.0)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (simulator.observation_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """An empty store."""
        super().reset(seed=seed)
        self.t, self.queue = 0, [np.zeros_like(self.mean)] * self.lead_time  # stock, then orders under way
        return self.seen(), {}

    def seen(self) -> Any:
        """Stock and orders under way, in mean demands."""
        return np.concatenate([part / self.mean for part in self.queue]).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One period."""
        ordering = action["mode"] == 1
        raw = RAW_LIMIT * np.tanh(action["parameters"] / RAW_LIMIT)
        placed = self.mean * np.logaddexp(0, raw + 1) if ordering else np.zeros_like(self.mean)
        left = self.queue[0] - self.np_random.poisson(self.mean)
        cost = np.where(left > 0, self.holding * left, -self.shortage * left).sum() + self.fixed_cost * ordering
        self.queue = [*self.queue[1:], placed]
        self.queue[0] = left + self.queue[0]
        self.t += 1
        return self.seen(), -float(cost) / len(self.mean), False, self.t == self.horizon, {}


def peers(name: str, simulator: HybridSimulator) -> dict[str, Callable[[], Any]]:
    """Each way to take ``PEER_STEPS`` steps with Stable-Baselines3's policy, by what it is."""
    makers = {SAME: partial(SimulatorEnv, simulator)}
    if isinstance(simulator, Inventory):
        makers[BY_HAND] = partial(NumpyInventory, simulator)
    ways: dict[str, Callable[[], Any]] = {}
    for kind, make in makers.items():
        for copies in COPIES:
            flat = [lambda make=make: FlatActions(make())] * copies
            agent = PPO(
                "MlpPolicy",
                DummyVecEnv(flat),
                n_steps=PEER_STEPS // copies,
                batch_size=PEER_STEPS,
                device="cpu",
                seed=0,
            )
            _, callback = agent._setup_learn(PEER_STEPS, CallbackList([]))
            ways[f"{kind}, PPO's collection, {copies} copies"] = partial(
                agent.collect_rollouts, agent.env, callback, agent.rollout_buffer, PEER_STEPS // copies
            )
            vector = gymnasium.vector.SyncVectorEnv(flat)
            ways[f"{kind}, SyncVectorEnv, {copies} copies"] = partial(drive, agent, vector, PEER_STEPS // copies)
    return {f"{name}: {way}": function for way, function in ways.items()}


@torch.no_grad()
def drive(agent: Any, vector: Any, steps: int) -> None:
    """Step a vector environment of Gymnasium with an agent's sampled actions."""
    observation, _ = vector.reset(seed=0)
    for _ in range(steps):
        action, _, _ = agent.policy(torch.as_tensor(observation))
        observation = vector.step(action.numpy().clip(vector.action_space.low, vector.action_space.high))[0]


def play(module: HPOModule, batch: Seeds) -> Rollout:
    """A rollout of the module's policy, with sampled modes."""
    noise, draws = module.draw(batch, greedy=False, noisy=False)
    return rollout(module.simulator, module.policy, noise, draws)


def forward(module: HPOModule, batch: Seeds) -> None:
    """A rollout without gradients."""
    with torch.no_grad():
        play(module, batch)


def backward(module: HPOModule, batch: Seeds) -> None:
    """A rollout and the gradient of the mixed surrogate."""
    module.policy.zero_grad()
    roll = play(module, batch)
    with torch.no_grad():
        later: Tensor = roll.costs.flip(1).cumsum(1).flip(1)
        later = later - later.mean(0)
    score = roll.log_probs.gather(2, roll.modes[:, :, None])[:, :, 0] * later
    (roll.costs.sum(1).mean() + score.sum(1).mean()).backward()


class Stopwatch(lightning.Callback):  # type: ignore[misc]
    """Times every training step, and a forward-only rollout of the same batch right after it."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.forwards: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the watch."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Stop it, and time the rollout."""
        stop = time.perf_counter()
        forward(module, batch)
        self.updates.append(stop - self.start)
        self.forwards.append(time.perf_counter() - stop)


def time_updates(simulator: HybridSimulator) -> tuple[list[float], list[float]]:
    """Seconds of training steps, and of forward-only rollouts, after one of each."""
    watch = Stopwatch()
    trainer = silent_trainer(max_epochs=1, callbacks=[watch], limit_val_batches=0)
    data = SeedDataModule(ROUNDS + 1, TRAINED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(HPOModule(simulator, diagnose_every=0), data)
    return watch.updates[1:], watch.forwards[1:]


def main() -> None:
    """Measure, print and write the figures."""
    torch.set_num_threads(1)
    speeds: dict[str, list[dict[str, float]]] = {SAME: [], BY_HAND: []}
    gradients, updates = [], []
    rows: dict[str, list[dict[str, Any]]] = {"steps": [], "gradients": []}
    for name, make in PROBLEMS.items():
        module = HPOModule(make())
        groups = Seeds(torch.arange(BATCH // 512), 512)
        others = peers(name, module.simulator)
        times = interleaved_times({"ours": partial(forward, module, groups), **others}, repeats=ROUNDS)
        ours = [seconds / (BATCH * module.simulator.horizon) for seconds in times["ours"]]
        rows["steps"].append({"who": f"{name}: batch of {BATCH}", "steps_per_second": 1 / float(np.median(ours))})
        ratios = {}
        for other in others:
            each = [seconds / PEER_STEPS for seconds in times[other]]
            ratios[other] = median_ratio(each, ours)
            rows["steps"].append(
                {"who": other, "steps_per_second": 1 / float(np.median(each)), "ours_over": ratios[other]}
            )
        for kind, found in speeds.items():
            found.extend(ratio for way, ratio in ratios.items() if kind in way)
        for batch in (TRAINED, BATCH):
            seeds = Seeds(torch.arange(batch // 512), 512)
            pair = interleaved_times(
                {"forward": partial(forward, module, seeds), "both": partial(backward, module, seeds)}, repeats=ROUNDS
            )
            ratio = median_ratio(pair["both"], pair["forward"])
            rows["gradients"].append({"problem": name, "batch": batch, "what": "with backward", "over_forward": ratio})
        gradients.append(ratio)
        updates.append(median_ratio(*time_updates(make())))
        rows["gradients"].append({"problem": name, "batch": TRAINED, "what": "update", "over_forward": updates[-1]})
        print(name, *ratios.values(), gradients[-1], updates[-1], sep="\n  ", flush=True)
    for row in (*rows["steps"], *rows["gradients"]):
        print(*row.values(), sep="  ")
    figures = {
        "steps_ratio_vs_sb3": min(speeds[SAME], key=lambda ratio: ratio["value"]),
        "steps_ratio_vs_numpy": min(speeds[BY_HAND], key=lambda ratio: ratio["value"]),
        "backward_over_forward": max(gradients, key=lambda ratio: ratio["value"]),
        "update_over_forward": max(updates, key=lambda ratio: ratio["value"]),
    }
    print(write_results("simulators", figures, rows, 1))


if __name__ == "__main__":
    main()
