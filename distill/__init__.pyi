from .cached_data import CachedImageData as CachedImageData
from .data import ImageData as ImageData
from .ensemble import Ensemble as Ensemble
from .errors import DistillError as DistillError
from .glyphs import Glyphs as Glyphs
from .hard import HardLoss as HardLoss
from .hints import (
    CorrelationHint as CorrelationHint,
    CRDHint as CRDHint,
    CurriculumTemperature as CurriculumTemperature,
    FitNetHint as FitNetHint,
    LayerHint as LayerHint,
    ReviewHint as ReviewHint,
)
from .language import LanguageLoss as LanguageLoss, LanguageNetwork as LanguageNetwork
from .losses import (
    DIST as DIST,
    DKD as DKD,
    JSD as JSD,
    KD as KD,
    RKD as RKD,
    BinaryKD as BinaryKD,
    DistillLoss as DistillLoss,
    MultiTemperature as MultiTemperature,
)
from .module import DistillModule as DistillModule
from .networks import Frozen as Frozen, ImageNetwork as ImageNetwork, TextNetwork as TextNetwork
from .regimes import REGIMES as REGIMES, Regime as Regime, method as method, regime as regime
from .terms import LogitTerm as LogitTerm, Outputs as Outputs, Term as Term
from .tokens import TokenData as TokenData
from .views import Augmentation as Augmentation, ViewDataset as ViewDataset
