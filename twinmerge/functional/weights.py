"""Numbers of a merge that depend on the tensor: one for all, one for each layer, or by the tensor's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from gapbridge.arguments import Finite
from twinmerge.functional.blocks import Tensors

# One number; numbers from the first layer to the last, with straight lines between them; or either by a part of the
# tensor's name, of which the first that occurs in it counts, and "*" is any.
Setting: TypeAlias = Finite | Sequence[Finite] | Mapping[str, Finite | Sequence[Finite]]


def setting_at(setting: Setting, tensors: Tensors) -> float:
    """The number that a setting has for a tensor.

    Raises:
        ValueError: If no part of a name fits the tensor, or there are no numbers.
    """
    if isinstance(setting, Mapping):
        found = next((value for part, value in setting.items() if part in ("*", "") or part in tensors.name), None)
        if found is None:
            raise ValueError(f"no entry of {dict(setting)} fits the tensor '{tensors.name}': add one for '*'")
        return setting_at(found, tensors)
    if not isinstance(setting, Sequence):
        return float(setting)
    if not setting:
        raise ValueError("a list of numbers by layer is empty: give at least one number")
    place = tensors.depth * (len(setting) - 1)
    low = min(int(place), len(setting) - 1)
    high = min(low + 1, len(setting) - 1)
    return (1 - (place - low)) * float(setting[low]) + (place - low) * float(setting[high])


def settings_at(settings: Setting | Sequence[Setting], tensors: Tensors) -> list[float]:
    """One number for each expert: from a list with one setting each, or from one setting for all.

    Raises:
        ValueError: If the list has another length than there are experts.
    """
    if not isinstance(settings, Sequence):
        return [setting_at(settings, tensors)] * tensors.experts
    if len(settings) != tensors.experts:
        raise ValueError(f"{len(settings)} values are given for {tensors.experts} experts: give one each")
    return [setting_at(setting, tensors) for setting in settings]


def shares_at(settings: Setting | Sequence[Setting], tensors: Tensors) -> list[float]:
    """One number for each expert, as `settings_at`, divided by their sum.

    Raises:
        ValueError: If they add up to 0, or the list has another length than there are experts.
    """
    weights = settings_at(settings, tensors)
    total = sum(weights)
    if total == 0:
        raise ValueError(f"the weights of '{tensors.name}' are {weights} and add up to 0: give others")
    return [weight / total for weight in weights]
