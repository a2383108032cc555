from .acting import Action as Action
from .advice import advise as advise
from .agent import Agent as Agent
from .data import SeedDataModule as SeedDataModule
from .known_optima import best_known as best_known
from .module import HPOModule as HPOModule
from .policies import HybridPolicy as HybridPolicy
from .policy_file import export_policy as export_policy, load_policy as load_policy, save_policy as save_policy
from .surrogate import (
    advantages_of as advantages_of,
    clipped_surrogate as clipped_surrogate,
    mixed_surrogate as mixed_surrogate,
)
