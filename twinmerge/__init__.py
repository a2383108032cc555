"""Twin-Merging: a shared expert, SVD-compressed exclusive experts and a router of every input to its own mixture."""

import lazy_loader

# The public names stand in __init__.pyi; each is imported on first use, so that importing the package costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
