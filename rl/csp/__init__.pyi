from .acting import Decision as Decision, decide as decide
from .baselines import baseline as baseline, imitate as imitate
from .certificates import Verdict as Verdict, certify as certify
from .cloning import clone as clone
from .contract import check_policy as check_policy
from .data import RolloutDataModule as RolloutDataModule
from .dataset import (
    TargetData as TargetData,
    check_dataset as check_dataset,
    load_data as load_data,
    record_target as record_target,
    save_data as save_data,
)
from .foreign import from_minari as from_minari, from_rllib as from_rllib
from .module import CSPModule as CSPModule
from .pairs import Pairs as Pairs
from .player import Player as Player
from .policies import (
    CategoricalLaw as CategoricalLaw,
    GaussianLaw as GaussianLaw,
    ScriptedPolicy as ScriptedPolicy,
    SeatPolicy as SeatPolicy,
)
from .policy_file import export_policy as export_policy, load_policy as load_policy, save_policy as save_policy
from .recorder import Recorder as Recorder
from .rollout import pairs_of as pairs_of, play as play
from .tables import TablePolicy as TablePolicy
from .worst_case import WorstCase as WorstCase, estimate_worst_case as estimate_worst_case
