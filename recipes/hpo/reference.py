"""What a recipe's costs are compared with: the best known policy, a cost of the user's, or a policy of theirs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from recipes.errors import RecipeError
from recipes.hpo.schema import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl.envs.hybrid import Decide, HybridSimulator, Noise
    from rl.hpo.known_optima import BestKnown


def known(reference: Reference, simulator: HybridSimulator, noise: Noise) -> BestKnown | None:
    """The reference on given episodes, or None where nothing is known.

    Args:
        reference: As the recipe has it.
        simulator: The simulator.
        noise: The episodes.

    Raises:
        RecipeError: If the policy cannot be made or played.
    """
    import torch

    from rl.envs.hybrid import play, reported_cost
    from rl.hpo.known_optima import BestKnown, best_known
    from rl.loading import find

    if reference.cost is not None:
        return BestKnown(reference.name, reference.cost, {})
    if reference.policy is None:
        return best_known(simulator, noise)
    try:
        make = cast("Callable[[HybridSimulator], Decide]", find("reference.policy", reference.policy))
    except ValueError as error:
        raise RecipeError(str(error)) from error
    try:
        decide = make(simulator)
        with torch.no_grad():
            cost = float(reported_cost(simulator, play(simulator, decide, noise)).double().mean())
        if not math.isfinite(cost):
            raise ValueError(f"its cost is {cost}")
        if not cost:
            raise ValueError("its cost is 0, and gaps are in units of it")
    except Exception as error:  # whatever a user's own code raises
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise RecipeError(
            f"reference.policy: {reference.policy} cannot be played ({reason}); give a function of the simulator that "
            "returns a function of state and step, which gives modes and actions"
        ) from error
    return BestKnown(reference.name, cost, {})
