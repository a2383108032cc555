"""A distillation loss of one's own: a `Term` with a name; its arguments are checked by their annotations."""

from torch import Tensor

from distill.terms import LogitTerm
from gapbridge.arguments import Positive


class MeanGap(LogitTerm):
    """Mean distance of the logits, to a power."""

    name = "mean_gap"

    def __init__(self, power: Positive = 1.0) -> None:
        super().__init__()
        self.power = power

    def compare(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss of two matrices (batch, classes)."""
        return (student - teacher).abs().pow(self.power).mean()
