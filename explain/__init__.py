"""Why a model does worse on one domain than on another: hierarchical decomposition with intervals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explain.errors import ExplainError
    from explain.explainer import GapExplainer
    from explain.metric import ModelGap, PerformanceGap
    from explain.paired import ModelGapExplainer, gap_of_gaps
    from explain.report import GapReport, SubsetValue, Term

# Resolved on first use: the report reads back without scikit-learn, and only the metrics need torch.
_WHERE = {
    "ExplainError": "errors",
    "GapExplainer": "explainer",
    "GapReport": "report",
    "ModelGap": "metric",
    "ModelGapExplainer": "paired",
    "PerformanceGap": "metric",
    "SubsetValue": "report",
    "Term": "report",
    "gap_of_gaps": "paired",
}
__all__ = [
    "ExplainError",
    "GapExplainer",
    "GapReport",
    "ModelGap",
    "ModelGapExplainer",
    "PerformanceGap",
    "SubsetValue",
    "Term",
    "gap_of_gaps",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'explain' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"explain.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
