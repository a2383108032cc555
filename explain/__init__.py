"""Why a model does worse on one domain than on another: hierarchical decomposition with intervals."""

import lazy_loader

# The public names stand in __init__.pyi; each is imported on first use, so that importing the package costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
