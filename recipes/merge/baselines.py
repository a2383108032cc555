"""Static merges as baselines and as the shared expert: their options, and the tuning of each on validation."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipes.fields import FieldError, check_range
from recipes.front.schema import did_you_mean
from recipes.front.signature import names_of
from twinmerge.methods import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRIED = {"scale": "scales", "density": "densities", "drop": "drops"}  # options that are tuned, and the key of values


@functools.cache
def arguments_of(method: str) -> list[str]:
    """Keyword arguments of a static merge, known without importing torch."""
    return names_of(methods()[method])[2:]


def options_of(method: str) -> list[str]:
    """Options of a static merge that a recipe sets: all but the seed, which is the recipe's."""
    return [name for name in arguments_of(method) if name != "seed"]


def check_option(key: str, value: float, where: str) -> None:
    """Refuse a value that no static method takes."""
    check_range(value, where)
    if key == "density":
        check_range(value, where, low=0, high=1, low_open=True)
    if key == "drop" and not 0 <= value < 1:
        raise FieldError(where, f"expected a share from 0 to below 1, got {value}")


@dataclass
class Shared:
    """The shared expert: an ordinary static merge.

    Attributes:
        method: average, task_arithmetic, ties, dare, dare_ties, or one that an installed package registers.
        options: Options of the method: scale, density, drop; those left out have the method's defaults.
    """

    method: str = "task_arithmetic"
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown methods, and options that the method does not have."""
        if self.method not in (known := list(methods())):
            raise FieldError("method", f"unknown merge method {self.method!r}; {did_you_mean(self.method, known)}")
        for key, value in self.options.items():
            if key not in options_of(self.method):
                hint = did_you_mean(key, options_of(self.method))
                raise FieldError(f"options.{key}", f"{self.method} has no such option; {hint}")
            check_option(key, value, f"options.{key}")


@dataclass
class Baselines:
    """Static merges to compare with, each tuned on validation over its grid.

    Attributes:
        scales: Coefficients tried for task arithmetic, TIES and DARE.
        densities: Densities tried for TIES.
        drops: Drop rates tried for DARE.
        probe: Also fit a linear probe on the frozen base.
    """

    scales: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    densities: list[float] = field(default_factory=lambda: [0.2])
    drops: list[float] = field(default_factory=lambda: [0.7])
    probe: bool = True

    def __post_init__(self) -> None:
        """Refuse values that no method takes."""
        for name, key in (("scales", "scale"), ("densities", "density"), ("drops", "drop")):
            for index, value in enumerate(getattr(self, name)):
                check_option(key, value, f"{name}.{index}")

    def grid(self) -> list[tuple[str, dict[str, float]]]:
        """Every candidate: method and options."""
        made: list[tuple[str, dict[str, float]]] = []
        for method in methods():
            tuned = [name for name in TRIED if name in options_of(method)]
            values = itertools.product(*(getattr(self, TRIED[name]) for name in tuned))
            made += [(method, dict(zip(tuned, chosen, strict=True))) for chosen in values]
        return made


def seeded(method: str, options: Mapping[str, float], seed: int) -> dict[str, Any]:
    """The options of a method as its keyword arguments, with the seed where it draws masks."""
    return {**options, "seed": seed} if "seed" in arguments_of(method) else dict(options)


def tune(
    grid: list[tuple[str, dict[str, float]]], validate: Callable[[str, dict[str, float]], float]
) -> dict[str, tuple[float, dict[str, float]]]:
    """Try every candidate on validation.

    Args:
        grid: Method and options of every candidate.
        validate: Called with both; higher is better, and the first of equals is taken.

    Returns:
        By method, the validation score and options of its best candidate.
    """
    best: dict[str, tuple[float, dict[str, float]]] = {}
    for method, options in grid:
        result = validate(method, options)
        if method not in best or result > best[method][0]:
            best[method] = (result, options)
    return best
