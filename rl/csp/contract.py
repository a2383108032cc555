"""What is asked of a policy of one's own for a seat, and tried before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl.csp.acting import Seat
from rl.envs.markov_game import BatchedGame
from rl.trial import reason_of

LAW = ("dimension", "log_prob", "entropy", "kl", "sample")


def check_options(pool: int, constraint: str, floor: float, ceiling: float) -> None:
    """Refuse arguments of `CSPModule` that contradict each other.

    Args:
        pool: Snapshots that are kept.
        constraint: How the proxy is held to the data.
        floor: Lowest C.
        ceiling: Highest C.

    Raises:
        ValueError: For the first that cannot be used.
    """
    if pool and constraint == "gate":
        raise ValueError(f"pool is {pool}, but snapshots of a gate's free part are not consistent; give 0.")
    if floor > ceiling:
        raise ValueError(f"floor is {floor} and ceiling is {ceiling}, but C lies between them; raise ceiling.")


def check_policy(policy: nn.Module, another: nn.Module, game: BatchedGame, seat: str) -> None:
    """Try a policy on the first observations of a game.

    A policy is a module with

    - ``memory``: the width H of what it remembers, 0 if it decides by the observation alone;
    - ``forward(observations, masks=None, memories=None)`` for observations (L, ..., O), L steps of the same episode,
      legal actions (L, ..., A) or None, and memories (..., H) before the first step or None; it gives the laws (L, ...)
      of the actions, and the memories after the last step, or None where ``memory`` is 0. With a memory, ``forward``
      also takes ``active``, boolean (L, ...) or None: where it is false a player waits, and its memory must stay.

    The laws are `rl.csp.policies.CategoricalLaw` and `rl.csp.policies.GaussianLaw`, or have their methods.

    Args:
        policy: For a seat.
        another: For the same seat, from another call of what makes them.
        game: The game.
        seat: The seat.

    Raises:
        ValueError: If the policy breaks one of these, shares parameters with another, gives a row another law at random
            or with other rows beside it, plays what is not legal, or has nothing to train.
    """
    what = f"the policy for seat {seat!r}"
    if not isinstance(policy, nn.Module) or not any(p.requires_grad for p in policy.parameters()):
        raise ValueError(f"{what} is {type(policy).__name__} without anything to train; give a torch module.")
    memory = getattr(policy, "memory", None)
    if not isinstance(memory, int) or memory < 0:
        raise ValueError(f"{what} has memory {memory!r}; set it to the width of its memory, or to 0 for none.")
    if {id(p) for p in policy.parameters()} & {id(p) for p in another.parameters()}:
        raise ValueError(f"{what} is made with parameters that an earlier one has; make a new module at each call.")
    generator = torch.Generator().manual_seed(0)
    seen, legal = _first(game, seat, generator)
    law, after = _look(policy, what, seen, legal)
    rows = tuple(seen.shape[:-1])
    if missing := [name for name in LAW if not hasattr(law, name)]:
        raise ValueError(
            f"{what} gives a law of type {type(law).__name__} without {', '.join(missing)}; give a CategoricalLaw or a "
            "GaussianLaw of rl.csp.policies."
        )
    drawn = law.sample(generator)
    check_actions(drawn, what, seen, game, seat)
    if (after is None) != (memory == 0) or (after is not None and tuple(after.shape) != (*rows[1:], memory)):
        found = None if after is None else tuple(after.shape)
        raise ValueError(
            f"{what} says memory {memory} and gives memories {found}; they must be "
            f"{(*rows[1:], memory) if memory else None}."
        )
    _check_law(policy, what, seen, legal, law, drawn, game.n_actions[seat])


def made_for(make: Callable[[str], nn.Module], seat: str) -> nn.Module:
    """The policy that a user's function makes for a seat.

    Raises:
        ValueError: If it fails.
    """
    try:
        return make(seat)
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(
            f"policy fails for the seat {seat!r} ({reason_of(error)}); give a function of the name of a seat that "
            "returns a new policy, such as lambda seat: MyPolicy(game, seat)."
        ) from error


def check_fixed(policy: nn.Module, game: BatchedGame, seat: str) -> None:
    """Try a policy that plays a seat and is not trained, such as a `rl.csp.ScriptedPolicy`.

    Args:
        policy: Called as :func:`check_policy` says; its laws need ``sample`` and ``log_prob`` alone.
        game: The game.
        seat: The seat.

    Raises:
        ValueError: If it cannot be called so, or gives actions that the seat does not have.
    """
    what = f"the {type(policy).__name__} given for seat {seat!r}"
    saved = getattr(policy, "seat", None)
    if isinstance(saved, Seat) and saved.name != seat:
        raise ValueError(
            f"{what} is a policy of the seat {saved.name!r}; give one of the seat {seat!r}, saved with "
            f"save_policy(policy, path, game, {seat!r})."
        )
    generator = torch.Generator().manual_seed(0)
    seen, legal = _first(game, seat, generator)
    if not isinstance(getattr(policy, "memory", None), int):
        raise ValueError(
            f"{what} has no memory, the width of what it remembers; give a policy as rl.csp.check_policy describes it, "
            "or a rl.csp.ScriptedPolicy."
        )
    law, _ = _look(policy, what, seen, legal)
    if missing := [name for name in ("sample", "log_prob") if not hasattr(law, name)]:
        raise ValueError(f"{what} gives a law of type {type(law).__name__} without {', '.join(missing)}.")
    try:
        drawn = law.sample(generator)
    except Exception as error:  # likewise
        raise ValueError(f"{what} fails when it draws an action ({reason_of(error)}).") from error
    check_actions(drawn, what, seen, game, seat)


def _first(game: BatchedGame, seat: str, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """What a seat sees at the start of three episodes (1, 3, P, O), and which actions are legal."""
    state = game.reset(3, generator)
    masks = game.action_mask(state)
    legal = None if masks is None or seat not in masks else masks[seat][None]
    return game.observe(state)[seat][None], legal


def check_actions(drawn: object, what: str, seen: Tensor, game: BatchedGame, seat: str) -> None:
    """Refuse what are no actions of a seat.

    Args:
        drawn: The actions.
        what: Whose they are, for the message.
        seen: What they answer, (..., O).
        game: The game.
        seat: The seat.

    Raises:
        ValueError: For another shape or type, or actions that the seat does not have.
    """
    rows, n_actions = tuple(seen.shape[:-1]), game.n_actions[seat]
    wanted = rows if n_actions else (*rows, game.action_dim[seat])
    kind = "integers" if n_actions else "real numbers"
    if not isinstance(drawn, Tensor):
        raise ValueError(f"{what} gives a {type(drawn).__name__} as actions; this seat takes {kind} of shape {wanted}.")
    if tuple(drawn.shape) != wanted or drawn.is_floating_point() == bool(n_actions):
        raise ValueError(
            f"{what} draws actions of shape {tuple(drawn.shape)} and {drawn.dtype} for observations "
            f"{tuple(seen.shape)}; this seat takes {kind} of shape {wanted}."
        )
    if n_actions and not bool(((drawn >= 0) & (drawn < n_actions)).all()):
        raise ValueError(
            f"{what} draws actions from {int(drawn.min())} to {int(drawn.max())}; this seat has 0 to {n_actions - 1}."
        )
    if not bool(drawn.isfinite().all()):
        raise ValueError(f"{what} draws actions that are NaN or infinite; this seat takes entries in [-1, 1].")


def _look(policy: nn.Module, what: str, seen: Tensor, legal: Tensor | None) -> tuple[Any, Tensor | None]:
    try:
        law, after = policy(seen, legal, None)
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(
            f"{what} fails on observations of shape {tuple(seen.shape)}: {reason_of(error)}; see "
            "rl.csp.contract.check_policy for what it is given and gives."
        ) from error
    return law, after


def _check_law(
    policy: nn.Module, what: str, seen: Tensor, legal: Tensor | None, law: Any, drawn: Tensor, n_actions: int
) -> None:
    """Shapes, legality, and that a row's law is its own."""
    logs = law.log_prob(drawn)
    if tuple(logs.shape) != tuple(seen.shape[:-1]) or not bool(logs.isfinite().all()):
        raise ValueError(
            f"{what} gives its own draws log-probabilities of shape {tuple(logs.shape)}, finite: "
            f"{bool(logs.isfinite().all())}; they must be finite and {tuple(seen.shape[:-1])}."
        )
    if not logs.requires_grad:
        raise ValueError(f"{what} gives log-probabilities without a gradient; do not detach them.")
    again, alone = policy(seen, legal, None)[0], policy(seen[:, :1], None if legal is None else legal[:, :1], None)[0]
    same = torch.allclose(logs, again.log_prob(drawn)) and torch.allclose(
        logs[:, :1], alone.log_prob(drawn[:, :1]), rtol=1e-4, atol=1e-5
    )
    if not same:
        raise ValueError(
            f"{what} gives a row another law at random or with other rows beside it, as dropout and batch "
            "normalisation do; take these out, or use LayerNorm."
        )
    if n_actions:
        each = (
            torch.stack([law.log_prob(torch.full_like(drawn, action)) for action in range(n_actions)], -1)
            .detach()
            .exp()
        )
        total, least = each.sum(-1), torch.zeros(()) if legal is None else each.masked_fill(legal, 0.0).max()
        if not torch.allclose(total, torch.ones_like(total), atol=1e-4) or bool(least > 0):
            raise ValueError(
                f"{what} gives probabilities that sum to {float(total.min()):.4g}, of which {float(least):.4g} for an "
                "action that is not legal; they must sum to 1 over the legal ones."
            )
