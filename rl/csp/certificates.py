"""What a policy from anywhere is worth against the recorded target in the worst case: certified, or estimated."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gapbridge.arguments import Count, ProperShare, Seed, check_arguments
from rl.csp.contract import check_fixed
from rl.csp.copies import data_warnings
from rl.csp.dataset import TargetData
from rl.csp.loading import pairs_of
from rl.csp.module import CSPModule
from rl.csp.pairs import Pairs
from rl.csp.policies import CategoricalLaw, ScriptedPolicy
from rl.csp.worst_case import estimate_worst_case
from rl.envs.markov_game import BatchedGame
from rl.envs.native_actions import game_action
from rl.envs.spiel import sequence_form
from rl.envs.spiel_game import SpielGame
from rl.envs.tabular import TabularGame
from rl.exact.certificate import certified_information_sets, certified_sets
from rl.exact.episodes import worst_episode
from rl.exact.extensive import Key, worst_answer
from rl.exact.intervals import Intervals, confidence_intervals
from rl.exact.sets import ConsistentSet, Free, TotalVariation, consistent_sets, root_radius

Array = NDArray[np.float64]
OF_DRAWS = 0.02  # share of the failure that goes to a policy that is known by draws alone


@dataclass(frozen=True)
class Verdict:
    """What a policy is worth against the target of the data in the worst case.

    Attributes:
        value: Discounted return of an episode. A lower bound that holds with probability ``1 - failure`` if certified,
            else the lowest that a search found, which the truth may be below.
        is_certified: Which of the two.
        likely: Worst value within radii 1/(2 sqrt n) of what was seen, which guarantees nothing; None if not certified.
        against_anyone: Worst value if the target may do anything; None if not certified.
        words: What is certified and what is not, one sentence each.
    """

    value: float
    is_certified: bool
    likely: float | None
    against_anyone: float | None
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.words)


def certify(
    policy: object,
    data: str | TargetData | Pairs,
    game: BatchedGame,
    *,
    failure: ProperShare = 0.05,
    deterministic: bool = False,
    draws: Count = 20_000,
    seed: Seed = 0,
    **search: Any,
) -> Verdict:
    """Evaluate a policy from anywhere against the worst target that agrees with the data.

    Where the game is tabular (`rl.envs.TabularGame`, `rl.envs.FileGame`) and the policy decides by the observation
    alone, the value is certified: backward induction over everything that the target may do within intervals that hold
    at all states at once. Of a policy that only acts, every action's probability is measured by draws, with intervals
    that share the failure. In games of OpenSpiel (`rl.envs.SpielGame`) the value of a policy whose probabilities are
    known is certified by one pass over the target's information sets. Elsewhere targets are trained against the
    policy, as by :func:`rl.csp.estimate_worst_case`, and the lowest value found is an estimate that guarantees nothing.

    Args:
        policy: Of our seat: a policy of this package, as ``module.agent`` or what `load_policy` gives; a model of
            Stable-Baselines3 without memory, or what has its ``predict``; or a function ``act(observations, mask,
            generator)`` that gives actions (N, players) for observations (N, players, O).
        data: The target's, or the path of a file.
        game: What is played.
        failure: Probability that a certified value is above the true one, over the data and the draws.
        deterministic: Of Stable-Baselines3: ask for the likeliest action.
        draws: In each state, of a policy that only acts.
        seed: Of everything random.
        search: Arguments of :func:`rl.csp.estimate_worst_case`, for games without an exact solver.

    Returns:
        The verdict; printed, it says what is certified and what is not.

    Raises:
        ValueError: If the data are not of this game, or the policy cannot play our seat.

    Example:
        >>> from rl.csp import record_target
        >>> from rl.envs.vault_maze import VaultMaze, behaviour, true_guard
        >>> maze, generator = VaultMaze(), torch.Generator().manual_seed(0)
        >>> data = record_target(maze, maze.policy(behaviour()), maze.policy(true_guard()), 200, generator)
        >>> door = lambda seen, mask, generator: torch.full(seen.shape[:2], 2)
        >>> verdict = certify(door, data, maze)
        >>> verdict.is_certified, 0.29 < verdict.value <= 0.3
        (True, True)
    """
    check_arguments(certify, {"data": data, "game": game, "failure": failure, "draws": draws, "seed": seed})
    inspect.signature(estimate_worst_case).bind_partial(**search)  # a misspelt word is refused where none is needed too
    agent = _playable(policy, deterministic=deterministic)
    check_fixed(agent, game, game.seats[0])
    pairs = pairs_of(data, game)
    if agent.memory:
        verdict = _estimated(agent, pairs, game, seed, "the policy has a memory", search)
    elif isinstance(game, TabularGame):
        verdict = _certified(agent, pairs, game, failure, draws, seed)
    elif isinstance(game, SpielGame) and (table := _table(agent, game)) is not None:
        verdict = _certified_tree(table, pairs, game, failure)
    else:
        why = "the game is neither tabular nor a tree of OpenSpiel in which the policy's probabilities are known"
        verdict = _estimated(agent, pairs, game, seed, why, search)
    return replace(verdict, words=(*verdict.words, *(f"Warning: {told}." for told in data_warnings(pairs))))


def _certified(agent: nn.Module, pairs: Pairs, game: TabularGame, failure: float, draws: int, seed: int) -> Verdict:
    """By backward induction within the sets that the data leave."""
    counts = game.state_counts(pairs.observations, pairs.actions)
    plan, how = _plan(agent, game, failure, draws, seed)
    share = failure if isinstance(plan, np.ndarray) else failure * (1 - OF_DRAWS)
    sets: dict[str, list[ConsistentSet]] = {
        "certified": certified_sets(game.exact, counts, share),
        "likely": consistent_sets(counts, lambda model, n: TotalVariation(model, root_radius(n))),
        "anyone": [Free(counts.shape[1])] * len(counts),
    }
    value = {name: worst_episode(game.exact, plan, one, game.terminal, game.horizon) for name, one in sets.items()}
    seen = int((counts.sum(1) > 0).sum())
    return _told(value, failure, how, f"{seen} of {len(counts)} states")


def _certified_tree(table: Array, pairs: Pairs, game: SpielGame, failure: float) -> Verdict:
    """By one pass up the tree of the target's information sets."""
    form, (ours, theirs) = sequence_form(game.name), game.seats
    seat = int(ours.removeprefix("player_"))
    keys, _, legal = game.information_states(ours)
    rows = zip(keys, table, legal[:, 0].numpy(), strict=True)
    plan = form.realisation(seat, {key: row[allowed] / row[allowed].sum() for key, row, allowed in rows})
    keys, looks, legal = game.information_states(theirs)
    known = {look.numpy().tobytes(): number for number, look in enumerate(looks[:, 0])}
    counts = np.zeros(tuple(legal[:, 0].shape))
    if len(known) < len(keys):
        raise ValueError(
            f"information sets of {theirs} look alike in '{game.name}', so that the data cannot be counted"
        )
    places = [known.get(look.numpy().tobytes(), -1) for look in pairs.observations]
    if -1 in places:
        raise ValueError(f"the observation in row {places.index(-1)} is none that {theirs} makes in '{game.name}'")
    np.add.at(counts, (np.array(places), pairs.actions.numpy()), 1)
    rows = zip(keys, counts, legal[:, 0].numpy(), strict=True)
    seen: dict[Key, Array] = {key: row[allowed] for key, row, allowed in rows if row.sum()}
    likely: dict[Key, ConsistentSet] = {
        key: TotalVariation(row / row.sum(), root_radius(float(row.sum()))) for key, row in seen.items()
    }
    value = {
        "certified": worst_answer(form, plan, certified_information_sets(form, seen, failure, seat), seat).value,
        "likely": worst_answer(form, plan, likely, seat).value,
        "anyone": worst_answer(form, plan, seat=seat).value,
    }
    return _told(value, failure, "its probabilities are known", f"{len(seen)} of {len(keys)} information sets")


def _told(value: dict[str, float], failure: float, how: str, seen: str) -> Verdict:
    """A certified verdict in words."""
    words = (
        f"Certified: against the target of the data the policy gets at least {value['certified']:.4f} an episode "
        f"(discounted), with probability {1 - failure:g} over the data; {how}.",
        f"Not certified: {value['likely']:.4f} within radii 1/(2 sqrt n), which is likely and may be too high; and "
        "anything about a target that learns, changes or answers to us.",
        f"Without data, against anyone, it gets at least {value['anyone']:.4f}; the data saw {seen} of the game, and "
        "nothing is assumed of the target in the others.",
    )
    return Verdict(value["certified"], True, value["likely"], value["anyone"], words)


def _table(agent: nn.Module, game: SpielGame) -> Array | None:
    """The policy's probabilities at all our information sets, (K, A), or None where it does not tell them."""
    _, looks, legal = game.information_states(game.seats[0])
    law, _ = agent(looks[None], legal[None])
    return law.log_probs[0, :, 0].detach().exp().double().cpu().numpy() if isinstance(law, CategoricalLaw) else None


def _plan(
    agent: nn.Module, game: TabularGame, failure: float, draws: int, seed: int
) -> tuple[Array | list[Intervals], str]:
    """The policy's probabilities at every state, (S, A), or intervals that hold them; and how they are known."""
    S, actions = len(game.observations), game.n_actions[game.seats[0]]
    nowhere = torch.zeros(S, dtype=torch.int64)
    masks = game.action_mask({"node": torch.arange(S), "done": nowhere.bool(), "time": nowhere}) or {}
    mask = masks.get(game.seats[0])
    law, _ = agent(game.observations[None, :, None], None if mask is None else mask[None])
    if isinstance(law, CategoricalLaw):
        table = law.log_probs[0, :, 0].detach().exp().double().cpu().numpy()
        return table / table.sum(1, keepdims=True), "its probabilities are known"
    generator = torch.Generator().manual_seed(seed)
    counts = np.zeros((S, actions))
    for state in range(S):
        seen = game.observations[state].expand(1, draws, 1, -1)
        legal = None if mask is None else mask[state].expand(1, draws, 1, -1)
        drawn = agent(seen, legal)[0].sample(generator).reshape(-1)
        counts[state] = torch.bincount(drawn, minlength=actions).numpy()
    lower, upper = confidence_intervals(counts, failure * OF_DRAWS / (S * actions), any_count=False)
    bounds = [Intervals(*row) for row in zip(lower, upper, strict=True)]
    return bounds, f"its probabilities by {draws} draws a state"


def _estimated(
    agent: nn.Module, pairs: Pairs, game: BatchedGame, seed: int, why: str, search: dict[str, Any]
) -> Verdict:
    """By targets that are trained against the policy."""
    problem = CSPModule(game, pairs, seed=seed)
    problem.warm_up()
    found = estimate_worst_case(problem, agent, seed=seed, **search)
    tried = sum(one.consistent for one in found.adversaries)
    words = (
        f"Nothing is certified, as {why}.",
        f"Estimated: against the worst of {tried} targets that were found and agree with the data, the policy gets "
        f"{found.value.value:.4f} [{found.value.low:.4f}, {found.value.high:.4f}] an episode (discounted); there may "
        "be worse ones, so that this is an upper bound of its worst value, and no promise.",
    )
    return Verdict(found.value.value, False, None, None, words)


def _playable(policy: object, *, deterministic: bool) -> nn.Module:
    """What `play` takes, of a policy from anywhere."""
    if isinstance(policy, nn.Module) and isinstance(getattr(policy, "memory", None), int):
        return policy
    if callable(getattr(policy, "predict", None)):
        return _Predicting(policy, deterministic=deterministic)
    if callable(policy) and not isinstance(policy, type):
        return ScriptedPolicy(cast("Callable[[Tensor, Tensor | None, torch.Generator], Tensor]", policy))
    raise ValueError(
        f"the policy is a {type(policy).__name__}; give one of this package, a model with the predict of "
        "Stable-Baselines3, or a function act(observations, mask, generator)."
    )


class _Predicting(ScriptedPolicy):
    """A model with the ``predict`` of Stable-Baselines3; where its law can be asked for, that is what it plays by.

    Its actions are those of its ``action_space``, where it has one, and become the game's as in `rl.csp.Recorder`.
    """

    def __init__(self, model: Any, *, deterministic: bool) -> None:
        super().__init__(self._acted)
        self.model, self.deterministic = model, deterministic
        space = getattr(model, "action_space", None)
        self.space = space if isinstance(space, gymnasium.spaces.Space) else None

    def forward(
        self, observations: Tensor, masks: Tensor | None = None, memories: Tensor | None = None
    ) -> tuple[Any, None]:
        rows = observations.reshape(-1, observations.shape[-1])
        probabilities = self._probabilities(rows) if masks is None else None
        if probabilities is None:
            return super().forward(observations, masks, memories)
        return CategoricalLaw(probabilities.log().reshape(*observations.shape[:-1], -1)), None

    def _probabilities(self, rows: Tensor) -> Tensor | None:
        """Probabilities of discrete actions (n, A), or None where the model does not tell them."""
        asked = getattr(getattr(self.model, "policy", None), "get_distribution", None)
        if asked is None:
            return None
        with torch.no_grad():
            found = getattr(asked(rows.to(getattr(self.model, "device", "cpu"))), "distribution", None)
        probabilities = getattr(found, "probs", None)
        if not isinstance(found, torch.distributions.Categorical) or not isinstance(probabilities, Tensor):
            return None
        probabilities = probabilities.cpu()
        if not self.deterministic:
            return probabilities
        return torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).float()

    def _acted(self, seen: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
        rows = seen.reshape(-1, seen.shape[-1]).numpy()
        allowed = {} if mask is None else {"action_masks": mask.reshape(len(rows), -1).numpy()}
        answer = self.model.predict(rows, deterministic=self.deterministic, **allowed)
        if not isinstance(answer, tuple) or len(answer) != 2 or len(np.asarray(answer[0])) != len(rows):
            raise ValueError(f"predict must give one action for each of {len(rows)} observations, and a state")
        found, state = answer
        if state is not None:
            raise ValueError("its predict gives a state, a memory of the episode, and would be asked without one")
        if self.space is not None:
            found = [game_action(self.space, action) for action in found]
        actions = torch.as_tensor(np.asarray(found))
        return actions.reshape(*seen.shape[:-1], *actions.shape[1:])
