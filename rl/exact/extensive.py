"""Extensive-form games in sequence form: linear programmes and tree recursions against consistent targets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from rl.exact.matrix import linear_programme
from rl.exact.sets import ConsistentSet, Pinned, check_policy

Array = NDArray[np.float64]
Key = Hashable
Behaviour = Mapping[Key, Array]
_MAX_CUTS = 2000
_FLOW_TOLERANCE = 1e-6


class InformationSet(NamedTuple):
    """Where a player decides: the sequence that leads there and one sequence for every action."""

    parent: int
    sequences: tuple[int, ...]
    actions: tuple[int, ...]


@dataclass(frozen=True)
class SequenceGame:
    """A two-player zero-sum game with perfect recall in sequence form.

    A sequence is the list of a player's own actions on the way to a node; sequence 0 is the empty one. A realisation
    plan gives every sequence the probability that its player contributes to it.

    Args:
        payoff: What player 0 gets, times the probability of chance, for every pair of sequences that ends the game,
            sparse (n0, n1).
        information_sets: By player, information sets by key, parents before children.

    Note:
        ``rl.envs.spiel.sequence_form`` makes one from any such game of OpenSpiel.
    """

    payoff: scipy.sparse.csr_array
    information_sets: tuple[Mapping[Key, InformationSet], Mapping[Key, InformationSet]]

    def payoff_of(self, seat: int) -> scipy.sparse.csr_array:
        """What ``seat`` gets: (its sequences, the other's sequences)."""
        return self.payoff if seat == 0 else -self.payoff.T.tocsr()

    def constraints(self, seat: int) -> scipy.sparse.csr_array:
        """E with E x = (1, 0, ..., 0) for every realisation plan x of ``seat``: flow through its information sets."""
        rows, columns, entries = [0], [0], [1.0]
        for row, (parent, sequences, _) in enumerate(self.information_sets[seat].values(), start=1):
            rows += [row] * (1 + len(sequences))
            columns += [parent, *sequences]
            entries += [-1.0] + [1.0] * len(sequences)
        shape = (len(self.information_sets[seat]) + 1, self.payoff.shape[seat])
        return scipy.sparse.csr_array((entries, (rows, columns)), shape=shape)

    def realisation(self, seat: int, behaviour: Behaviour) -> Array:
        """The realisation plan of a behaviour; where the behaviour has no entry it is uniform.

        Raises:
            ValueError: If the behaviour at an information set is no distribution over its actions.
        """
        plan = np.zeros(self.payoff.shape[seat])
        plan[0] = 1
        for key, (parent, sequences, actions) in self.information_sets[seat].items():
            law = behaviour.get(key, np.full(len(actions), 1 / len(actions)))
            plan[list(sequences)] = plan[parent] * check_policy([law], f"behaviour at {key!r}", 1, len(actions))[0]
        return plan

    def behaviour(self, seat: int, plan: Array) -> dict[Key, Array]:
        """The behaviour of a realisation plan; uniform where the plan never comes."""
        found = {}
        for key, (parent, sequences, actions) in self.information_sets[seat].items():
            weights = plan[list(sequences)].clip(min=0)
            reached = plan[parent] > 1e-12 and weights.sum() > 0
            found[key] = weights / weights.sum() if reached else np.full(len(actions), 1 / len(actions))
        return found

    def check_plan(self, seat: int, plan: Array) -> Array:
        """A realisation plan of ``seat``, whose weights flow from the root through every information set.

        Raises:
            ValueError: If it is none.
        """
        plan = np.asarray(plan, dtype=np.float64)
        if plan.shape != self.payoff.shape[seat : seat + 1]:
            raise ValueError(
                f"the plan of seat {seat} has shape {plan.shape}, but the seat has {self.payoff.shape[seat]} sequences"
            )
        flow = self.constraints(seat) @ plan
        flow[0] -= 1
        if not np.isfinite(plan).all() or plan.min() < -_FLOW_TOLERANCE or np.abs(flow).max() > _FLOW_TOLERANCE:
            raise ValueError(
                f"the plan of seat {seat} is no realisation plan: weights must be at least 0, 1 for the empty "
                "sequence, and those of the actions of an information set must sum to the weight that leads there; "
                "make it with realisation"
            )
        return plan

    def value(self, seat: int, plan: Array, other: Array) -> float:
        """What ``seat`` gets when the realisation plans meet.

        Raises:
            ValueError: If either is no realisation plan.
        """
        plan, other = self.check_plan(seat, plan), self.check_plan(1 - seat, other)
        return float(plan @ (self.payoff_of(seat) @ other))


class ExtensiveSolution(NamedTuple):
    """A realisation plan of ours, the target's worst answer to it, and the value against that answer."""

    plan: Array
    answer: Array
    value: float


def solve_extensive(
    game: SequenceGame, sets: Mapping[Key, ConsistentSet] | None = None, seat: int = 0, tolerance: float = 1e-7
) -> ExtensiveSolution:
    r"""The plan with the best worst value over all targets that are consistent at every information set.

    A polytope of distributions at an information set is linear in the target's sequence weights once its bounds are
    multiplied by the weight of the parent sequence, :math:`K y \ge 0` and :math:`W y = 0`. With :math:`E x = e`,
    :math:`F y = f` and payoff A the whole game is one programme,
    :math:`\max f \cdot q` subject to :math:`F^T q + K^T u + W^T w \le A^T x`, :math:`u \ge 0`. Pinned sets give the
    conservative response to a model, contaminated ones the data-biased response. If a set is no polytope, cutting
    planes over whole answers of the target replace the programme; they are slow in games larger than Kuhn poker.

    Args:
        game: The game.
        sets: Consistent sets by key of the target's information set; free where there is none.
        seat: Which player we are, 0 or 1.
        tolerance: How far the value may be below the optimum where cutting planes are used.

    Returns:
        Our plan, its worst answer and the value against that answer.

    Raises:
        ValueError: If a key is no information set of the target, or a set has the wrong number of actions.
        RuntimeError: If a programme is not solved or cutting planes do not settle.

    Reference:
        Koller, Megiddo and von Stengel (1994), "Fast algorithms for finding randomized strategies in game trees".
    """
    sets = _checked(game, sets, seat)
    payoff, columns = game.payoff_of(seat), game.payoff.shape[1 - seat]
    if any(consistent.rows() is None for consistent in sets.values()):
        return _cutting_planes(game, sets, seat, tolerance)
    least, equal = _restrictions(game, sets, seat)
    auxiliary = least.shape[1] - columns
    E, F = game.constraints(seat), game.constraints(1 - seat)
    F = scipy.sparse.hstack([F, scipy.sparse.csr_array((F.shape[0], auxiliary))])
    payoff_columns = scipy.sparse.vstack([payoff.T, scipy.sparse.csr_array((auxiliary, payoff.shape[0]))])
    constraint = scipy.sparse.hstack([-payoff_columns, F.T, least.T, equal.T]).tocsr()
    sizes = [E.shape[1], F.shape[0], least.shape[0], equal.shape[0]]
    signed = np.repeat([True, False, True, False], sizes)
    return _scored(game, _solve_for_plan(E, constraint, _unit(sizes, 1), signed), sets, seat)


def restricted_nash(game: SequenceGame, model: Behaviour, confidence: float, seat: int = 0) -> ExtensiveSolution:
    r"""The restricted Nash response: the target plays the model with probability p from the root on, else anything.

    :math:`\max_x\, p\, x^T A y_{model} + (1 - p) \min_y x^T A y`.

    Args:
        game: The game.
        model: The target's behaviour by information set; uniform where there is none.
        confidence: p in [0, 1]; 0 gives an equilibrium plan, 1 a best response.
        seat: Which player we are, 0 or 1.

    Returns:
        Our plan, the free part of the target's answer, and the value of the mixture.

    Raises:
        ValueError: If the confidence is out of range.

    Reference:
        Johanson, Zinkevich and Bowling (2007), "Computing robust counter-strategies", section 3.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"the confidence in the model is {confidence}, but it must lie in [0, 1]")
    payoff, E, F = game.payoff_of(seat), game.constraints(seat), game.constraints(1 - seat)
    against_model = payoff @ game.realisation(1 - seat, model)
    gain = np.concatenate([confidence * against_model, (1 - confidence) * np.eye(1, F.shape[0])[0]])
    constraint = scipy.sparse.hstack([-payoff.T, F.T]).tocsr()
    plan = _solve_for_plan(E, constraint, gain, np.arange(len(gain)) < E.shape[1])
    free = worst_answer(game, plan, seat=seat)
    return ExtensiveSolution(
        plan, free.answer, confidence * float(plan @ against_model) + (1 - confidence) * free.value
    )


def worst_answer(
    game: SequenceGame, plan: Array, sets: Mapping[Key, ConsistentSet] | None = None, seat: int = 0
) -> ExtensiveSolution:
    """The worst value of a plan of ours, for consistent sets of every kind: one pass up the target's tree.

    Args:
        game: The game.
        plan: Our realisation plan.
        sets: Consistent sets by key of the target's information set; free where there is none, so that without sets the
            answer is the target's best response.
        seat: Which player we are, 0 or 1.

    Returns:
        The plan, its worst answer and the value against it.

    Raises:
        ValueError: As :func:`solve_extensive`, and if the plan is no realisation plan.
    """
    sets = _checked(game, sets, seat)
    return _scored(game, game.check_plan(seat, plan), sets, seat)


def _scored(game: SequenceGame, plan: Array, sets: Mapping[Key, ConsistentSet], seat: int) -> ExtensiveSolution:
    """Distributions from the leaves of the target's tree upwards, then the realisation plan they make."""
    cost = game.payoff_of(seat).T @ plan
    behaviour: dict[Key, Array] = {}
    for key, (parent, sequences, _) in reversed(list(game.information_sets[1 - seat].items())):
        costs = cost[list(sequences)]
        consistent = sets.get(key)
        behaviour[key] = np.eye(len(costs))[costs.argmin()] if consistent is None else consistent.worst(costs)
        cost[parent] += behaviour[key] @ costs
    return ExtensiveSolution(plan, game.realisation(1 - seat, behaviour), float(cost[0]))


def _checked(game: SequenceGame, sets: Mapping[Key, ConsistentSet] | None, seat: int) -> Mapping[Key, ConsistentSet]:
    """Sets whose keys and sizes fit the target's information sets."""
    if seat not in {0, 1}:
        raise ValueError(f"our seat is {seat!r}, but this game has the seats 0 and 1")
    known = game.information_sets[1 - seat]
    for key, consistent in (sets or {}).items():
        if key not in known:
            raise ValueError(
                f"{key!r} is no information set of seat {1 - seat}, so the target cannot be restricted there"
            )
        if consistent.n_actions != len(known[key].actions):
            raise ValueError(
                f"the set at {key!r} is over {consistent.n_actions} actions, but the target has "
                f"{len(known[key].actions)} there"
            )
    return sets or {}


def _restrictions(
    game: SequenceGame, sets: Mapping[Key, ConsistentSet], seat: int
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Rows K (>= 0) and W (= 0) on the target's sequence weights and the sets' auxiliary variables."""
    columns = game.payoff.shape[1 - seat]
    found: list[tuple[list[int], list[int], list[float]]] = [([], [], []), ([], [], [])]
    heights = [0, 0]
    for key, consistent in sets.items():
        rows = consistent.rows()
        if rows is None:
            continue
        parent, sequences, _ = game.information_sets[1 - seat][key]
        auxiliary = rows.columns - len(sequences)
        place = np.array([*sequences, *range(columns, columns + auxiliary)])
        columns += auxiliary
        for which, (matrix, bound) in enumerate([(rows.least, rows.least_bound), (rows.equal, rows.equal_bound)]):
            row, column = np.nonzero(matrix)
            bounded = np.flatnonzero(bound)
            found[which][0].extend([*(heights[which] + row), *(heights[which] + bounded)])
            found[which][1].extend([*place[column], *[parent] * len(bounded)])
            found[which][2].extend([*matrix[row, column], *-bound[bounded]])
            heights[which] += len(bound)
    least, equal = (
        scipy.sparse.csr_array((entries, (row, column)), shape=(height, columns))
        for (row, column, entries), height in zip(found, heights, strict=True)
    )
    return least, equal


def _cutting_planes(
    game: SequenceGame, sets: Mapping[Key, ConsistentSet], seat: int, tolerance: float
) -> ExtensiveSolution:
    """The programme over the target's worst answers so far, until its value and the worst value of its plan agree."""
    E, payoff = game.constraints(seat), game.payoff_of(seat)
    model = {key: getattr(consistent, "model", np.zeros(0)) for key, consistent in sets.items()}
    center = game.realisation(1 - seat, {key: value for key, value in model.items() if len(value)})
    cuts = [payoff @ center]
    best: ExtensiveSolution | None = None
    for _ in range(_MAX_CUTS):
        constraint = scipy.sparse.csr_array(np.hstack([-np.stack(cuts), np.ones((len(cuts), 1))]))
        gain = _unit([E.shape[1], 1], 1)
        plan = _solve_for_plan(E, constraint, gain, np.arange(len(gain)) < E.shape[1])
        solution = _scored(game, plan, sets, seat)
        upper = min(float(cut @ plan) for cut in cuts)
        best = solution if best is None or solution.value > best.value else best
        if upper - best.value <= tolerance:
            return best
        cuts.append(payoff @ solution.answer)
    raise RuntimeError(
        f"cutting planes left a gap of {upper - solution.value:.2g} after {_MAX_CUTS} cuts, above the tolerance "
        f"{tolerance:.2g}; raise the tolerance or use sets that are polytopes, as total variation"
    )


def _solve_for_plan(
    E: scipy.sparse.csr_array, constraint: scipy.sparse.csr_array, gain: Array, signed: NDArray[np.bool_]
) -> Array:
    """Our realisation plan of a programme whose first variables are that plan."""
    wider = scipy.sparse.hstack([E, scipy.sparse.csr_array((E.shape[0], len(gain) - E.shape[1]))]).tocsr()
    solution = linear_programme(gain, constraint, wider, np.eye(1, E.shape[0])[0], signed)
    return solution[: E.shape[1]].clip(min=0)


def _unit(sizes: list[int], block: int) -> Array:
    """1 at the first variable of a block, else 0."""
    unit = np.zeros(sum(sizes))
    unit[sum(sizes[:block])] = 1
    return unit


def pinned_sets(behaviour: Behaviour) -> dict[Key, ConsistentSet]:
    """Pinned sets at every information set of a behaviour."""
    return {key: Pinned(probabilities) for key, probabilities in behaviour.items()}
