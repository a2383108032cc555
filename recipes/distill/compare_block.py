"""The block ``compare:`` of a distill recipe: how methods are tuned, and over which seeds they are reported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from recipes.fields import FieldError, check_seed, check_unique


@dataclass
class Compare:
    """A fair comparison of the methods in place of one training: all tuned alike, then trained over seeds.

    Attributes:
        seeds: Of the trainings that are reported, on test rows; two or more.
        tuning_seed: Seed of the tuning, on validation rows; none of the reported ones.
        rates: What the learning rate is multiplied with; every candidate is tried with each.
        candidates: For every method further losses to try, as many each; what stands under methods is tried too.
        baseline: The method that the others are compared with.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tuning_seed: int = 1000
    rates: list[float] = field(default_factory=lambda: [1.0])
    candidates: dict[str, list[dict[str, dict[str, Any]]]] = field(default_factory=dict)
    baseline: str = "kd"

    def __post_init__(self) -> None:
        """Refuse an unfair or empty comparison."""
        for index, seed in enumerate(self.seeds):
            check_seed(seed, f"seeds.{index}")
        check_seed(self.tuning_seed, "tuning_seed")
        check_unique([str(seed) for seed in (*self.seeds, self.tuning_seed)], "seeds")
        if len(self.seeds) < 2:
            raise FieldError("seeds", f"expected at least two, over which a gap has an interval, got {self.seeds}")
        if not self.rates:
            raise FieldError("rates", "expected at least one, got none")
        if len(set(self.rates)) < len(self.rates) or not all(0 < rate < math.inf for rate in self.rates):
            raise FieldError("rates", f"expected different positive numbers, got {self.rates}")

    def check(self, methods: Iterable[str]) -> None:
        """Refuse candidates that are not as many for each method.

        Args:
            methods: Names of the methods.

        Raises:
            FieldError: With their numbers.
        """
        budgets = {name: len(self.candidates.get(name, [])) for name in methods}
        if set(self.candidates) - set(budgets) or len(set(budgets.values())) != 1:
            given = {name: len(tried) for name, tried in self.candidates.items()}
            raise FieldError("compare.candidates", f"expected as many for each of {', '.join(budgets)}, got {given}")
        if self.baseline not in budgets or len(budgets) < 2:
            raise FieldError(
                "compare.baseline", f"expected one of several methods ({', '.join(budgets)}), got {self.baseline!r}"
            )
