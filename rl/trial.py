"""What a user's own parts are tried with before anything is trained: here the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rl.progress import Group

MakeOptimizer = Callable[[list[Group]], torch.optim.Optimizer]


def reason_of(error: Exception) -> str:
    """The first line of an error, for use inside a sentence."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def check_optimizer(make: MakeOptimizer | None, *sides: Sequence[Group]) -> None:
    """Make optimizers of copies of their parameters, and refuse what would not train them.

    Args:
        make: Takes a list of groups, each with ``params``, ``lr`` and what else a module needs to find there; None, the
            module's own, needs no trial.
        sides: The groups that the module will give, for each optimizer that it will make.

    Raises:
        ValueError: If it cannot be made so, is no optimizer, or has not every parameter in the group it was given in.
    """
    if make is not None:
        for groups in sides:
            _try(make, groups)


def _try(make: MakeOptimizer, groups: Sequence[Group]) -> None:
    copies = [
        {**group, "params": [nn.Parameter(value.detach().clone()) for value in group["params"]]} for group in groups
    ]
    wanted = [[id(value) for value in group["params"]] for group in copies]
    try:
        made = make([dict(group) for group in copies])
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(
            f"optimizer fails on the {len(groups)} groups of parameters that it is given ({reason_of(error)}); give "
            "what takes them as torch.optim.SGD does, such as functools.partial(torch.optim.SGD, momentum=0.9)."
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer makes a {type(made).__name__} of its groups of parameters; it must return a torch optimizer, "
            "as torch.optim.SGD does."
        )
    if [[id(value) for value in group["params"]] for group in made.param_groups] != wanted:
        raise ValueError(
            "optimizer makes other groups of parameters than it is given, so that learning rates would not fit; pass "
            "the groups on as they are."
        )
    if lacking := [key for group in copies for key in group if any(key not in held for held in made.param_groups)]:
        raise ValueError(
            f"optimizer drops {lacking[0]!r} of its groups, which the learning rates are set from; pass the groups on "
            "as they are."
        )
