"""Worst-case evaluation: fresh adversaries come near the exact worst value, and what leaves the data does not count."""

import numpy as np
import pytest
import torch

from rl.csp.module import CSPModule
from rl.csp.policies import ScriptedPolicy
from rl.csp.worst_case import STARTS, estimate_worst_case, evaluate
from tests.rl.csp.games import DOOR, PUSH, YIELDS, Dilemma, dilemma_data

QUICK = {"iterations": 15, "episodes": 64, "test_episodes": 2000}


def always(action):
    return ScriptedPolicy(Dilemma().policy(np.eye(3)[[action, action]]))


@pytest.fixture(scope="module")
def problem():
    module = CSPModule(Dilemma(), dilemma_data(400), hidden=[16], proxy_rate=3e-2, entropy_start=0.0, epochs=2)
    module.warm_up()
    return module


def test_the_worst_consistent_value_is_near_the_exact_one(problem):
    found = estimate_worst_case(problem, always(PUSH), **QUICK)
    # within 0.05 nats of 0.9 the target yields with a probability of 0.75 at least: pushing is worth 0.5 or more
    assert 0.45 < found.value.value < 0.85
    assert found.value.low < found.value.value < found.value.high
    assert found.label.endswith("estimated (optimistic)")
    assert len(found.adversaries) == len(STARTS) + 2
    by_name = {a.name: a for a in found.adversaries}
    assert by_name.keys() >= {"fitted model", "training proxy as it is", "noisy model 1", "random 1"}
    assert by_name["fitted model"].excess == 0
    assert by_name["model 1"].consistent
    assert by_name[found.worst].consistent


def test_adversaries_that_leave_the_data_do_not_count(problem):
    found = estimate_worst_case(problem, always(PUSH), coefficient=0.0, **QUICK)
    lowest = min(found.adversaries, key=lambda a: a.value.value)
    assert lowest.value.value < 0
    assert not lowest.consistent
    assert found.value.value > 0.45


def test_a_policy_that_nobody_can_harm(problem):
    found = estimate_worst_case(problem, always(DOOR), **QUICK)
    assert found.value == pytest.approx((0.3, 0.3, 0.3), abs=1e-6)


def test_the_interval_is_students():
    problem = CSPModule(Dilemma(), dilemma_data(), hidden=[4])
    value = evaluate(problem, always(PUSH), ScriptedPolicy(Dilemma().policy(YIELDS)), 500, 3)
    share = (value.value + 1) / 2
    half = 1.9647 * 2 * np.sqrt(share * (1 - share) * 500 / 499) / np.sqrt(500)
    assert value.high - value.value == pytest.approx(half, rel=1e-3)
    assert value.value == pytest.approx(0.8, abs=0.1)


def test_fewer_adversaries_than_starts_are_refused(problem):
    with pytest.raises(ValueError, match="3 adversaries are asked for, but the search has 4 starts"):
        estimate_worst_case(problem, always(DOOR), count=3)


def test_evaluation_leaves_the_policies_alone(problem):
    before = [p.clone() for p in problem.parameters()]
    estimate_worst_case(problem, **(QUICK | {"iterations": 2}))
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters(), strict=True))
