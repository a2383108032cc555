"""How far the data as a whole can be trusted: one status for terms and one for shares."""

from __future__ import annotations

from typing import Any, NamedTuple

from explain.data import Sample
from explain.functional.density import Overlap
from explain.functional.intervals import Status, effective

WEAK_AUC = 0.95
WEAK_SHARE = 0.1
FEW_CLUSTERS = 20
# The least number of (effective) rows of either domain for the aggregate terms and for the shares, and of source rows
# that resemble the target.
TERM_ROWS, TERM_MATCHED = 2000, 200
SHARE_ROWS, SHARE_MATCHED = 4000, 1000


class Trust(NamedTuple):
    """What the data deserve.

    Attributes:
        terms: Status of the aggregate terms.
        shares: Status of values and shares, unless they have one of their own.
        freedom: Degrees of freedom of all standard errors: effective units of the smaller domain, or of the source
            reweighted to the target, less one.
        units: Effective rows, or clusters, of every domain and of the reweighted source.
    """

    terms: Status
    shares: Status
    freedom: float
    units: dict[str, float]

    def diagnostics(self) -> dict[str, Any]:
        """For the report."""
        return {"freedom": self.freedom, "units": self.units}


def judge(sample: Sample, support: Overlap | None = None) -> Trust:
    """Trust in estimates from a sample.

    Args:
        sample: The data.
        support: Overlap of the two domains; not given where there is one.
    """
    rows, units = [], {}
    for side, role in enumerate(("source", "target")[: 1 if support is None else 2]):
        weight = sample.weight_of(side)
        rows.append(effective(weight))
        clusters = None if sample.clusters is None else sample.clusters[side]
        units[role] = rows[-1] if clusters is None else effective(weight, clusters)
    matched = rows[0]
    if support is not None:
        units["matched"] = support.effective
        matched = rows[0] * support.share
    few = min(units.values())

    def status(least: float, least_matched: float) -> Status:
        if support is not None and not (support.auc <= WEAK_AUC and support.share >= WEAK_SHARE):
            return "low-overlap"
        if sample.clusters is not None and few < FEW_CLUSTERS:
            return "few-clusters"
        return "few-rows" if min(rows) < least or matched < least_matched else "ok"

    terms, shares = status(TERM_ROWS, TERM_MATCHED), status(SHARE_ROWS, SHARE_MATCHED)
    return Trust(terms, shares, max(few - 1, 1.0), units)
