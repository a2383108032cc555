"""Binning the source risk, and differences between neighbouring bins as its derivative."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from explain.functional.rows import Floats, quantiles


class Bins(NamedTuple):
    """Bins of a score.

    Attributes:
        edges: Inner edges, ascending, shape (B - 1,); a value on an edge belongs to the bin above.
        centres: Where every bin stands on the scale of the score, shape (B,).
        feature: What a regression sees of every bin, shape (B,).
    """

    edges: Floats
    centres: Floats
    feature: Floats

    def __call__(self, score: Floats, shift: int = 0) -> Floats:
        """The feature of the bin of every score, or of a bin so many further (the last one at the ends)."""
        return self.feature[self._index(score, shift)]

    def slope(self, score: Floats, below: Floats, above: Floats) -> Floats:
        """A derivative by the score, from predictions with shifts of -1 and +1.

        Args:
            score: Shape (n,).
            below: Predictions at shift -1, shape (n, ...).
            above: Predictions at shift +1.

        Returns:
            Shape (n, ...); 0 where there is a single bin.
        """
        width = self.centres[self._index(score, 1)] - self.centres[self._index(score, -1)]
        width = np.where(width > 0, width, np.inf).reshape(-1, *[1] * (below.ndim - 1))
        return np.asarray((above - below) / width)

    def _index(self, score: Floats, shift: int) -> NDArray[np.int64]:
        return np.clip(np.searchsorted(self.edges, score, side="right") + shift, 0, len(self.centres) - 1)


def probability_bins(count: int) -> Bins:
    """Bins of equal width for probabilities; the feature is the log odds of the centre.

    Args:
        count: B, at least 1.

    Example:
        >>> import numpy as np
        >>> probability_bins(2)(np.array([0.2, 0.5])).round(3)
        array([-1.099,  1.099])
    """
    centres = (np.arange(count) + 0.5) / count
    return Bins(np.arange(1, count) / count, centres, np.log(centres / (1 - centres)))


def quantile_bins(sample: Floats, count: int, weights: Floats | None = None) -> Bins:
    """Bins that hold equal shares of a sample; the feature is the mean of a bin.

    Args:
        sample: Scores, shape (n,).
        count: B, at least 1; fewer are made where values repeat.
        weights: Weights of the rows; equal when not given.
    """
    edges = np.unique(quantiles(sample, np.arange(1, count) / count, weights))
    edges = edges[edges > sample.min()]  # edges are values of the sample, so that no bin is empty
    index = np.searchsorted(edges, sample, side="right")
    mass = np.ones(len(sample)) if weights is None else weights
    centres = np.bincount(index, sample * mass) / np.bincount(index, mass)
    return Bins(edges, centres, centres)
