"""The static merges of this package by name, as functions."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from twinmerge.methods import OURS, find

METHODS: Mapping[str, Callable[..., dict[str, Tensor]]] = MappingProxyType({name: find(name) for name in OURS})
