"""Explaining as pure functions: arrays in, arrays out."""

from explain.functional.aggregate import aggregate_terms, expectation_rows
from explain.functional.bins import Bins, probability_bins, quantile_bins
from explain.functional.density import Overlap, density_ratio, overlap
from explain.functional.intervals import (
    Ratios,
    at_most_one,
    covariance,
    effective,
    fieller,
    ratio_terms,
    statuses,
    wald,
)
from explain.functional.losses import loss_table, observed_loss, quantile_loss, squared_error
from explain.functional.metrics import auc_parts, calibration_parts, metric_levels, ratio_parts
from explain.functional.rows import Rows, mean, quantile, stack
from explain.functional.shapley import sample_subsets, sampling_variance, shapley_map, subsets
from explain.functional.simultaneous import common_rows, each_level
from explain.functional.values import (
    covariate_rows,
    curvature,
    loss_level_rows,
    outcome_denominator_rows,
    outcome_rows,
    risk_coefficient,
    risk_rows,
)

__all__ = [
    "Bins",
    "Overlap",
    "Ratios",
    "Rows",
    "aggregate_terms",
    "at_most_one",
    "auc_parts",
    "calibration_parts",
    "common_rows",
    "covariance",
    "covariate_rows",
    "curvature",
    "density_ratio",
    "each_level",
    "effective",
    "expectation_rows",
    "fieller",
    "loss_level_rows",
    "loss_table",
    "mean",
    "metric_levels",
    "observed_loss",
    "outcome_denominator_rows",
    "outcome_rows",
    "overlap",
    "probability_bins",
    "quantile",
    "quantile_bins",
    "quantile_loss",
    "ratio_parts",
    "ratio_terms",
    "risk_coefficient",
    "risk_rows",
    "sample_subsets",
    "sampling_variance",
    "shapley_map",
    "squared_error",
    "stack",
    "statuses",
    "subsets",
    "wald",
]
