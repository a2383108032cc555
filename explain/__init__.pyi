from .curve import chunks as chunks, gap_by_group as gap_by_group, gap_curve as gap_curve
from .curve_report import GapCurve as GapCurve, Point as Point
from .errors import ExplainError as ExplainError
from .explainer import GapExplainer as GapExplainer
from .metric import ModelGap as ModelGap, PerformanceGap as PerformanceGap
from .paired import ModelGapExplainer as ModelGapExplainer, gap_of_gaps as gap_of_gaps
from .report import GapReport as GapReport, SubsetValue as SubsetValue, Term as Term
