"""The fixed table of static merge methods that can make the shared expert."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from twinmerge.functional.average import average
from twinmerge.functional.dare import dare, dare_ties
from twinmerge.functional.task_arithmetic import task_arithmetic
from twinmerge.functional.ties import ties

# Every entry is called as method(pretrained, experts, **options); its keyword-only parameters are its options.
METHODS: Mapping[str, Callable[..., dict[str, Tensor]]] = MappingProxyType(
    {"average": average, "task_arithmetic": task_arithmetic, "ties": ties, "dare": dare, "dare_ties": dare_ties}
)
