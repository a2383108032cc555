from .cached_data import CachedImageData as CachedImageData
from .data import ImageData as ImageData
from .errors import DistillError as DistillError
from .glyphs import Glyphs as Glyphs
from .hard import HardLoss as HardLoss
from .hints import CRDHint as CRDHint, CorrelationHint as CorrelationHint, CurriculumTemperature as CurriculumTemperature, FitNetHint as FitNetHint, ReviewHint as ReviewHint
from .language import LanguageLoss as LanguageLoss, LanguageNetwork as LanguageNetwork
from .losses import BinaryKD as BinaryKD, DIST as DIST, DKD as DKD, DistillLoss as DistillLoss, JSD as JSD, KD as KD, MultiTemperature as MultiTemperature, RKD as RKD
from .module import DistillModule as DistillModule
from .networks import Frozen as Frozen, ImageNetwork as ImageNetwork, TextNetwork as TextNetwork
from .regimes import REGIMES as REGIMES, Regime as Regime, method as method, regime as regime
from .terms import Outputs as Outputs
from .tokens import TokenData as TokenData
from .views import Augmentation as Augmentation, ViewDataset as ViewDataset
