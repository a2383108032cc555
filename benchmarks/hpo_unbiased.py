"""The mixed-gradient estimator against the exact gradient of a problem whose every episode can be listed.

Three steps, three modes and a noise of two values make 216 episodes, so the expectation of any estimator is a finite
sum in float64, and so is the true gradient: the derivative of that sum itself, with the probabilities of the modes in
it. ``max_rel_error`` is the largest relative error over all forms that should be unbiased, for separate networks and
for a shared trunk; the wrong forms stand beside them with the size of their error. The Monte-Carlo rows draw 400 000
episodes. The last table follows the cross term as the modes sharpen towards a best response, and towards something
else. Takes about half a minute.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import write_results
from rl.envs.enumerable import Enumerable
from rl.envs.hybrid import State
from rl.hpo.rollout import Draws, Rollout, rollout
from rl.hpo.surrogate import (
    advantages_of,
    branched_advantages,
    clipped_surrogate,
    mixed_surrogate,
    mode_log_probs,
    window_tails,
)

SAMPLES = 400_000
STARTS = 40
G = Enumerable.discount
T = Enumerable.horizon


class ToyPolicy(nn.Module):
    """Linear logits and one linear action for each mode, of the state or of a shared tanh trunk."""

    def __init__(self, generator: torch.Generator, shared: bool) -> None:
        super().__init__()

        def draw(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator, dtype=torch.float64))

        width = 4 if shared else 2
        self.trunk = draw(4, 2, scale=0.8) if shared else None
        self.W, self.w = draw(3, width, scale=1.2), draw(3, scale=0.3)
        self.K, self.k = draw(3, 2, width, scale=0.5), draw(3, 2, scale=0.3)

    def features(self, s: Tensor) -> Tensor:
        """The state, or the trunk's view of it."""
        return s if self.trunk is None else torch.tanh(s @ self.trunk.T)

    def log_probs(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of the modes, (batch, 3)."""
        return self.logits(observation, mask).log_softmax(-1)

    def logits(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Likewise, before they are normalised."""
        return self.features(observation) @ self.W.T + self.w

    def raw_actions(self, observation: Tensor) -> Tensor:
        """Of all modes, (batch, 3, 2)."""
        return torch.einsum("jmn,bn->bjm", self.K, self.features(observation)) + self.k

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the discrete and of the continuous policy."""
        return {"discrete": [self.W, self.w], "continuous": [self.K, self.k]}


def make(shared: bool) -> tuple[Enumerable, ToyPolicy]:
    """The problem and a policy, always the same."""
    generator = torch.Generator().manual_seed(3)
    return Enumerable(generator), ToyPolicy(generator, shared)


def all_episodes(simulator: Enumerable, policy: Any, **options: Any) -> tuple[Rollout, Tensor]:
    """Every episode once, and its live probability (216,)."""
    noise, modes, probability = simulator.every_episode()
    forced = 1e9 * nn.functional.one_hot(modes, simulator.n_modes).double()
    roll = rollout(simulator, policy, noise, Draws(gumbel=forced), **options)
    return roll, probability * mode_log_probs(roll.log_probs, modes).sum(1).exp()


def value(simulator: Enumerable, policy: Any, s: Tensor, t: int) -> Tensor:
    """Exact value of a state, by recursion over all modes and noise; live."""
    if t == T:
        return torch.zeros_like(s[:, 0])
    probability = policy.log_probs(s).exp()
    return sum((probability[:, j] * q_value(simulator, policy, s, j, t) for j in range(3)), torch.zeros_like(s[:, 0]))


def q_value(simulator: Enumerable, policy: Any, s: Tensor, j: int, t: int) -> Tensor:
    """Exact value of a mode in a state; live."""
    mode, found = torch.full((len(s),), j), torch.zeros_like(s[:, 0])
    action = policy.raw_actions(s)[:, j]
    for z in range(2):
        noise = {"z": torch.full((len(s), T), z)}
        following, cost = simulator.step({"s": s}, mode, action, noise, t)
        found = found + simulator.probability[z] * (cost + G * value(simulator, policy, following["s"], t + 1))
    return found


def flat_gradient(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient as one vector."""
    found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def exact_gradient(simulator: Enumerable, policy: ToyPolicy) -> Tensor:
    """Derivative of the expected discounted cost, which is a finite sum."""
    roll, probability = all_episodes(simulator, policy)
    total = (roll.costs * G ** torch.arange(T, dtype=torch.float64)).sum(1)
    return flat_gradient((probability * total).sum(), list(policy.parameters()))


def forms(simulator: Enumerable, policy: ToyPolicy) -> dict[str, tuple[bool, Tensor]]:
    """Every form of the estimator: whether it should be unbiased, and its surrogate of every episode (216,)."""
    reached: list[Tensor] = []  # live, whereas a rollout keeps observations detached

    def step(*given: Any) -> tuple[State, Tensor]:
        state, cost = simulator.step(*given)
        reached.append(state["s"])
        return state, cost

    watched = copy.copy(simulator)
    watched.step = step  # type: ignore[method-assign]
    roll, _ = all_episodes(watched, policy)
    cut, _ = all_episodes(simulator, policy, cross_term=False)
    windows, _ = all_episodes(simulator, policy, window=2)
    branched, _ = all_episodes(simulator, policy, branch=True)
    frozen = copy.deepcopy(policy).requires_grad_(False)
    states, steps = roll.observations, torch.arange(T, dtype=torch.float64)
    with torch.no_grad():
        V = torch.stack([value(simulator, policy, states[:, t], t) for t in range(T + 1)], 1)
        Q = torch.stack(
            [torch.stack([q_value(simulator, policy, states[:, t], j, t) for j in range(3)], 1) for t in range(T)], 1
        )
        taken = mode_log_probs(Q, roll.modes)
        later = branched.branch_observations
        following = torch.stack(
            [torch.stack([value(simulator, policy, later[:, t, j], t + 1) for j in range(3)], 1) for t in range(T)], 1
        )
        zero, wrong = torch.zeros_like(V), torch.cat([0.6 * V[:, :T] + 1, V[:, T:]], 1)
        to_go = advantages_of(roll.costs, zero, discount=G)
        baseline = 0.7 * states[:, :T].sum(-1) + 1.3
    log_prob = mode_log_probs(roll.log_probs, roll.modes)

    def full(advantages: Tensor, episodes: Rollout = roll, tails: Tensor | None = None) -> Tensor:
        return mixed_surrogate(
            episodes.costs, episodes.log_probs, episodes.modes, advantages, discount=G, tails=tails
        ).total

    weights = G**steps
    pathwise = (weights * roll.costs).sum(1)
    live = torch.flip((weights * roll.costs).flip(1).cumsum(1), [1])
    # The cost of where the episode ends is paid with the last step's; the sum from t + 1 on keeps it.
    end = nn.functional.pad((G * 2 * reached[-1].square().sum(1))[:, None], (T - 1, 0))
    spread = (
        (exact_probability(simulator, policy)[:, None] * (weights * (taken - V[:, :T])).square()).sum().div(T).sqrt()
    )
    live_gae = _live_advantages(roll.costs - end + end.detach(), V)
    return {
        "cost-to-go": (True, full(to_go)),
        "cost-to-go and an arbitrary state baseline": (True, full(to_go - baseline)),
        "total cost for cost-to-go": (True, full(pathwise.detach()[:, None] / weights)),
        "exact value of the mode": (True, full(taken)),
        "exact advantage": (True, full(taken - V[:, :T])),
        "GAE 0.7, exact value": (True, full(advantages_of(roll.costs, V, discount=G, trace=0.7))),
        "GAE 1, wrong value": (True, full(advantages_of(roll.costs, wrong, discount=G, trace=1.0))),
        "clipped form at ratio 1": (
            True,
            pathwise + (weights * clipped_surrogate(log_prob, log_prob.detach(), to_go - baseline, 0.2)).sum(1),
        ),
        "windows of 2, exact value at their ends": (
            True,
            full(
                taken - V[:, :T],
                windows,
                window_tails(value(simulator, frozen, windows.tails[:, 0], 2)[:, None], windows.tail_steps, G),
            ),
        ),
        "one-step branching over modes, exact value": (
            True,
            full(branched_advantages(branched.log_probs, branched.branch_costs, following, discount=G), branched),
        ),
        "GAE 0.7, wrong value": (False, full(advantages_of(roll.costs, wrong, discount=G, trace=0.7))),
        "no cross term: scores on detached states": (False, full(to_go, cut)),
        "pathwise only": (False, pathwise),
        "return not detached in the score part": (False, pathwise + (log_prob * live).sum(1)),
        "GAE 0.7 from live costs": (False, pathwise + (weights * log_prob * live_gae).sum(1)),
        "cost-to-go from the next step on": (False, full(to_go - roll.costs + end)),
        "score part without its discount": (False, pathwise + (log_prob * to_go).sum(1)),
        "advantage over its deviation, pathwise part as it is": (False, full((taken - V[:, :T]) / spread)),
    }


def _live_advantages(costs: Tensor, values: Tensor) -> Tensor:
    """Generalised advantages whose costs were left in the graph: the bug of the table."""
    found, last = [], torch.zeros_like(costs[:, 0])
    for t in range(T)[::-1]:
        last = costs[:, t] + G * values[:, t + 1] - values[:, t] + G * 0.7 * last
        found.append(last)
    return torch.stack(found[::-1], 1)


def exact_probability(simulator: Enumerable, policy: ToyPolicy) -> Tensor:
    """Probability of every episode, (216,)."""
    with torch.no_grad():
        return all_episodes(simulator, policy)[1]


def errors(shared: bool) -> Iterator[dict[str, Any]]:
    """One row for each form: its expectation against the exact gradient."""
    simulator, policy = make(shared)
    parameters = list(policy.parameters())
    truth, probability = exact_gradient(simulator, policy), exact_probability(simulator, policy)
    sizes = [p.numel() for p in parameters]
    for name, (unbiased, surrogate) in forms(simulator, policy).items():
        mean = flat_gradient((probability * surrogate).sum(), parameters)
        row: dict[str, Any] = {
            "networks": "shared trunk" if shared else "separate",
            "form": name,
            "unbiased": unbiased,
            "rel_error": float((mean - truth).norm() / truth.norm()),
        }
        for part, members in policy.groups().items():
            inside = torch.cat(
                [torch.full((n,), any(p is q for q in members)) for n, p in zip(sizes, parameters, strict=True)]
            )
            row[f"rel_error_{part}"] = float((mean - truth)[inside].norm() / truth[inside].norm())
        row["cosine"] = float(torch.cosine_similarity(mean, truth, dim=0))
        yield row


def monte_carlo(shared: bool, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each form: the mean of sampled gradients, in standard errors from the exact one."""
    simulator, policy = make(shared)
    parameters = list(policy.parameters())
    truth, probability = exact_gradient(simulator, policy), exact_probability(simulator, policy)
    draws = torch.multinomial(probability, SAMPLES, replacement=True, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(draws, minlength=len(probability)).double()[:, None]
    for name in names:
        surrogate = forms(simulator, policy)[name][1]
        rows = torch.stack([flat_gradient(one, parameters) for one in surrogate])
        mean = (counts * rows).sum(0) / SAMPLES
        variance = (counts * (rows - mean).square()).sum(0) / SAMPLES
        seen = variance > 1e-20
        z = ((mean - truth) / (variance / SAMPLES).sqrt())[seen]
        yield {
            "networks": "shared trunk" if shared else "separate",
            "form": name,
            "samples": SAMPLES,
            "max_z": float(z.abs().max()),
            "rms_z": float(z.square().mean().sqrt()),
            "variance": float(variance.sum()),
        }


class Starts(Enumerable):
    """The same problem from many first states."""

    def reset(self, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where the noise says."""
        return {"s": noise["start"]}


class Boltzmann:
    """Modes by a softmax of exact best-response values over a temperature, perhaps with mistaken scores.

    Args:
        simulator: The problem.
        policy: Its continuous part acts.
        temperature: Of the softmax; at 0 the modes are a best response, if nothing is mistaken.
        mistake: Size of what is added to the values.
    """

    def __init__(self, simulator: Enumerable, policy: ToyPolicy, temperature: float, mistake: float) -> None:
        self.simulator, self.policy, self.temperature, self.mistake = simulator, policy, temperature, mistake
        self.frozen = copy.deepcopy(policy).requires_grad_(False)
        self.t = 0

    def best(self, s: Tensor, t: int) -> Tensor:
        """Value (batch, J) of each mode followed by the best ones."""
        columns = []
        for j in range(3):
            mode, q = torch.full((len(s),), j), torch.zeros_like(s[:, 0])
            action = self.frozen.raw_actions(s)[:, j]
            for z in range(2):
                noise = {"z": torch.full((len(s), T), z)}
                following, cost = self.simulator.step({"s": s}, mode, action, noise, t)
                later = self.best(following["s"], t + 1).min(1).values if t + 1 < T else torch.zeros_like(cost)
                q = q + self.simulator.probability[z] * (cost + G * later)
            columns.append(q)
        return torch.stack(columns, 1)

    def logits(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of the step that comes next: the values depend on it."""
        t, self.t = self.t, (self.t + 1) % T
        s = observation
        wrong = torch.stack([torch.sin(2 * s[:, 0]), torch.cos(1.5 * s[:, 1]), -0.5 * s[:, 0]], 1)
        return -(self.best(s, t) + self.mistake * wrong) / self.temperature

    def raw_actions(self, observation: Tensor) -> Tensor:
        """The live continuous policy."""
        return self.policy.raw_actions(observation)


def best_response(temperature: float, mistake: float) -> dict[str, Any]:
    """Size of the expected cross term against that of the whole gradient of the continuous policy."""
    generator = torch.Generator().manual_seed(3)
    simulator, policy = Starts(generator), ToyPolicy(generator, shared=False)
    noise, modes, probability = simulator.every_episode()
    starts = 4 * torch.rand(STARTS, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64) - 2
    many = {"z": noise["z"].repeat(STARTS, 1), "start": starts.repeat_interleave(len(modes), 0)}
    words = modes.repeat(STARTS, 1)
    forced = 1e9 * nn.functional.one_hot(words, 3).double()
    acting = Boltzmann(simulator, policy, temperature, mistake)
    roll = rollout(simulator, acting, many, Draws(gumbel=forced))
    with torch.no_grad():
        weight = probability.repeat(STARTS) * mode_log_probs(roll.log_probs, words).sum(1).exp() / STARTS
    advantages = advantages_of(roll.costs, torch.zeros_like(roll.observations[..., 0]), discount=G)
    parts = mixed_surrogate(roll.costs, roll.log_probs, words, advantages, discount=G)
    kappa = policy.groups()["continuous"]
    pathwise, cross = (flat_gradient((weight * part).sum(), kappa) for part in parts)
    return {
        "temperature": temperature,
        "mistake": mistake,
        "pathwise_norm": float(pathwise.norm()),
        "cross_norm": float(cross.norm()),
        "cross_share": float(cross.norm() / (pathwise + cross).norm()),
    }


def main() -> None:
    """Measure, print and write the figures."""
    rows = [row for shared in (False, True) for row in errors(shared)]
    for row in rows:
        print(
            row["networks"],
            row["form"],
            f"{row['rel_error']:.1e}",
            f"continuous {row['rel_error_continuous']:.1e}",
            sep="  ",
        )
    names = ("cost-to-go", "exact advantage", "no cross term: scores on detached states")
    sampled = [row for shared in (False, True) for row in monte_carlo(shared, names)]
    for row in sampled:
        print(row["networks"], row["form"], f"max z {row['max_z']:.2f}", f"rms z {row['rms_z']:.2f}", sep="  ")
    towards = [best_response(tau, 0.0) for tau in (4, 2, 1, 0.5, 0.25, 0.1, 0.05, 0.02)]
    towards += [best_response(tau, 1.5) for tau in (4, 2, 1, 0.5, 0.25, 0.1)]
    for row in towards:
        print(f"temperature {row['temperature']}, mistake {row['mistake']}: cross share {row['cross_share']:.2%}")
    right = [row["rel_error"] for row in rows if row["unbiased"]]
    separate = {row["form"]: row for row in rows if row["networks"] == "separate"}
    figures = {
        "max_rel_error": max(right),
        "max_z": max(row["max_z"] for row in sampled if "no cross" not in row["form"]),
        "no_cross_error": separate["no cross term: scores on detached states"]["rel_error"],
        "no_cross_error_continuous": separate["no cross term: scores on detached states"]["rel_error_continuous"],
        "wrong_value_error": separate["GAE 0.7, wrong value"]["rel_error"],
        "live_advantage_error": separate["GAE 0.7 from live costs"]["rel_error"],
        "live_return_error": separate["return not detached in the score part"]["rel_error"],
        "pathwise_only_error": separate["pathwise only"]["rel_error"],
        "normalised_advantage_error": separate["advantage over its deviation, pathwise part as it is"]["rel_error"],
        "cross_share_warm": towards[0]["cross_share"],
        "cross_share_sharp": towards[7]["cross_share"],
        "cross_share_mistaken": towards[-1]["cross_share"],
    }
    print(
        write_results("hpo_unbiased", figures, {"forms": rows, "sampled": sampled, "best response": towards}, seeds=1)
    )


if __name__ == "__main__":
    main()
