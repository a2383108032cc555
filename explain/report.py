"""The report of a performance gap: its terms with intervals, as a table, as text, and as JSON that reads back."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Status = Literal["ok", "no-shift", "weak-shift", "low-overlap", "few-clusters", "few-rows", "near-one"]
Mode = Literal["domain", "models", "gap-of-gaps"]
Kind = Literal["covariate", "outcome"]

STATUS_MEANING: dict[Status, str] = {
    "ok": "estimated, with a normal interval",
    "no-shift": "not estimated: no shift of this kind, or between models no difference, could be told from noise, so "
    "there is nothing to share out",
    "weak-shift": "not estimated: there is a shift of this kind, or between models a difference, as its mean differs "
    "from 0, but how it varies from row to row could not be told from noise, so it is not shared out",
    "low-overlap": "weak: few source rows resemble the target, so the interval is wide and may be too narrow still",
    "few-clusters": "weak: too few clusters (or one far larger than the others) to know the errors well",
    "few-rows": "weak: too few rows, or too few source rows that resemble the target, for the intervals to hold",
    "near-one": "almost everything is explained: the interval covers somewhat less often than its level here",
}

_SIGNS: dict[Mode, str] = {
    "domain": "Positive: the model does worse on the target than on the source",
    "models": "Positive: the second model does worse than the first on the same rows",
    "gap-of-gaps": "Positive: from source to target the second model loses more than the first",
}
_ENDS: dict[Mode, tuple[str, str]] = {
    "domain": ("source", "target"),
    "models": ("first", "second"),
    "gap-of-gaps": ("source", "target"),
}
_BAR = 40  # characters of the text waterfall


@dataclass(frozen=True)
class Term:
    """One number of the report with its uncertainty.

    Attributes:
        name: "baseline", "covariate" or "outcome" among the aggregate terms; a variable or group among the detailed
            ones, where "recalibration" is what no variable is needed for.
        value: The estimate; NaN when the status is "no-shift" or "weak-shift".
        se: Its standard error.
        low: Lower end of the interval; may be infinite.
        high: Upper end of the interval; may be infinite.
        status: Whether to trust it, see `STATUS_MEANING`.
    """

    name: str
    value: float
    se: float
    low: float
    high: float
    status: Status = "ok"


@dataclass(frozen=True)
class SubsetValue:
    """The value of one subset of variables: the share of the shift that moving these alone would explain.

    Attributes:
        kind: Whether the covariates or the outcome were shifted.
        subset: Names of the variables or groups; empty for none.
        value: The share, 1 for everything and at most 1 (an estimate above it is set to 1); not bounded below by 0.
        se: Its standard error.
        low: Lower end of the interval; may be infinite.
        high: Upper end of the interval; may be infinite.
        status: Whether to trust it, see `STATUS_MEANING`.
    """

    kind: Kind
    subset: tuple[str, ...]
    value: float
    se: float
    low: float
    high: float
    status: Status = "ok"


@dataclass(frozen=True)
class GapReport:
    """Everything that was learned about one performance gap.

    Attributes:
        mode: "domain" (one model, two data sets), "models" (two models, one data set) or "gap-of-gaps" (both).
        loss: Name of the loss; higher is worse.
        level: Level of the intervals, between 0 and 1.
        totals: Mean losses: "source" and "target" ("first" and "second" between models) and their difference "gap".
        aggregate: "baseline", "covariate" and "outcome"; they sum to the gap. Empty between models.
        covariate: Shapley shares of the conditional covariate shift by variable; they sum to 1.
        outcome: Shapley shares of the conditional outcome shift by variable, with "recalibration" first; they sum to 1.
        values: The values of all subsets behind the shares.
        baseline: Contributions of the baseline columns to the baseline term, in units of the loss, which sum to it: an
            option beyond the paper. Empty where it was not asked for.
        diagnostics: Overlap, denominators and fit of the nuisances: plain numbers, texts, lists and dictionaries.
    """

    mode: Mode
    loss: str
    level: float
    totals: Mapping[str, float]
    aggregate: tuple[Term, ...] = ()
    covariate: tuple[Term, ...] = ()
    outcome: tuple[Term, ...] = ()
    values: tuple[SubsetValue, ...] = ()
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    baseline: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"the mode is '{self.mode}', not one of {', '.join(get_args(Mode))}")
        terms: tuple[Term | SubsetValue, ...] = (
            *self.aggregate,
            *self.baseline,
            *self.covariate,
            *self.outcome,
            *self.values,
        )
        for status in {term.status for term in terms} - set(STATUS_MEANING):
            raise ValueError(f"the status of a term is '{status}', not one of {', '.join(STATUS_MEANING)}")

    @property
    def sign(self) -> str:
        """What a positive number means, in one sentence."""
        return f"{_SIGNS[self.mode]} ({self.loss} is a loss, higher is worse)."

    @property
    def ends(self) -> tuple[str, str]:
        """Keys of the totals between which the gap lies, e.g. ("source", "target")."""
        return _ENDS[self.mode]

    def table(self) -> list[dict[str, Any]]:
        """All terms as rows with the columns part, name, value, se, low, high and status."""
        parts = (
            ("aggregate", self.aggregate),
            ("baseline", self.baseline),
            ("covariate", self.covariate),
            ("outcome", self.outcome),
        )
        return [{"part": part, **_row(term)} for part, terms in parts for term in terms]

    def to_frame(self) -> pd.DataFrame:
        """The rows of :meth:`table` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.table(), columns=["part", *(each.name for each in fields(Term))])

    def plot(self) -> Figure:
        """Waterfall of the aggregate terms and forests of the shares, as a matplotlib figure."""
        return importlib.import_module("explain.picture").draw(self)  # type: ignore[no-any-return]

    def to_html(self) -> str:
        """A self-contained page: what was found in words, the picture, the terms, the subsets folded away."""
        return str(importlib.import_module("explain.picture").page(self))

    def summary(self) -> str:
        """What was found, in a few sentences."""
        told = self._told
        text = f"{self._totals()}. {self.sign} Intervals are at {100 * self.level:g} %."
        if self.aggregate:
            largest = max(self.aggregate, key=lambda term: abs(term.value))
            text += f" The largest term is '{largest.name}' ({largest.value:+.{told}f} {_interval(largest, told)})"
            text += ", which cannot be told from 0." if largest.low <= 0 <= largest.high else "."
        if all(math.isnan(term.value) for term in (*self.covariate, *self.outcome)):
            return f"{text} Nothing is shared out among variables."
        what, mean = ("difference", "difference") if self.mode == "models" else ("shift", "term")
        return (
            f"{text} Shares by variable are shares of explained variation of the {what} across inputs, not of the mean "
            f"gap: a variable can have a large share of a {mean} that is near 0."
        )

    def _totals(self) -> str:
        (start, end), told = self.ends, self._told
        first, last, gap = (self.totals[name] for name in (start, end, "gap"))
        return f"{self.loss}: {start} {first:.{told}f}, {end} {last:.{told}f}, gap {gap:+.{told}f}"

    @property
    def _told(self) -> int:
        return decimals(self.totals.values())

    def to_json(self) -> str:
        """The report as strict JSON: numbers that are not finite become the texts "nan", "inf" and "-inf"."""
        found = _row(self)
        if not self.baseline:
            del found["baseline"]
        return json.dumps(encode(found), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GapReport:
        """Read what :meth:`to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            The same report.

        Raises:
            ValueError: If the text is not the JSON of a report.
        """
        try:
            found = json.loads(text)
            report = cls(
                mode=found["mode"],
                loss=found["loss"],
                level=found["level"],
                totals={name: float(value) for name, value in found["totals"].items()},
                aggregate=tuple(_term(row) for row in found["aggregate"]),
                covariate=tuple(_term(row) for row in found["covariate"]),
                outcome=tuple(_term(row) for row in found["outcome"]),
                values=tuple(
                    SubsetValue(row["kind"], tuple(row["subset"]), *_numbers(row), row["status"])
                    for row in found["values"]
                ),
                diagnostics=_decode(found["diagnostics"]),
                baseline=tuple(_term(row) for row in found.get("baseline", ())),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"this is not the JSON of a gap report: {error!r}; give what GapReport.to_json wrote"
            ) from error
        return report

    def to_text(self) -> str:
        """The report for a terminal: totals, a waterfall of the aggregate terms, the shares, what the sign means."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        told = self._told
        yield self._totals()
        yield self.sign
        if self.aggregate:
            yield ""
            yield f"Terms of the gap, with {100 * self.level:g} % intervals"
            yield from self._waterfall()
        if self.baseline:
            yield ""
            yield f"Contributions to the baseline term (beyond the paper), with {100 * self.level:g} % intervals"
            yield from (_line(term, _share_bar(term, self.baseline), told) for term in self.baseline)
        for title, terms in (
            ("Shares of the covariate shift", self.covariate),
            ("Shares of the outcome shift" if self.mode != "models" else "Shares of the difference", self.outcome),
        ):
            if terms:
                yield ""
                yield f"{title} by variable, with {100 * self.level:g} % intervals"
                yield from (_line(term, _share_bar(term, terms)) for term in terms)
        terms = (*self.aggregate, *self.baseline, *self.covariate, *self.outcome)
        used = {term.status for term in terms} - {"ok"}
        if used:
            yield ""
            yield from (f"{status}: {STATUS_MEANING[status]}." for status in STATUS_MEANING if status in used)

    def _waterfall(self) -> Iterator[str]:
        """One bar a term, each beginning where the former ended, from the first total to the last."""
        start, end = self.ends
        levels = [self.totals[start]]
        for term in self.aggregate:
            levels.append(levels[-1] + term.value)
        low, high = min(levels), max(levels)
        scale = (_BAR - 1) / (high - low) if high > low else 0.0
        spots = [round((level - low) * scale) for level in levels]
        told = self._told
        yield f"{start:<16}{levels[0]:>9.{told}f}{'':27}{' ' * spots[0]}|"
        for term, here, there in zip(self.aggregate, spots, spots[1:], strict=False):
            left, right = min(here, there), max(here, there)
            yield _line(term, " " * left + ("+" if term.value >= 0 else "-") * max(1, right - left), told)
        yield f"{end:<16}{levels[-1]:>9.{told}f}{'':27}{' ' * spots[-1]}|"


def _line(term: Term, bar: str, told: int = 4) -> str:
    if math.isnan(term.value):
        return f"{term.name:<16}{'':>9}  {term.status}"
    note = "" if term.status == "ok" else f"  {term.status}"
    return f"{term.name:<16}{term.value:>+9.{told}f}  {_interval(term, told):<23}  {bar}{note}".rstrip()


def decimals(values: Iterable[float]) -> int:
    """How many decimals to write: four, and more where all numbers are small.

    Example:
        >>> decimals([0.25, 0.1]), decimals([0.00125, 0.001])
        (4, 5)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 4 if not 0 < largest < 0.01 else 2 - math.floor(math.log10(largest))


def _interval(term: Term, told: int) -> str:
    return f"[{term.low:+.{told}f}, {term.high:+.{told}f}]"


def _share_bar(term: Term, terms: tuple[Term, ...]) -> str:
    largest = max((abs(other.value) for other in terms if not math.isnan(other.value)), default=0.0)
    if not largest or math.isnan(term.value):
        return ""
    return ("#" if term.value >= 0 else "-") * max(1, round(abs(term.value) / largest * _BAR))


def _row(record: Term | SubsetValue | GapReport) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}


def encode(value: object) -> Any:
    """Plain JSON values from dataclasses, tuples, numpy scalars and arrays."""
    if isinstance(value, Term | SubsetValue):
        return encode(_row(value))
    if isinstance(value, Mapping):
        return {str(key): encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [encode(inner) for inner in value]
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return encode(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _decode(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _numbers(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    return float(row["value"]), float(row["se"]), float(row["low"]), float(row["high"])


def _term(row: Mapping[str, Any]) -> Term:
    return Term(row["name"], *_numbers(row), row["status"])
