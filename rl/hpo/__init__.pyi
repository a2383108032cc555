from .best_known import best_known as best_known
from .data import SeedDataModule as SeedDataModule
from .module import HPOModule as HPOModule
from .policies import HybridPolicy as HybridPolicy
from .surrogate import (
    advantages_of as advantages_of,
    clipped_surrogate as clipped_surrogate,
    mixed_surrogate as mixed_surrogate,
)
