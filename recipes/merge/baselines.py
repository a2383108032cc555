"""Static merges as baselines and as the shared expert: their options, and the tuning of each on validation."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from recipes.fields import FieldError, check_positive, check_range
from recipes.front.schema import did_you_mean
from recipes.front.signature import names_of
from twinmerge.methods import FURTHER, OURS, WITH_DATA, compared, methods

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Options: TypeAlias = Mapping[str, Any]  # of a static merge; those that are tuned are numbers
Tuned: TypeAlias = dict[str, tuple[float, Options]]  # by method, its best candidate's score on validation and options
DATA = {  # static merges that look at inputs of the tasks, and what the table says of them
    "fisher": "static, every weight by its Fisher information on training inputs",
    "regmean": "static, linear layers fitted to the experts' on training inputs",
    "adamerging": "static, a coefficient a task learned on unlabelled validation inputs",
    "adamerging_layers": "static, a coefficient a task and tensor learned on unlabelled validation inputs",
}
ADAMERGING = "twinmerge.functional.adamerging:adamerging"
TAKEN = ("information", "inputs", "logits", "layers", "steps")  # arguments of these that a run fills in itself
DYNAMIC = {  # dynamic merges that a recipe compares, and what the table says of them
    "tsv_c": "TSV-Compress, head named, told the router's first choice",
    "smile": "SMILE, head named, experts by token and layer from their leading directions",
    "arrow": "Arrow, head named, experts by token and layer from their first direction",
    "wemoe": "WEMoE, head named, feed-forward weights by layer, gates learned on unlabelled validation inputs",
}
SHARED = "the shared expert"  # how its candidates are called among those of the baselines
TRIED = {"scale": "scales", "density": "densities", "drop": "drops"}  # options that are tuned, and the key of values


@functools.cache
def arguments_of(method: str) -> list[str]:
    """Keyword arguments of a static merge, known without importing torch."""
    if method in DATA:
        return names_of(WITH_DATA[method].function if method in WITH_DATA else ADAMERGING)[2:]
    return names_of(methods()[method])[2:]


def options_of(method: str) -> list[str]:
    """Options of a static merge that a recipe sets: all but the seed, which is the recipe's, and what data give."""
    return [name for name in arguments_of(method) if name != "seed" and not (method in DATA and name in TAKEN)]


def told(options: Options) -> str:
    """Options in words.

    >>> told({"scale": 0.5, "weights": {"mood": 1, "count": [0.1, 0.6]}})
    'scale 0.5, weights {"mood": 1, "count": [0.1, 0.6]}'
    """
    words = {n: value if isinstance(value, str) else json.dumps(value, default=str) for n, value in options.items()}
    return ", ".join(f"{name} {word}" for name, word in words.items())


def is_number(value: object) -> bool:
    """Whether an option is one number, not what differs by expert, layer or tensor, or says how."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_option(key: str, value: float, where: str) -> None:
    """Refuse a number that no static method takes."""
    check_range(value, where)
    if key == "density":
        check_range(value, where, low=0, high=1, low_open=True)
    if key == "drop" and not 0 <= value < 1:
        raise FieldError(where, f"expected a share from 0 to below 1, got {value}")


@dataclass
class Shared:
    """The shared expert: an ordinary static merge.

    Attributes:
        method: average, task_arithmetic, ties, dare, dare_ties, tsv_m, a further one such as breadcrumbs, sce or iso_c
            (twinmerge.methods lists them), one that an installed package registers, or one of baselines.data, which
            looks at inputs of the tasks.
        options: Options of the method, such as scale; numbers for each expert by the tasks' names, lists over the
            layers; those left out have the method's defaults.
        tune: Numbers of options that are tried on validation, such as scale [0.2, 0.3, 0.5]; all their combinations.
    """

    method: str = "task_arithmetic"
    options: dict[str, object] = field(default_factory=dict)
    tune: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown methods, and options that the method does not have."""
        if self.method not in (known := [*methods(), *DATA]):
            raise FieldError("method", f"unknown merge method {self.method!r}; {did_you_mean(self.method, known)}")
        for key, value in self.options.items():
            if key not in options_of(self.method):
                hint = did_you_mean(key, options_of(self.method))
                raise FieldError(f"options.{key}", f"{self.method} has no such option; {hint}")
            if is_number(value):
                check_option(key, cast("float", value), f"options.{key}")
        for key, values in self.tune.items():
            if key not in options_of(self.method):
                hint = did_you_mean(key, options_of(self.method))
                raise FieldError(f"tune.{key}", f"{self.method} has no such option; {hint}")
            if key in self.options or not values:
                raise FieldError(f"tune.{key}", f"expected values of an option that is not set, got {values}")
            for index, value in enumerate(values):
                check_option(key, value, f"tune.{key}.{index}")

    def candidates(self) -> list[Options]:
        """Options of everything that is tried; of one alone where nothing is tuned."""
        chosen = itertools.product(*self.tune.values())
        return [{**self.options, **dict(zip(self.tune, values, strict=True))} for values in chosen]

    def grid(self) -> list[tuple[str, Options]]:
        """Every candidate that is tried beside those of the baselines, none where nothing is tuned or data are read."""
        return [(SHARED, options) for options in self.candidates()] if self.tune and self.method not in DATA else []


@dataclass
class Baselines:
    """Static merges to compare with, each tuned on validation over its grid.

    Attributes:
        scales: Coefficients tried for task arithmetic, TIES, DARE and TSV-Merge.
        densities: Densities tried for TIES.
        drops: Drop rates tried for DARE.
        probe: Also fit a linear probe on the frozen base of encoders; what a language model answers needs none.
        emr: Also EMR-Merging, told the router's first choice for every input.
        knn: Also the twin with a kNN router on the same features.
        dynamic: Also other dynamic merges: tsv_c, smile, arrow, wemoe.
        further: Static merges that are compared beside the classic ones, such as breadcrumbs, sce or iso_c.
        data: Static merges that look at inputs, without their labels: fisher, regmean, adamerging, adamerging_layers.
        data_items: Inputs a task that they and wemoe look at, of a causal merge at most the router's.
        data_steps: Steps of AdaMerging, and of the gates of wemoe.
    """

    scales: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    densities: list[float] = field(default_factory=lambda: [0.2])
    drops: list[float] = field(default_factory=lambda: [0.7])
    probe: bool = True
    emr: bool = False
    knn: bool = False
    dynamic: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    data_items: int = 256
    data_steps: int = 500

    def __post_init__(self) -> None:
        """Refuse values that no method takes, and methods that are none of ours."""
        for key, known in (("data", DATA), ("dynamic", DYNAMIC)):
            for index, name in enumerate(getattr(self, key)):
                if name not in known:
                    hint = did_you_mean(name, list(known))
                    raise FieldError(f"{key}.{index}", f"unknown merge method {name!r}; {hint}")
        for key in ("data_items", "data_steps"):
            check_positive(getattr(self, key), key)
        for index, name in enumerate(self.further):
            if name not in FURTHER:
                raise FieldError(
                    f"further.{index}", f"unknown merge method {name!r}; {did_you_mean(name, list(FURTHER))}"
                )
        for name, key in (("scales", "scale"), ("densities", "density"), ("drops", "drop")):
            for index, value in enumerate(getattr(self, name)):
                check_option(key, value, f"{name}.{index}")

    def grid(self) -> list[tuple[str, Options]]:
        """Every candidate: method and options."""
        made: list[tuple[str, Options]] = []
        for method in [*compared(), *self.further]:
            tuned = [name for name in TRIED if name in options_of(method)]
            values = itertools.product(*(getattr(self, TRIED[name]) for name in tuned))
            made += [(method, dict(zip(tuned, chosen, strict=True))) for chosen in values]
        return made


def seeded(method: str, options: Options, seed: int) -> dict[str, Any]:
    """The options of a method as its keyword arguments, with the seed where it draws masks."""
    return {**options, "seed": seed} if "seed" in arguments_of(method) else dict(options)


def deciding(method: str, options: Options, seed: int) -> tuple[object, ...]:
    """What decides a static merge, beside base and experts; nothing for another package's, whose code may change."""
    return (method, dict(sorted(options.items())), seed) if method in (*OURS, *FURTHER) else ()


class Candidates:
    """Static merges by method and options, each method's direction computed once.

    The methods of this project are the base plus `scale` times a vector that does not depend on it, so that all scales
    of one method share that vector; a method that an installed package registers is called anew for every candidate.

    Args:
        pretrained: The base's parameters by name.
        merge: Called with a method and its options; returns all parameters by name.
        seed: Of masks.
    """

    def __init__(
        self, pretrained: Mapping[str, Tensor], merge: Callable[[str, dict[str, Any]], dict[str, Tensor]], seed: int
    ) -> None:
        self.pretrained, self.merge, self.seed = pretrained, merge, seed
        self._directions: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._means: dict[tuple[str, str], dict[str, Tensor]] = {}  # of running statistics

    def __call__(self, method: str, options: Options) -> dict[str, Tensor]:
        """All parameters of one candidate."""
        if method not in (*OURS, *FURTHER) or not is_number(options.get("scale")):
            return self.merge(method, seeded(method, options, self.seed))
        rest = {name: value for name, value in options.items() if name != "scale"}
        key = (method, told(rest))
        if key not in self._directions:
            whole = self.merge(method, seeded(method, {**rest, "scale": 1.0}, self.seed))
            self._directions[key] = {
                name: value - self.pretrained[name]
                for name, value in whole.items()
                if name in self.pretrained and value.is_floating_point() and not value.equal(self.pretrained[name])
            }
            self._means[key] = {name: value for name, value in whole.items() if name not in self.pretrained}
        moved = self._directions[key]
        merged = {
            name: base + options["scale"] * moved[name] if name in moved else base
            for name, base in self.pretrained.items()
        }
        return merged | self._means[key]


def tune(grid: list[tuple[str, Options]], validate: Callable[[str, Options, int], float], parts: int = 1) -> Tuned:
    """Find the best candidate of every method on validation by successive halving.

    All candidates of a method see the first part of the rows; the better half of them the second part too; and so on,
    until the last part decides between those that are left. Jamieson and Talwalkar (2016), "Non-stochastic best arm
    identification and hyperparameter optimization", arXiv 1502.07943.

    Args:
        grid: Method and options of every candidate.
        validate: Called with both and the number of a part; returns the score on all parts up to it. Higher is better,
            and the first of equals is taken.
        parts: Of the validation rows; one tries every candidate on all rows.

    Returns:
        By method, the validation score of its best candidate on all rows, and its options.
    """
    left: dict[str, list[Options]] = {}
    for method, options in grid:
        left.setdefault(method, []).append(options)
    best: Tuned = {}
    for method, tried in left.items():
        candidates = tried
        for part in range(parts):
            scores = [validate(method, options, part) for options in candidates]
            kept = 1 if part == parts - 1 else -(-len(candidates) // 2)
            order = sorted(range(len(scores)), key=[inf if isnan(x) else -x for x in scores].__getitem__)
            best[method] = (scores[order[0]], candidates[order[0]])
            candidates = [candidates[index] for index in sorted(order[:kept])]
    return best


def trials(grid: list[tuple[str, Options]], parts: int = 1) -> list[int]:
    """How many candidates `tune` tries on each part."""
    counts = [sum(one == method for one, _ in grid) for method in {method for method, _ in grid}]
    tried = []
    for _ in range(parts):
        tried.append(sum(counts))
        counts = [-(-count // 2) for count in counts]
    return tried
