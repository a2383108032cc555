"""Constrained Self-Play: adapt to a target known only through data, for the worst target that agrees with the data."""

import lazy_loader

# The public names stand in __init__.pyi; each is imported on first use, so that importing the package costs nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
