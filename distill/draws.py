"""Random numbers as a function of where they are used: of a seed and of the numbers that name a place, nothing else."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

_BLOCK = 32  # raw numbers made at a time


class Draws:
    """A stream of draws addressed by a seed and up to three numbers, from the counter-based generator Philox.

    Two streams of one address are equal wherever, whenever and in whichever order they are made; streams of different
    addresses are independent. Every draw is made from raw 64-bit words, whose values numpy guarantees for ever.

    Args:
        seed: Key of the generator, from 0 to 2**64 - 1.
        address: Up to three numbers of the same range, such as a purpose, a view and an index.

    Example:
        >>> Draws(0, 3, 17).uniform() == Draws(0, 3, 17).uniform() != Draws(0, 3, 18).uniform()
        True

    Reference:
        Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", SC '11.
    """

    def __init__(self, seed: int, *address: int) -> None:
        if len(address) > 3 or not all(0 <= number < 2**64 for number in (seed, *address)):
            raise ValueError(f"draws are named by a seed and up to three numbers below 2**64, got {seed}, {address}")
        counter = [0, *address, *[0] * (3 - len(address))]
        self._generator = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array(counter, np.uint64))
        self._left: list[float] = []

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Numbers strictly between 0 and 1, shape (count,)."""
        words = self._generator.random_raw(count) >> np.uint64(12)
        return np.asarray((words + 0.5) * 2.0**-52, np.float64)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number between two others."""
        if not self._left:
            self._left = self.uniforms(_BLOCK)[::-1].tolist()
        return low + (high - low) * self._left.pop()

    def integer(self, count: int) -> int:
        """One of 0 to count - 1."""
        return min(int(self.uniform(0, count)), count - 1)

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.uniform() < probability

    def normal(self, mean: float, deviation: float) -> float:
        """One normal number."""
        return mean + deviation * float(ndtri(self.uniform()))

    def beta(self, alpha: float) -> float:
        """One number of the symmetric beta distribution, by inversion."""
        return float(betaincinv(alpha, alpha, self.uniform()))
