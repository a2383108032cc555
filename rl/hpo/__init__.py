"""Hybrid Policy Optimization: unbiased mixed gradients for actions that are a mode and, with it, real numbers."""

import lazy_loader

# The public names stand in __init__.pyi; each is imported on first use, so that importing the package costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
