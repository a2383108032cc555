"""Several heads in place of one mode among all combinations: unbiased by enumeration, and ten set-ups at once.

Three steps, heads of two and three modes, a noise of two values and a mode that may not be chosen in the second step
make 1 152 episodes, so the expectation of any estimator is a finite sum in float64, and so is the true gradient:
``max_rel_error`` is the largest relative error over the forms that should be unbiased, by the policy and the surrogate
that training uses; wrong forms stand beside them. ``lots_over_heuristic`` is the last policy's cost in capacitated lot
sizing with ten set-ups a period over that of the best heuristic, whose two numbers are tuned, on the same demand;
``lots_over_bound`` compares with the items' optimal costs without a capacity. Every training is a cell under
runs/benchmarks.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import write_results
from benchmarks.hpo_cells import cell, rows_of
from recipes.running.intervals import interval
from rl.envs.hybrid import HybridSimulator, Noise, State
from rl.hpo.policies import HybridPolicy
from rl.hpo.rollout import Draws, Rollout, rollout
from rl.hpo.surrogate import advantages_of, clipped_surrogate, mixed_surrogate, mode_log_probs

T, G = 3, 0.95
SEEDS = 3
LOTS: dict[str, Any] = {"entropy_start": 0.02, "max_norm": 0.5}
UPDATES, BATCH = 160, 256


class Headed(HybridSimulator):
    """Two states and two inputs, moved by heads of two and three modes; the last mode is forbidden at step 1."""

    heads = (2, 3)
    action_dim, observation_dim, horizon, discount, report = 2, 2, T, G, "total"

    def __init__(self, generator: torch.Generator) -> None:
        def draw(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.dtype = torch.float64
        self.A = 0.9 * torch.eye(2, dtype=torch.float64) + draw(2, 2, 2, scale=0.25)
        self.B = draw(3, 2, 2, scale=0.7)
        self.shift = draw(2, 2, scale=0.6)
        self.fixed = draw(2, 3, scale=0.5)
        self.probability = torch.tensor([0.4, 0.6], dtype=torch.float64)

    def sample_noise(self, batch: int, generator: torch.Generator) -> Noise:
        """Which of the two values comes, int64 (batch, 3)."""
        return {"z": torch.multinomial(self.probability.expand(batch, -1), T, replacement=True, generator=generator)}

    def every_episode(self) -> tuple[Noise, Tensor, Tensor]:
        """All pairs of allowed modes (N, 3, 2) and noise, and the probability of the noise."""
        pairs = list(itertools.product(range(2), range(3)))
        words = [word for word in itertools.product(pairs, repeat=T) if word[1][1] != 2]
        values = torch.tensor(list(itertools.product(range(2), repeat=T)))
        z = values.repeat(len(words), 1)
        return {"z": z}, torch.tensor(words).repeat_interleave(len(values), 0), self.probability[z].prod(1)

    def reset(self, noise: Noise) -> State:
        """``s`` (batch, 2), the same in every episode."""
        return {"s": torch.tensor([1.2, -0.7], dtype=self.dtype).expand(len(noise["z"]), -1)}

    def observe(self, state: State, t: int) -> Tensor:
        """The state itself."""
        return state["s"]

    def mode_mask(self, state: State, t: int) -> Tensor:
        """Everything but the third mode of the second head in the second step."""
        allowed = torch.ones(len(state["s"]), 2, 3, dtype=torch.bool)
        allowed[:, 1, 2] = t != 1
        return allowed

    def step(self, state: State, mode: Tensor, action: Tensor, noise: Noise, t: int) -> tuple[State, Tensor]:
        """The first head picks the dynamics, the second the input's matrix, and both a fixed cost."""
        s, first, second = state["s"], mode[:, 0], mode[:, 1]
        moved = torch.einsum("bij,bj->bi", self.A[first], s) + torch.einsum("bij,bj->bi", self.B[second], action)
        following = moved + 0.2 * s.sin() + self.shift[noise["z"][:, t]]
        cost = 0.5 * s.square().sum(1) + 0.15 * action.square().sum(1) + self.fixed[first, second]
        if t == T - 1:
            cost = cost + G * 2 * following.square().sum(1)
        return {"s": following}, cost


def make() -> tuple[Headed, HybridPolicy]:
    """The problem and a policy far from indifferent, always the same."""
    simulator = Headed(torch.Generator().manual_seed(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        policy = HybridPolicy(2, 1, 2, [5], heads=simulator.heads).double()
        for parameter in [*policy.discrete.parameters(), *policy.continuous.parameters()]:
            nn.init.normal_(parameter, std=0.7)
    return simulator, policy


def all_episodes(simulator: Headed, policy: HybridPolicy, **options: Any) -> tuple[Rollout, Tensor]:
    """Every episode once, and its live probability."""
    noise, modes, probability = simulator.every_episode()
    forced = 1e9 * nn.functional.one_hot(modes, 3).double()
    roll = rollout(simulator, policy, noise, Draws(gumbel=forced), **options)
    if not torch.equal(roll.modes, modes):
        raise ValueError("the enumerated modes were not those that were played.")
    return roll, probability * mode_log_probs(roll.log_probs, modes, heads=True).sum(1).exp()


def value(simulator: Headed, policy: HybridPolicy, s: Tensor, t: int) -> Tensor:
    """Exact value of a state, by recursion over the modes of both heads and the noise."""
    found = torch.zeros_like(s[:, 0])
    if t == T:
        return found
    law = policy.log_probs(s, simulator.mode_mask({"s": s}, t)).exp()
    for pair in itertools.product(range(2), range(3)):
        mode = torch.tensor(pair).expand(len(s), 2)
        action = policy.raw_actions(s, mode)[:, 0]
        for z in range(2):
            noise = {"z": torch.full((len(s), T), z)}
            following, cost = simulator.step({"s": s}, mode, action, noise, t)
            later = cost + G * value(simulator, policy, following["s"], t + 1)
            found = found + law[:, 0, pair[0]] * law[:, 1, pair[1]] * simulator.probability[z] * later
    return found


def _values(simulator: Headed, policy: HybridPolicy, s: Tensor, t: int) -> Tensor:
    """Exact values of states of which many are equal."""
    distinct, places = torch.unique(s, dim=0, return_inverse=True)
    return value(simulator, policy, distinct, t)[places]


def forms(simulator: Headed, policy: HybridPolicy) -> dict[str, tuple[bool, Tensor]]:
    """Every form of the estimator: whether it should be unbiased, and its surrogate of every episode."""
    roll, _ = all_episodes(simulator, policy)
    cut, _ = all_episodes(simulator, policy, cross_term=False)
    with torch.no_grad():
        states = roll.observations
        V = torch.stack([_values(simulator, policy, states[:, t], t) for t in range(T + 1)], 1)
        wrong = torch.cat([0.6 * V[:, :T] + 1, V[:, T:]], 1)
        to_go = advantages_of(roll.costs, torch.zeros_like(V), discount=G)
        baseline = 0.7 * states[:, :T].sum(-1) + 1.3
    weights = G ** torch.arange(T, dtype=torch.float64)
    pathwise = (weights * roll.costs).sum(1)
    log_prob = mode_log_probs(roll.log_probs, roll.modes, heads=True)

    def full(advantages: Tensor, episodes: Rollout = roll) -> Tensor:
        return mixed_surrogate(episodes.costs, episodes.log_probs, episodes.modes, advantages, discount=G).total

    one_head = mode_log_probs(roll.log_probs[:, :, :1], roll.modes[..., :1], heads=True)
    return {
        "cost-to-go": (True, full(to_go)),
        "cost-to-go and an arbitrary state baseline": (True, full(to_go - baseline)),
        "GAE 0.7, exact value": (True, full(advantages_of(roll.costs, V, discount=G, trace=0.7))),
        "GAE 1, wrong value": (True, full(advantages_of(roll.costs, wrong, discount=G))),
        "clipped form at ratio 1, all heads in one ratio": (
            True,
            pathwise + (weights * clipped_surrogate(log_prob, log_prob.detach(), to_go - baseline, 0.2)).sum(1),
        ),
        "no cross term: scores on detached states": (False, full(to_go, cut)),
        "pathwise only": (False, pathwise),
        "score of the first head only": (False, pathwise + (weights * one_head * to_go).sum(1)),
    }


def flat_gradient(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient as one vector."""
    found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def errors() -> Iterator[dict[str, Any]]:
    """One row for each form: its expectation against the exact gradient."""
    simulator, policy = make()
    parts = {name: list(getattr(policy, name).parameters()) for name in ("discrete", "continuous")}
    roll, probability = all_episodes(simulator, policy)
    total = (roll.costs * G ** torch.arange(T, dtype=torch.float64)).sum(1)
    truth = {name: flat_gradient((probability * total).sum(), held) for name, held in parts.items()}
    whole = torch.cat(list(truth.values()))
    for form, (unbiased, surrogate) in forms(simulator, policy).items():
        mean = {name: flat_gradient((probability.detach() * surrogate).sum(), held) for name, held in parts.items()}
        row: dict[str, Any] = {"form": form, "unbiased": unbiased}
        row["rel_error"] = float((torch.cat(list(mean.values())) - whole).norm() / whole.norm())
        for name, gradient in truth.items():
            row[f"rel_error_{name}"] = float((mean[name] - gradient).norm() / gradient.norm())
        yield row


def main() -> None:
    """Enumerate, train what is missing, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES, help="other than the full number: a trial")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="likewise")
    options = parser.parse_args()
    rows = list(errors())
    for row in rows:
        print(f"{row['form']}: {row['rel_error']:.1e}")
    path = "rl.envs.lot_sizing.ten_items"
    lots = [
        cell("hpo_factored", "lots", path, {}, LOTS, seed=seed, updates=options.updates, batch=BATCH)
        for seed in range(options.seeds)
    ]
    if (options.updates, options.seeds) != (UPDATES, SEEDS):
        return
    by_form = {row["form"]: row["rel_error"] for row in rows}
    figures = {
        "max_rel_error": max(row["rel_error"] for row in rows if row["unbiased"]),
        "no_cross_error": by_form["no cross term: scores on detached states"],
        "one_head_error": by_form["score of the first head only"],
        "lots_over_heuristic": interval([row["cost"] / row["reference_cost"] for row in lots]),
        "lots_over_bound": interval([row["cost"] / row["lower bound"] for row in lots]),
        "lots_seconds": max(row["seconds"] for row in lots),
    }
    print(write_results("hpo_factored", figures, {"forms": rows, "lots": rows_of(lots)}, SEEDS))


if __name__ == "__main__":
    main()
