"""What is advised for a simulator: the score function where gradients are missing, wrong or not worth it."""

from typing import Any

import pytest
import torch

from rl.envs import GymnasiumSimulator, HybridSimulator, LotSizing, Newsvendor, SwitchedLQR
from rl.envs.switched_lqr import switched_lqr
from rl.hpo import HPOModule, advise


def masked() -> HybridSimulator:
    plant = switched_lqr(2, 2)
    plant.mode_mask = lambda state, t: torch.stack([torch.ones(len(state["x"])) > 0, state["x"][:, 0] > 0], 1)  # type: ignore[method-assign]
    return plant


class Jumping(SwitchedLQR):
    def step(self, *given: Any) -> Any:
        following, cost = super().step(*given)
        return following, cost + (following["x"][:, 0] > 0)


def jumping() -> HybridSimulator:
    plant = switched_lqr(2, 2)
    plant.__class__ = Jumping
    return plant


@pytest.mark.parametrize(
    ("simulator", "estimator", "why"),
    [
        (switched_lqr(2, 2), "mixed", "2 numbers are chosen at a time"),
        (LotSizing([10.0, 6.0], 40.0, horizon=4), "mixed", "2 numbers"),
        (Newsvendor(), "mixed", "a number is chosen at a time"),
        (GymnasiumSimulator("CartPole-v1", horizon=3), "score", "declared not differentiable"),
        (masked(), "score", "the mode mask changes with the continuous actions"),
        (jumping(), "score", "jumps as the state or the action changes"),
    ],
)
def test_the_estimator_follows_from_the_simulator(simulator: HybridSimulator, estimator: str, why: str) -> None:
    advice = advise(simulator)
    assert advice.options["estimator"] == estimator
    assert why in advice.reason
    HPOModule(simulator, hidden=[4], **advice.options)  # type: ignore[arg-type]


def test_what_the_checker_has_let_pass_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = advise(switched_lqr(2, 2)), advise(Newsvendor())
    monkeypatch.setattr("rl.hpo.advice.check_simulator", None)
    assert (advise(switched_lqr(2, 2), smooth=True), advise(Newsvendor(), smooth=True)) == plain
