from .artefact import load as load, save as save, verify as verify
from .big.factors import extract_lora as extract_lora
from .big.merge import merge_files as merge_files, plan_files as plan_files
from .big.twin import twin_files as twin_files
from .classifiers import stock_classifier as stock_classifier
from .dense import check_routing as check_routing, densify as densify
from .errors import CheckpointError as CheckpointError
from .exclusive import Exclusive as Exclusive
from .language_module import LanguageModule as LanguageModule
from .merging import merge as merge, merge_lora as merge_lora, shared_expert as shared_expert
from .modeling_twin import Head as Head, Router as Router, as_classifier as as_classifier, attach as attach
from .module import FinetuneModule as FinetuneModule
from .one_call import merge_folders as merge_folders
from .recalibration import recalibrate as recalibrate
from .routable import preflight as preflight
from .router import (
    FeatureDataModule as FeatureDataModule,
    RouterModule as RouterModule,
    fit_temperature as fit_temperature,
    knn_router as knn_router,
)
from .timm_models import wrap_timm as wrap_timm
from .zero_shot import zero_shot_head as zero_shot_head
