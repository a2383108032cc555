"""The estimator against exact enumeration: unbiased forms are exact, wrong forms are off by what is known of them."""

from functools import cache

import pytest
import torch
from hypothesis import given, strategies as st

from benchmarks import hpo_unbiased as toy
from rl.hpo.surrogate import advantages_of, clipped_surrogate, entropy, mixed_surrogate

WRONG = {  # relative error, separate networks
    "GAE 0.7, wrong value": 4.5e-2,
    "no cross term: scores on detached states": 7.7e-2,
    "pathwise only": 3.3e-1,
    "return not detached in the score part": 1.9,
    "GAE 0.7 from live costs": 4.6e-1,
    "cost-to-go from the next step on": 1.4e-1,
    "score part without its discount": 1.7e-2,
    "advantage over its deviation, pathwise part as it is": 7.2e-2,
}


@cache
def rows(shared):
    return {row["form"]: row for row in toy.errors(shared)}


@pytest.mark.parametrize("shared", [False, True])
def test_unbiased_forms_are_exact(shared):
    right = {form: row["rel_error"] for form, row in rows(shared).items() if row["unbiased"]}
    assert len(right) == 10
    assert max(right.values()) < 1e-10


def test_wrong_forms_are_off_by_what_is_known():
    wrong = {form: row for form, row in rows(False).items() if not row["unbiased"]}
    assert {form: pytest.approx(row["rel_error"], rel=0.05) for form, row in wrong.items()} == WRONG
    assert min(row["rel_error"] for row in rows(True).values() if not row["unbiased"]) > 5e-3


def test_without_the_cross_term_separate_networks_lose_only_the_continuous_gradient():
    cut = rows(False)["no cross term: scores on detached states"]
    assert cut["rel_error_discrete"] < 1e-12
    assert cut["rel_error_continuous"] == pytest.approx(0.081, rel=0.02)
    trunk = rows(True)["no cross term: scores on detached states"]
    assert trunk["rel_error"] > trunk["rel_error_continuous"]  # a shared trunk loses a part of its own


def test_the_exact_gradient_is_that_of_finite_differences():
    simulator, policy = toy.make(shared=True)
    truth = toy.exact_gradient(simulator, policy)

    def objective():
        with torch.no_grad():
            return toy.value(simulator, policy, simulator.start[None], 0).item()

    parameters, step = torch.nn.utils.parameters_to_vector(policy.parameters()).detach(), 1e-5
    for index in (0, 5, 12, 20, len(parameters) - 1):
        sides = []
        for sign in (1, -1):
            moved = parameters.clone()
            moved[index] += sign * step
            torch.nn.utils.vector_to_parameters(moved, policy.parameters())
            sides.append(objective())
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(truth[index].item(), rel=1e-5, abs=1e-8)


def test_a_score_of_the_continuous_action_counts_a_live_path_twice():
    """One step, one mode, u = mu + sigma e: the gradient of E u^2 is 2 mu by either estimator, not by their sum."""
    points, weights = torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5])  # exact for a square
    mu = torch.tensor(0.7, requires_grad=True)
    log_probs, modes = torch.zeros(2, 1, 1), torch.zeros(2, 1, dtype=torch.long)
    action = mu + 0.5 * points
    live = action.square()[:, None]

    def gradient(surrogate):
        return torch.autograd.grad((weights * surrogate).sum(), mu, retain_graph=True)[0].item()

    pathwise = mixed_surrogate(live, log_probs, modes, live).total
    density = -(action.detach() - mu).square() / (2 * 0.5**2)
    score = density * live.detach()[:, 0]
    assert gradient(pathwise) == pytest.approx(1.4)
    assert gradient(score) == pytest.approx(1.4)
    assert gradient(pathwise + score) == pytest.approx(2.8)


def test_sampled_gradients_agree_within_their_error(monkeypatch):
    monkeypatch.setattr(toy, "SAMPLES", 100_000)
    right, wrong = toy.monte_carlo(False, ["cost-to-go", "no cross term: scores on detached states"])
    assert right["max_z"] < 4
    assert wrong["rms_z"] > 15


def test_the_cross_term_fades_towards_a_best_response_only(monkeypatch):
    monkeypatch.setattr(toy, "STARTS", 8)
    warm, cool, sharp = (toy.best_response(tau, 0.0)["cross_share"] for tau in (2, 0.5, 0.1))
    assert warm > 3 * cool > 6 * sharp
    assert toy.best_response(0.1, 1.5)["cross_share"] > 5 * sharp


def test_only_the_first_decisions_are_scored_and_the_costs_of_a_warm_up_are_left_out():
    costs = torch.arange(12.0).reshape(2, 6)
    log_probs = torch.full((2, 6, 2), 0.5).log()
    parts = mixed_surrogate(
        costs, log_probs, torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6), decisions=2, counted_from=2
    )
    torch.testing.assert_close(parts.pathwise, costs[:, 2:].sum(1))
    torch.testing.assert_close(parts.score, 2 * log_probs[:, 0, 0])


@given(st.floats(0.5, 1), st.floats(0, 1), st.integers(1, 6))
def test_advantages_against_their_definition(discount, trace, steps):
    generator = torch.Generator().manual_seed(steps)
    costs = torch.randn(3, steps, generator=generator, dtype=torch.float64)
    values = torch.randn(3, steps + 1, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(costs)
    for t in range(steps):
        for k in range(t, steps):
            surprise = costs[:, k] + discount * values[:, k + 1] - values[:, k]
            expected[:, t] += (discount * trace) ** (k - t) * surprise
    torch.testing.assert_close(advantages_of(costs, values, discount=discount, trace=trace), expected)


def test_clipping_stops_gains_but_not_losses():
    moved = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clipped_surrogate(moved, torch.zeros(4), advantages, 0.2).sum().backward()
    # More of what is cheaper and less of what is dearer is a gain: past the clip it is no longer followed.
    assert moved.grad.ne(0).tolist() == [True, False, False, True]


def test_entropy_ignores_masked_modes():
    log_probs = torch.tensor([0.0, 0.0, float("-inf")], requires_grad=True)
    found = entropy(log_probs.log_softmax(-1))
    assert found.item() == pytest.approx(0.6931, abs=1e-4)
    assert torch.autograd.grad(found, log_probs)[0].isfinite().all()
