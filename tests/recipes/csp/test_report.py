"""What the report of a csp run plays."""

from types import SimpleNamespace

import pytest

from recipes.csp.report import _coverage


@pytest.mark.parametrize(("asked", "played"), [(20, 20), (4096, 512)])
def test_coverage_plays_no_more_episodes_than_a_test(monkeypatch, asked, played):
    class Enough(Exception):  # noqa: N818 - no error
        pass

    def stop(game, policies, episodes, generator):
        assert episodes == played
        raise Enough

    monkeypatch.setattr("rl.csp.rollout.play", stop)
    recipe = SimpleNamespace(seed=0, attack=SimpleNamespace(test_episodes=asked))
    problem, scenario = SimpleNamespace(game=None, models=[None]), SimpleNamespace(true_target=lambda: None)
    with pytest.raises(Enough):
        _coverage(recipe, problem, {"csp": None}, scenario)
