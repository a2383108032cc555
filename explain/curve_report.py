"""The terms of a performance gap in many domains, each against one reference: table, curve, page, and JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from explain.report import STATUS_MEANING, GapReport, Status, decimals, encode

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CurveKind = Literal["domains", "groups"]
CURVES = ("gap", "baseline", "covariate", "outcome")


@dataclass(frozen=True)
class Point:
    """One number of one domain.

    Attributes:
        domain: Name of the domain.
        name: "gap", "baseline", "covariate" or "outcome".
        value: The estimate.
        se: Its standard error.
        low: Lower end of an interval that holds for all points of the curve at once.
        high: Its upper end.
        low_alone: Lower end of the interval of this number alone.
        high_alone: Its upper end.
        status: Whether to trust it, see `explain.report.STATUS_MEANING`.
    """

    domain: str
    name: str
    value: float
    se: float
    low: float
    high: float
    low_alone: float
    high_alone: float
    status: Status = "ok"

    @property
    def moved(self) -> bool:
        """Whether it differs from 0 with all points of the curve taken into account."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class GapCurve:
    """What was learned about several domains against one reference.

    Attributes:
        loss: Name of the loss; higher is worse.
        level: Level at which the simultaneous intervals hold together, and others alone.
        each_level: Level that each of the simultaneous intervals has for this.
        points: Gap and terms of every domain, domain by domain in the order given.
        reports: The whole report of every domain, with the shares by variable; their intervals hold alone.
        refused: Domains that could not be explained, each with the reason.
        kind: "domains" against one reference, or "groups", each from its own source rows to its own target rows.
    """

    loss: str
    level: float
    each_level: float
    points: tuple[Point, ...]
    reports: Mapping[str, GapReport]
    refused: Mapping[str, str] = field(default_factory=dict)
    kind: CurveKind = "domains"

    def __getitem__(self, domain: object) -> GapReport:
        """The report of a domain.

        Raises:
            KeyError: If there is none.
        """
        if str(domain) in self.refused:
            raise KeyError(f"domain '{domain}' was not explained: {self.refused[str(domain)]}")
        return self.reports[str(domain)]

    def curve(self, name: str) -> list[Point]:
        """The points of "gap", "baseline", "covariate" or "outcome", in the order of the domains."""
        return [point for point in self.points if point.name == name]

    def table(self) -> list[dict[str, object]]:
        """All points as rows: domain, name, value, se, low, high, low_alone, high_alone, status, moved."""
        return [{**_row(point), "moved": point.moved} for point in self.points]

    def shares(self) -> list[dict[str, object]]:
        """Shares by variable of every domain as rows: domain, part, name, value, se, low, high, status."""
        return [
            {"domain": domain, **row}
            for domain, report in self.reports.items()
            for row in report.table()
            if row["part"] != "aggregate"
        ]

    def to_frame(self) -> pd.DataFrame:
        """The rows of :meth:`table` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def plot(self) -> Figure:
        """The gap and its three terms from domain to domain, with both kinds of intervals, as a matplotlib figure."""
        return importlib.import_module("explain.curve_picture").draw(self)  # type: ignore[no-any-return]

    def to_html(self) -> str:
        """A self-contained page: what was found in words, the curves, all points, shares folded away."""
        return str(importlib.import_module("explain.curve_picture").page(self))

    def summary(self) -> str:
        """What was found, in a few sentences."""
        count = len(self.reports)
        what, worse = {
            "domains": ("against one reference", "the domain does worse than the reference"),
            "groups": ("from source to target", "the group does worse in the target than in the source"),
        }[self.kind]
        text = (
            f"{count} {self.kind if count != 1 else self.kind[:-1]} {what}; {self.loss} is a loss, higher is worse, "
            f"and a positive number says that {worse}. The intervals hold for all numbers "
            f"together at {100 * self.level:g} % (each at {100 * self.each_level:.1f} %)."
        )
        told = decimals(point.value for point in self.points)
        for name in CURVES:
            moved = [point for point in self.curve(name) if point.moved]
            what = "The gap" if name == "gap" else f"The {name} term"
            if not moved:
                text += f" {what} differs from 0 nowhere."
                continue
            largest = max(moved, key=lambda point: abs(point.value))
            text += (
                f" {what} differs from 0 in {len(moved)} of {count}, most in {largest.domain} "
                f"({largest.value:+.{told}f} [{largest.low:+.{told}f}, {largest.high:+.{told}f}])."
            )
        for domain, reason in self.refused.items():
            text += f" {domain} was not explained: {reason}."
        return text

    def to_text(self) -> str:
        """The curve for a terminal: one line a domain, a star where a number differs from 0; what statuses mean."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max([len("domain"), *map(len, self.reports)])
        told = decimals(point.value for point in self.points)
        yield self.summary()
        yield ""
        yield f"{self.kind[:-1]:<{width}}" + "".join(f"{name:>12} " for name in CURVES) + " status"
        for domain in self.reports:
            points = {point.name: point for point in self.points if point.domain == domain}
            cells = "".join(f"{points[name].value:>+12.{told}f}{'*' if points[name].moved else ' '}" for name in CURVES)
            yield f"{domain:<{width}}{cells} {points['outcome'].status}"
        met = {point.status for point in self.points} - {"ok"}
        if met:
            yield ""
            yield from (f"{status}: {STATUS_MEANING[status]}." for status in STATUS_MEANING if status in met)

    def to_json(self) -> str:
        """The curve as strict JSON: numbers that are not finite become the texts "nan", "inf" and "-inf"."""
        found = {
            "loss": self.loss,
            "level": self.level,
            "each_level": self.each_level,
            "points": [_row(point) for point in self.points],
            "reports": {domain: json.loads(report.to_json()) for domain, report in self.reports.items()},
            "refused": dict(self.refused),
            "kind": self.kind,
        }
        return json.dumps(encode(found), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GapCurve:
        """Read what :meth:`to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            The same curve.

        Raises:
            ValueError: If the text is not the JSON of a curve.
        """
        try:
            found = json.loads(text)
            return cls(
                loss=found["loss"],
                level=found["level"],
                each_level=found["each_level"],
                points=tuple(_point(row) for row in found["points"]),
                reports={name: GapReport.from_json(json.dumps(row)) for name, row in found["reports"].items()},
                refused=found["refused"],
                kind=found["kind"],
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not the JSON of a curve: {error!r}; give what GapCurve.to_json wrote") from error


def _row(point: Point) -> dict[str, object]:
    return {each.name: getattr(point, each.name) for each in fields(point)}


def _point(row: Mapping[str, Any]) -> Point:
    numbers = {
        each.name: float(row[each.name]) for each in fields(Point) if each.name not in ("domain", "name", "status")
    }
    return Point(domain=row["domain"], name=row["name"], status=row["status"], **numbers)
