"""Which estimator to train a simulator with, from what the checker finds and how many numbers there are to choose."""

from __future__ import annotations

from typing import NamedTuple

from rl.envs.check import check_simulator
from rl.envs.hybrid import HybridSimulator
from rl.errors import SimulatorError

# Hybrid PPO as it was tuned for one item of inventory (benchmarks/hpo_inventory.py).
SCORE = {"estimator": "score", "reuse": 4, "learning_rate": 1e-3, "discrete_rate": 1e-3, "entropy_start": 0.01}
MIXED: dict[str, object] = {"estimator": "mixed"}


class Advice(NamedTuple):
    """What to train with.

    Attributes:
        options: Arguments of `HPOModule`, with the estimator among them.
        reason: Why, as a part of a sentence.
    """

    options: dict[str, object]
    reason: str


def advise(simulator: HybridSimulator, *, smooth: bool = False) -> Advice:
    """Advise an estimator.

    ``score`` where the mixed gradient has nothing to follow or would be biased: no gradient, a jump within a mode, a
    mode mask that the continuous actions move. ``score`` too with nothing but modes to choose. ``mixed`` otherwise:
    the noise of the score grows with the numbers that are chosen, the pathwise gradient's does not, and with a single
    number it comes as near to the optimum, or nearer (benchmarks/hpo_small.py).

    Args:
        simulator: The simulator.
        smooth: Whether `rl.envs.check_simulator` has let it pass for ``mixed``, so that this need not be tried again.

    Raises:
        SimulatorError: If nothing can be trained in it.

    Example:
        >>> from rl.envs.switched_lqr import switched_lqr
        >>> advise(switched_lqr(3, 2)).reason
        '3 numbers are chosen at a time, and the gradient passes the simulator'
    """
    if not simulator.differentiable:
        check_simulator(simulator)
        return Advice(dict(SCORE), "the simulator is declared not differentiable")
    try:
        if not smooth:
            check_simulator(simulator, estimator="mixed")
    except SimulatorError as error:
        check_simulator(simulator, estimator="score")  # what breaks this, nothing can be trained in
        return Advice(dict(SCORE), f"the mixed gradient would be wrong ({str(error).split(';')[0]})")
    count = simulator.action_dim
    if not count:
        return Advice(dict(SCORE), "nothing but modes is chosen, so that no gradient passes the simulator")
    what = "a number is" if count == 1 else f"{count} numbers are"
    return Advice(dict(MIXED), f"{what} chosen at a time, and the gradient passes the simulator")
