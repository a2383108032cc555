"""Merging as pure functions: tensors in, tensors out."""

from twinmerge.functional.average import average
from twinmerge.functional.dare import dare, dare_ties, drop_and_rescale
from twinmerge.functional.emr import Elected, emr
from twinmerge.functional.factorize import LowRank, spectrum, truncated_svd
from twinmerge.functional.lora import lora_low_rank
from twinmerge.functional.methods import METHODS
from twinmerge.functional.ranks import choose_ranks, stored_dense
from twinmerge.functional.task_arithmetic import task_arithmetic
from twinmerge.functional.ties import ties
from twinmerge.functional.tsv_m import tsv_m

__all__ = [
    "METHODS",
    "Elected",
    "LowRank",
    "average",
    "choose_ranks",
    "dare",
    "dare_ties",
    "drop_and_rescale",
    "emr",
    "lora_low_rank",
    "spectrum",
    "stored_dense",
    "task_arithmetic",
    "ties",
    "truncated_svd",
    "tsv_m",
]
