"""The block ``grid:`` of a distill recipe: which losses are compared, over which recipes, training rows and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from distill.errors import DistillError
from distill.regimes import regime
from recipes.fields import FieldError, check_positive, check_seed, check_unique

RIVALS = ("dkd", "dist")
METHODS = ("ce", "kd", *RIVALS)


@dataclass
class Setting:
    """One recipe of the grid.

    Attributes:
        regime: As of the recipe; its published methods are the candidates that all budgets include.
        changes: Values of the regime that are different here.
        updates: Of every training.
        augment: Augment the glyphs.
        sizes: Training rows under this recipe, ascending; empty: those of the grid.
    """

    regime: str
    changes: dict[str, Any] = field(default_factory=dict)
    updates: int = 1000
    augment: bool = False
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check_positive(self.updates, "updates")
        check_sizes(self.sizes)
        try:
            regime(self.regime, self.changes)
        except DistillError as error:
            raise FieldError("changes", str(error)) from error


@dataclass
class Grid:
    """What is compared.

    Attributes:
        sizes: Training rows, ascending.
        settings: The recipes by name, from weak to strong.
        seeds: Seeds of the reported trainings.
        candidates: Losses to try for ce, kd, dkd and dist, as many each, besides the published ones.
        rates: What the learning rate of a recipe is multiplied with; every candidate is tried with each.
        tuning_seed: Seed of the tuning; none of the reported ones.
        teacher_rows: Glyphs that the teacher learns from.
        teacher_updates: Of its training, under the last setting.
        test_rows: Of validation and test each.
        processes: Cells that are made side by side.
    """

    sizes: list[int]
    settings: dict[str, Setting]
    seeds: list[int]
    candidates: dict[str, list[dict[str, dict[str, Any]]]]
    rates: list[float] = field(default_factory=lambda: [1.0])
    tuning_seed: int = 1000
    teacher_rows: int = 60000
    teacher_updates: int = 3000
    test_rows: int = 5000
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse an unfair or empty comparison."""
        for index, seed in enumerate(self.seeds):
            check_seed(seed, f"seeds.{index}")
        check_seed(self.tuning_seed, "tuning_seed")
        check_unique([str(seed) for seed in (*self.seeds, self.tuning_seed)], "seeds")
        for name in ("teacher_rows", "teacher_updates", "test_rows", "processes"):
            check_positive(getattr(self, name), name)
        for name in ("sizes", "settings", "seeds", "rates"):
            if not getattr(self, name):
                raise FieldError(name, "expected at least one, got none")
        check_sizes(self.sizes)
        if len(set(self.rates)) < len(self.rates) or not all(0 < rate < math.inf for rate in self.rates):
            raise FieldError("rates", f"expected different positive numbers, got {self.rates}")
        budgets = {name: len(tried) for name, tried in self.candidates.items()}
        if set(budgets) != set(METHODS) or len(set(budgets.values())) != 1:
            raise FieldError("candidates", f"expected as many for each of ce, kd, dkd and dist, got {budgets}")

    @property
    def places(self) -> list[tuple[str, int]]:
        """Every recipe with each number of its training rows."""
        return [(name, size) for name, setting in self.settings.items() for size in setting.sizes or self.sizes]

    @property
    def budget(self) -> int:
        """Losses that are tried for a method, the published one among them."""
        return 1 + len(self.candidates["kd"])


def check_sizes(sizes: list[int]) -> None:
    """Refuse training rows that are not ascending numbers."""
    if sizes != sorted(set(sizes)) or (sizes and sizes[0] < 1):
        raise FieldError("sizes", f"expected ascending numbers of at least 1, got {sizes}")
