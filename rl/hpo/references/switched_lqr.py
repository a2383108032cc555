"""Exact and pruned switched Riccati recursions, and bounds of the switched linear-quadratic regulator."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.envs.hybrid import Decide, State
from rl.envs.switched_lqr import SwitchedLQR


@dataclass(frozen=True)
class Stage:
    """The quadratics whose minimum is (a bound of) the cost to go at a stage, with what each of them does.

    Attributes:
        P: (k, n, n); the cost to go of the i-th is x' P[i] x.
        mode: (k,), the mode it takes.
        gain: (k, m, n), its action is ``gain @ x``.
    """

    P: Tensor
    mode: Tensor
    gain: Tensor

    def values(self, x: Tensor) -> Tensor:
        """The quadratics (batch, k) at states (batch, n)."""
        return torch.einsum("bn,knm,bm->bk", x, self.P, x)


def riccati(P: Tensor, A: Tensor, B: Tensor, Q: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    r"""One stage of the Riccati recursion, for any leading dimensions.

    .. math:: \rho(P) = Q + A^T P A - A^T P B (R + B^T P B)^{-1} B^T P A

    Args:
        P: Cost to go after the stage, (..., n, n).
        A: (..., n, n).
        B: (..., n, m).
        Q: (n, n).
        R: (m, m).

    Returns:
        The cost to go before it (..., n, n), and the gain (..., m, n) of the best action.
    """
    BP = B.mT @ P
    gain = -torch.linalg.solve(R + BP @ B, BP @ A)
    before = Q + A.mT @ P @ (A + B @ gain)
    return (before + before.mT) / 2, gain


def solve_exact(simulator: SwitchedLQR, tolerance: float = 1e-10, limit: int = 6000) -> list[Stage]:
    r"""All quadratics that can be the smallest one, from the first stage to the last.

    :math:`H_t = \{ \rho_j(P) : P \in H_{t+1}, j \}`, without the P that exceed another by a positive semidefinite
    matrix; dropping those never changes :math:`\min_P x^T P x`.

    Args:
        simulator: The problem.
        tolerance: How far below 0 an eigenvalue may be.
        limit: Quadratics of a stage beyond which it gives up.

    Returns:
        One set a stage.

    Raises:
        RuntimeError: If a set outgrows ``limit``; :func:`solve_pruned` has an upper bound.

    Reference:
        Zhang, Hu and Abate (2009), "On the value functions of the discrete-time switched LQR problem", IEEE
        Transactions on Automatic Control 54(11).
    """

    def undominated(stage: Stage, t: int) -> Tensor:
        kept: list[int] = []
        for i in stage.P.diagonal(dim1=1, dim2=2).sum(1).argsort().tolist():
            if not kept or torch.linalg.eigvalsh(stage.P[i] - stage.P[kept])[:, 0].max() < -tolerance:
                kept.append(i)
        if len(kept) > limit:
            raise RuntimeError(f"stage {t} has {len(kept)} quadratics that matter; use solve_pruned, an upper bound")
        return torch.tensor(kept)

    return _backward(simulator, undominated)


def solve_pruned(simulator: SwitchedLQR, states: Tensor, rounds: int = 3, cap: int = 200, seed: int = 0) -> list[Stage]:
    """A near-optimal policy: of every stage, the quadratics that are smallest somewhere it matters.

    That is at random directions, and, from the second round on, at the states that the policy of the round before
    visits. The better of all rounds on ``states`` is returned; its cost is an upper bound of the optimum.

    Args:
        simulator: The problem.
        states: First states (batch, n); not the ones that the policy is reported on, if it is to be a fair one.
        rounds: At least 1.
        cap: Quadratics that a stage keeps, those smallest most often.
        seed: Of the directions.

    Returns:
        One set a stage.
    """
    generator = torch.Generator().manual_seed(seed)
    states = states.double()
    shape = (simulator.horizon, 10 * cap, simulator.observation_dim)
    directions = torch.randn(shape, generator=generator, dtype=torch.float64)
    probes, best, least = list(directions), [], float("inf")
    for _ in range(rounds):

        def used(stage: Stage, t: int, probes: list[Tensor] = probes) -> Tensor:
            counts = stage.values(probes[t]).argmin(1).bincount(minlength=len(stage.P))
            return counts.argsort(descending=True)[: min(cap, int((counts > 0).sum()))]

        stages = _backward(simulator, used)
        visited, cost = _follow(simulator, stages, states)
        if cost < least:
            best, least = stages, cost
        probes = [torch.cat([x, directions[t, : 2 * cap] * x.abs().mean()]) for t, x in enumerate(visited)]
    return best


def decide_stages(simulator: SwitchedLQR, stages: list[Stage]) -> Decide:
    """Decisions of the policy that takes the smallest quadratic of every stage, for :func:`rl.envs.hybrid.play`.

    Args:
        simulator: What it is played in.
        stages: As :func:`solve_exact` or :func:`solve_pruned` returns them.

    Returns:
        A function of the state and the step.
    """

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        stage, x = stages[t], state["x"].double().cpu()
        chosen = stage.values(x).argmin(1)
        action = torch.einsum("bmn,bn->bm", stage.gain[chosen], x)
        return stage.mode[chosen].to(simulator.device), action.to(simulator.device, simulator.dtype)

    return decide


def lower_bound(simulator: SwitchedLQR, states: Tensor) -> Tensor:
    r"""What no policy can beat: the regulator of a plant that takes the input itself, B = I, in every mode.

    Whatever ``b`` does through :math:`B_j`, :math:`B_j b` does there at no higher cost if
    :math:`B_j^T R B_j \preceq R`.

    Args:
        simulator: With one A for all modes, as many inputs as states, and gains that satisfy the condition.
        states: First states (batch, n).

    Returns:
        The bound of the total cost (batch,).

    Raises:
        ValueError: If the plant does not satisfy the conditions.
    """
    A, B, _, R = _plant(simulator)
    n, m = B.shape[1:]
    if n != m or (A[0] != A).any() or torch.linalg.eigvalsh(R - B.mT @ R @ B).min() < -1e-9:
        raise ValueError(
            "the bound needs one A for all modes, as many inputs as states and B'RB at most R, and this plant differs; "
            "compare with solve_exact or solve_pruned instead"
        )
    return _value(states, _repeat(simulator, [(A[0], torch.eye(n, dtype=torch.float64))], (0,)))


def best_word(simulator: SwitchedLQR, states: Tensor, longest: int = 3) -> tuple[tuple[int, ...], Tensor]:
    """The best fixed word of modes, repeated over the episode, each with its Riccati gains.

    Args:
        simulator: The problem.
        states: First states (batch, n); the word with the lowest mean cost on them wins.
        longest: Length of the longest word; 1 gives the best single mode. Once round all modes is tried, too.

    Returns:
        The word and the total cost of every episode (batch,).
    """
    A, B, _, _ = _plant(simulator)
    modes = range(simulator.n_modes)
    words = [word for length in range(1, longest + 1) for word in itertools.product(modes, repeat=length)]
    if longest > 1:
        words.append(tuple(modes))
    costs = {word: _value(states, _repeat(simulator, list(zip(A, B, strict=True)), word)) for word in words}
    best = min(costs, key=lambda word: float(costs[word].mean()))
    return best, costs[best]


def _plant(simulator: SwitchedLQR) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, B, Q, R = (matrix.double().cpu() for matrix in (simulator.A, simulator.B, simulator.Q, simulator.R))
    return A, B, Q, R


def _backward(simulator: SwitchedLQR, keep: Callable[[Stage, int], Tensor]) -> list[Stage]:
    """The switched Riccati recursion, with what every stage keeps left to the caller."""
    A, B, Q, R = _plant(simulator)
    P, stages = torch.zeros_like(Q)[None], []
    for t in reversed(range(simulator.horizon)):
        before, gain = riccati(P[:, None], A, B, Q, R)
        everything = Stage(before.flatten(0, 1), torch.arange(len(A)).repeat(len(P)), gain.flatten(0, 1))
        kept = keep(everything, t)
        stages.append(Stage(everything.P[kept], everything.mode[kept], everything.gain[kept]))
        P = stages[-1].P
    return stages[::-1]


def _follow(simulator: SwitchedLQR, stages: list[Stage], x: Tensor) -> tuple[list[Tensor], float]:
    """States before every stage under the policy of the stages, and its mean total cost."""
    A, B, Q, R = _plant(simulator)
    visited, total = [], torch.zeros(len(x), dtype=torch.float64)
    for stage in stages:
        visited.append(x)
        chosen = stage.values(x).argmin(1)
        action = torch.einsum("bmn,bn->bm", stage.gain[chosen], x)
        total = total + ((x @ Q) * x).sum(1) + ((action @ R) * action).sum(1)
        moves = torch.einsum("jnm,bm->bjn", A, x) + torch.einsum("jnm,bm->bjn", B, action)
        x = moves[torch.arange(len(x)), stage.mode[chosen]]
    return visited, float(total.mean())


def _repeat(simulator: SwitchedLQR, plants: list[tuple[Tensor, Tensor]], word: tuple[int, ...]) -> Tensor:
    """The cost-to-go matrix of a repeated word of plants (A, B)."""
    _, _, Q, R = _plant(simulator)
    P = torch.zeros_like(Q)
    for t in reversed(range(simulator.horizon)):
        P, _ = riccati(P, *plants[word[t % len(word)]], Q, R)
    return P


def _value(states: Tensor, P: Tensor) -> Tensor:
    x = states.double().cpu()
    return ((x @ P) * x).sum(1)
