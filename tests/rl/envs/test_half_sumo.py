"""Wrestling with a weak and a strong half: where matches start, what is seen, what the scripts do there."""

from typing import Literal

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")

from benchmarks.csp_ladder import LADDER, breaches, twin
from rl.csp.worst_case import Value
from rl.envs import HalfSumo, check_game
from rl.envs.half_sumo import LINE, OWN_X, TIRED, WEAK, careful_red, fighting_red, half_blue, sluggish_blue, strong_blue


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("body", ["pusher", "walker"])
def test_it_keeps_the_protocol_and_starts_in_its_halves(body: Literal["pusher", "walker"]) -> None:
    check_game(HalfSumo(body, horizon=4))
    starting: tuple[tuple[Literal["right", "all"], float], ...] = (("right", 1.0), ("all", 0.5))
    for starts, share in starting:
        game = HalfSumo(body, starts=starts)
        state = game.reset(400, chance())
        right = (game._pose(state["physics"], 0)["place"] + game._pose(state["physics"], 1)["place"])[:, 0] > 0
        assert float(right.float().mean()) == pytest.approx(share, abs=0.08)
        assert not any(game._lost(state["physics"], seat).any() for seat in (0, 1))
        seen = game.observe(state)
        for seat, name in enumerate(game.seats):
            places = [game._pose(state["physics"], k)["place"][:, 0] / game.body.ring for k in (seat, 1 - seat)]
            torch.testing.assert_close(seen[name][:, 0, OWN_X], places[0].float())
            torch.testing.assert_close(seen[name][:, 0, OWN_X + 1], places[1].float())
            assert torch.equal(seen[name][:, 0, TIRED] > 0, right)


def test_the_target_is_weak_when_tired_only_and_we_are_weaker() -> None:
    seen = torch.zeros(2000, 1, 20)
    seen[..., 4] = 1.0  # the opponent is straight ahead
    seen[:1000, :, TIRED] = 1.0
    thrust = half_blue(seen, None, chance())[:, 0, 0]
    assert float(thrust[:1000].mean()) == pytest.approx(WEAK, abs=0.03)
    assert float(thrust[1000:].mean()) > 0.9
    assert torch.equal(half_blue(seen, None, chance())[:1000], sluggish_blue(seen, None, chance())[:1000])
    assert torch.equal(half_blue(seen, None, chance())[1000:], strong_blue(seen, None, chance())[1000:])
    game = HalfSumo()
    state = game.reset(1, chance())
    full = {name: torch.ones(1, 1, 2) for name in game.seats}
    after, _, _ = game.step(state, full, chance())
    motion = [float(game._pose(after["physics"], seat)["spin"].abs()[0]) for seat in (0, 1)]
    assert motion[0] < motion[1]


@pytest.mark.parametrize(("body", "decisions"), [("pusher", 25), ("walker", 90)])
def test_crossing_the_line_tires_the_target_for_good(body: Literal["pusher", "walker"], decisions: int) -> None:
    game = HalfSumo(body)
    state, was = game.reset(64, chance()), torch.zeros(64, dtype=torch.bool)
    fresh = ~state["tired"]
    for _ in range(decisions):
        seen = game.observe(state)
        was |= (seen["red"][:, 0, OWN_X] > LINE) & ~state["done"]
        actions = {"red": careful_red(seen["red"], None, chance(1)), "blue": torch.zeros(64, 1, 2)}
        state, _, _ = game.step(state, actions, chance())
    assert not (was & ~state["tired"]).any()
    assert float(state["tired"][fresh].float().mean()) > 0.6
    assert fighting_red(seen["red"], None, chance()).abs().max() <= 1


def test_a_task_that_cannot_tell_is_named() -> None:
    values = (0.5, -0.2, -0.4, -0.4, 0.4, 0.3, 0.0, 0.0)
    ladder = {step: Value(value, value - 0.05, value + 0.05) for step, value in zip(LADDER, values, strict=True)}
    assert breaches(0.45, ladder) == []
    assert breaches(0.9, ladder) == ["the data cover 90% of the target's steps, not between 30 and 70 %"]
    ladder["tire it first", "the target"] = Value(0.02, -0.03, 0.07)
    assert len(breaches(0.45, ladder)) == 1
    assert "no clear difference" in breaches(0.45, ladder)[0]


def test_the_exact_twin_says_which_plans_are_misled() -> None:
    payoff = np.array([[0.6, 0.25, -0.2, -0.1], [0.5, 0.4, -0.3, -0.2]])
    found = twin(payoff)
    assert found["csp"] == pytest.approx(0.4)  # the safe plan against the target that charges until it is tired
    for misled in ("self_play", "bc_first", "rnr"):  # the best answers to a strong one, to a model, and to both
        assert found[misled] == pytest.approx(0.25)


@pytest.mark.parametrize("arguments", [{"starts": "left"}, {"power": 0.0}, {"power": 1.5}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be all or right, and above 0 and at most 1"):
        HalfSumo(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="body is 'ant', but it must be pusher or walker"):
        HalfSumo("ant")  # type: ignore[arg-type]
