"""Data in memory: counts, weights, splits by episode; rollouts that join, pad and give back pairs; the seed stream."""

import pytest
import torch

from rl.csp.cloning import clone, likelihood
from rl.csp.data import RolloutStream
from rl.csp.pairs import Coverage, Pairs, PairSampler
from rl.csp.policies import GatedPolicy, ScriptedPolicy, SeatPolicy
from rl.csp.rollout import join, pairs_of, play
from rl.envs.vault_maze import VaultMaze, behaviour, true_guard
from tests.rl.csp.games import Dilemma


def draws(seed):
    return torch.Generator().manual_seed(seed)


def pairs():
    observations = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    episodes = torch.tensor([0, 0, 1, 2])
    return Pairs(observations, torch.tensor([0, 0, 1, 1]), None, episodes, episodes)


def test_counts_of_equal_and_of_near_observations():
    asked = torch.tensor([[[0.0], [1.0]], [[0.3], [5.0]]])
    assert Coverage(pairs().observations)(asked).tolist() == [[3, 1], [0, 0]]
    scale = float(pairs().observations.std(correction=0))
    assert Coverage(pairs().observations, 0.31 / scale)(asked).tolist() == [[3, 1], [3, 0]]


@pytest.mark.parametrize("large", [0.1, 1e4, 1.7e9])
def test_a_column_that_never_changes_takes_nothing_from_the_counts(large):
    kinds = torch.tensor([[0.0, large], [1.0, large], [2.0, large]])
    times = torch.tensor([500, 300, 200])
    counts = Coverage(kinds.repeat_interleave(times, dim=0))
    assert counts(kinds).tolist() == times.tolist()
    assert not counts(kinds * torch.tensor([1.0, 1.5])).any()


@pytest.mark.parametrize(("power", "expected"), [(1.0, [0.5, 0.25, 0.25]), (0.0, [1 / 3, 1 / 6, 1 / 2])])
def test_states_weigh_as_the_power_says(power, expected):
    batch = PairSampler(pairs(), power=power).draw(draws(0))
    rows = {
        (float(o), int(a)): float(w) for o, a, w in zip(*(x[0] for x in (batch[0], batch[1], batch[3])), strict=True)
    }
    assert [rows[key] for key in ((0.0, 0), (0.0, 1), (1.0, 1))] == pytest.approx(expected)


def test_small_batches_are_drawn_by_weight():
    sampler = PairSampler(pairs(), batch=2)
    seen = [sampler.draw(draws(seed)) for seed in range(300)]
    assert all(batch.weights.sum() == pytest.approx(1) for batch in seen)
    mean = sum(float((batch.observations[..., 0] * batch.weights).sum()) for batch in seen) / len(seen)
    assert mean == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("memory", "real"), [(0, 0), (4, 0), (0, 2)])
def test_drawn_pairs_bring_what_the_model_says_of_them(memory, real):
    episodes = torch.arange(12) // 2
    observations = torch.randn(12, 3, generator=draws(0))
    actions = torch.rand(12, real) if real else torch.arange(12) % 2
    masks = None if real else torch.tensor([[True, True, False]]).expand(12, -1)
    model = SeatPolicy(3, 0 if real else 3, real, memory=memory)
    sampler = PairSampler(Pairs(observations, actions, masks, episodes, episodes), batch=4, sequences=memory > 0)
    assert sampler.draw(draws(0)).model is None
    sampler.evaluate(model)
    for seed in range(5):
        data = sampler.draw(draws(seed))
        expected = model(data.observations, data.masks, None)[0]
        assert torch.allclose(data.model.log_prob(data.actions), expected.log_prob(data.actions))
        assert data.model.kl(expected).abs().max() < 1e-6
    assert sampler.to(torch.device("cpu")).whole.model is None


def test_drawn_pairs_bring_a_mixed_law_too():
    torch.manual_seed(0)
    observations, episodes = torch.randn(12, 3), torch.arange(12)
    gated = GatedPolicy(SeatPolicy(3, 2, 0), SeatPolicy(3, 2, 0), lambda seen: seen[..., 0].sigmoid())
    for part in (gated.model, gated.free):
        torch.nn.init.normal_(part.head.weight)
    sampler = PairSampler(Pairs(observations, episodes % 2, None, episodes, episodes), batch=4)
    sampler.evaluate(gated)
    data = sampler.draw(draws(0))
    expected = gated(data.observations, None, None)[0].log_prob(data.actions)
    assert torch.allclose(data.model.log_prob(data.actions), expected)


def test_sequences_are_whole_episodes():
    batch = PairSampler(pairs(), power=1.0, sequences=True).whole
    assert batch.actions.T.tolist() == [[0, 0], [1, 0], [1, 0]]
    assert batch.weights.T.tolist() == [[0.25, 0.25], [0.25, 0.0], [0.25, 0.0]]


def test_a_split_keeps_episodes_whole():
    train, held_out = pairs().split(0.34, 0)
    assert not set(train.episodes.tolist()) & set(held_out.episodes.tolist())
    assert len(train.actions) + len(held_out.actions) == 4
    alone = pairs().rows(torch.tensor([0, 1]))
    assert alone.split(0.5, 0) == (alone, alone)


def test_a_split_keeps_the_players_of_an_episode_together():
    two = torch.arange(8) // 2  # four players, in two episodes
    many = Pairs(torch.zeros(8, 1), torch.zeros(8, dtype=torch.long), None, two // 2, two)
    for part in many.split(0.5, 0):
        assert len(part.episodes.unique()) == 1
        assert len(part.tracks.unique()) == 2


@pytest.mark.parametrize("memory", [0, 4])
def test_cloning_finds_the_frequencies(memory):
    torch.manual_seed(0)
    many = Pairs(*(x.repeat_interleave(20, 0) if x is not None else None for x in pairs()[:3]), *[torch.arange(80)] * 2)
    policy = SeatPolicy(1, 2, 0, (16,), memory=memory)
    clone(policy, many, many, draws(0), rate=2e-2, epochs=60)
    law, _ = policy(torch.tensor([[[0.0], [1.0]]]))
    assert law.log_probs[0].exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    entropy = -0.75 * (2 / 3 * torch.log(torch.tensor(2 / 3)) + 1 / 3 * torch.log(torch.tensor(1 / 3)))
    assert likelihood(policy, many) == pytest.approx(float(entropy), abs=0.03)


def maze_episodes(episodes, seed):
    game = VaultMaze()
    policies = (ScriptedPolicy(game.policy(behaviour())), ScriptedPolicy(game.policy(true_guard())))
    return game, play(game, policies, episodes, draws(seed))


def test_pairs_of_episodes_are_what_was_played():
    game, episodes = maze_episodes(30, 0)
    found = pairs_of(episodes, "guard")
    assert len(found.actions) == int(episodes.live.sum())
    assert (found.episodes.diff() >= 0).all()
    first = found.tracks.unique_consecutive(return_counts=True)[1].cumsum(0)[:-1]
    assert (found.observations[torch.cat([torch.zeros(1, dtype=torch.long), first])] == game.observations[0]).all()


def test_joined_episodes_are_the_parts():
    _, short = maze_episodes(3, 1)
    _, longer = maze_episodes(5, 2)
    cut = short._replace(**{name: getattr(short, name)[:1] for name in ("rewards", "live")})
    cut = cut._replace(
        **{
            name: {seat: None if x is None else x[:1] for seat, x in getattr(short, name).items()}
            for name in ("observations", "actions", "log_probs", "memories")
        }
    )
    whole = join([cut, longer])
    assert whole.live.shape == (len(longer.live), 8)
    assert not whole.live[1:, :3].any()
    assert torch.equal(whole.returns[3:], longer.returns)
    assert torch.equal(whole.discounted(0.5)[3:], longer.discounted(0.5))
    steps = 0.5 ** torch.arange(len(longer.rewards))
    torch.testing.assert_close(longer.discounted(0.5), (longer.rewards * steps[:, None]).sum(0))


def test_rollouts_are_a_function_of_the_generator():
    first, second, other = (maze_episodes(20, seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first.rewards, second.rewards)
    assert not torch.equal(first.actions["guard"], other.actions["guard"])


def test_a_gated_policy_is_the_model_where_the_data_are_certain():
    torch.manual_seed(0)
    model, free = SeatPolicy(1, 2, 0, (4,), memory=3), SeatPolicy(1, 2, 0, (4,), memory=3)
    gated = GatedPolicy(model, free, lambda observations: (observations[..., 0] == 0).float())
    observations = torch.tensor([[[0.0], [1.0]]])
    law, memories = gated(observations)
    for column, policy in enumerate((model, free)):
        expected = policy(observations)[0].log_probs[0, column]
        for action in (0, 1):
            found = law.log_prob(torch.tensor([[action, action]]))[0, column]
            assert found.item() == pytest.approx(expected[action].item(), abs=1e-5)
    again, _ = gated(observations, None, memories)
    assert memories.shape == (2, 6)
    assert torch.isfinite(again.log_prob(torch.tensor([[0, 1]]))).all()


def test_the_stream_goes_on_where_it_was():
    stream = RolloutStream(1, "train", 4, 8)
    first = list(stream)
    again = RolloutStream(1, "train", 4, 8)
    again.load_state_dict({"done": 2})
    assert list(again) == first[2:]
    assert [part.number for part in stream] == [4, 5, 6, 7]
    ranks = [next(iter(RolloutStream(1, "train", 4, 8, world=2, rank=rank))) for rank in (0, 1)]
    assert ranks[0].seed != ranks[1].seed
    assert ranks[0].episodes == 4
    held = RolloutStream(1, "validation", 1, 8)
    assert list(held) == list(held)


def test_a_policy_needs_one_kind_of_action():
    with pytest.raises(ValueError, match="2 discrete actions and 3 real ones; exactly one must be 0"):
        SeatPolicy(1, 2, 3)
    assert Dilemma().n_actions == {"us": 3, "them": 2}
