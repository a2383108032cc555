"""Exact conservative adaptation where the game is small enough: matrix, tabular Markov and extensive-form games."""

from rl.exact.certificate import (
    Certificate,
    certified_information_sets,
    certified_sets,
    certify,
    weissman_radius,
)
from rl.exact.episodes import worst_episode
from rl.exact.extensive import (
    ExtensiveSolution,
    InformationSet,
    SequenceGame,
    pinned_sets,
    restricted_nash,
    solve_extensive,
    worst_answer,
)
from rl.exact.intervals import Intervals, confidence_intervals
from rl.exact.markov import (
    MarkovGame,
    RobustSolution,
    best_response,
    robust_plan,
    robust_plan_by_stage,
    worst_case,
)
from rl.exact.matrix import MatrixSolution, solve_matrix
from rl.exact.sets import (
    ConsistentSet,
    Contamination,
    ForwardKL,
    Free,
    Pinned,
    ReverseKL,
    TotalVariation,
    consistent_sets,
    linear_confidence,
    root_radius,
)

__all__ = [
    "Certificate",
    "ConsistentSet",
    "Contamination",
    "ExtensiveSolution",
    "ForwardKL",
    "Free",
    "InformationSet",
    "Intervals",
    "MarkovGame",
    "MatrixSolution",
    "Pinned",
    "ReverseKL",
    "RobustSolution",
    "SequenceGame",
    "TotalVariation",
    "best_response",
    "certified_information_sets",
    "certified_sets",
    "certify",
    "confidence_intervals",
    "consistent_sets",
    "linear_confidence",
    "pinned_sets",
    "restricted_nash",
    "robust_plan",
    "robust_plan_by_stage",
    "root_radius",
    "solve_extensive",
    "solve_matrix",
    "weissman_radius",
    "worst_answer",
    "worst_case",
    "worst_episode",
]
