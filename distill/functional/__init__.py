"""Distillation losses as pure functions: tensors in, a scalar out; one file each."""

from distill.functional.binary_kd import binary_kd
from distill.functional.chunked import ChunkedLoss, LanguageHead, chunked_kd
from distill.functional.correlation import correlation
from distill.functional.crd import crd
from distill.functional.ctkd import bounded_temperature, curriculum_strength, reverse_gradient
from distill.functional.dist import dist, relation_distance
from distill.functional.dkd import dkd
from distill.functional.fitnet import hint
from distill.functional.jsd import generalised_jsd
from distill.functional.kd import kd
from distill.functional.mlkd import multi_temperature
from distill.functional.pieces import in_pieces
from distill.functional.review import hierarchical_context
from distill.functional.rkd import rkd
from distill.functional.sparse import SampledClasses, TopClasses, sampled_classes, sampled_kd, top_classes, top_kd
from distill.functional.standardise import standardise
from distill.functional.uld import uld
from distill.functional.vocabulary import align_vocabularies

__all__ = [
    "ChunkedLoss",
    "LanguageHead",
    "SampledClasses",
    "TopClasses",
    "align_vocabularies",
    "binary_kd",
    "bounded_temperature",
    "chunked_kd",
    "correlation",
    "crd",
    "curriculum_strength",
    "dist",
    "dkd",
    "generalised_jsd",
    "hierarchical_context",
    "hint",
    "in_pieces",
    "kd",
    "multi_temperature",
    "relation_distance",
    "reverse_gradient",
    "rkd",
    "sampled_classes",
    "sampled_kd",
    "standardise",
    "top_classes",
    "top_kd",
    "uld",
]
