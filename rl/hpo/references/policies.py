"""The reference policies of inventory as decisions of its simulator, so that all are judged on the same demand."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl.envs.hybrid import Decide, State
from rl.envs.inventory import Inventory, position
from rl.hpo.references.inventory import SS, Item, PeriodicPolicy, QuantityPolicy


def items_of(simulator: Inventory) -> list[Item]:
    """The items of a simulator, each with an equal share of the fixed cost."""
    share = simulator.fixed_cost / simulator.action_dim
    rows = zip(simulator.mean.tolist(), simulator.holding.tolist(), simulator.shortage.tolist(), strict=True)
    return [Item(mean, holding, shortage, share, simulator.lead_time) for mean, holding, shortage in rows]


def decide_inventory(policy: SS | PeriodicPolicy | QuantityPolicy, simulator: Inventory) -> Decide:
    """Decisions of a reference policy, for :func:`rl.envs.hybrid.play`.

    Args:
        policy: As ``optimal_ss``, ``periodic_policy`` or ``quantity_policy`` returns it.
        simulator: What it is played in.

    Returns:
        A function of the state and the step.

    Example:
        >>> from rl.envs.inventory import single_item
        >>> from rl.hpo.references.inventory import optimal_ss
        >>> simulator = single_item()
        >>> decide = decide_inventory(optimal_ss(items_of(simulator)[0]), simulator)
        >>> decide(simulator.reset({"demand": torch.zeros(1, 100, 1)}), 0)
        (tensor([1]), tensor([[62.]]))
    """
    if isinstance(policy, SS):
        gap = policy.up_to - policy.reorder
        return _order_up_to(simulator, [policy.up_to], lambda missing, t: missing.sum(1) >= gap)
    if isinstance(policy, QuantityPolicy):
        quantity = policy.quantity
        return _order_up_to(simulator, policy.levels.tolist(), lambda missing, t: missing.sum(1) >= quantity)
    review = policy.review
    return _order_up_to(simulator, policy.levels.tolist(), lambda missing, t: missing.new_full((), t % review == 0) > 0)


def _order_up_to(simulator: Inventory, levels: list[int], due: Callable[[Tensor, int], Tensor]) -> Decide:
    """Raise every item to its level when an order is due, given what is missing of the levels (batch, items)."""
    target = torch.tensor(levels, dtype=simulator.dtype, device=simulator.device)

    def decide(state: State, t: int) -> tuple[Tensor, Tensor]:
        missing = target - position(state)
        return due(missing, t).long().expand(len(missing)), missing.clamp(min=0)

    return decide
