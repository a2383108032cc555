"""Policies leave the training: they act, go to a file and back, to torch.export and ONNX, and into environments."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from rl.csp import (
    CategoricalLaw,
    CSPModule,
    Player,
    ScriptedPolicy,
    SeatPolicy,
    TablePolicy,
    decide,
    export_policy,
    load_policy,
    play,
    record_target,
    save_policy,
)
from rl.csp.acting import Seat
from rl.csp.contract import check_fixed
from rl.csp.opponents import random_policy
from rl.csp.worst_case import value_of
from rl.envs import GameAsParallelEnv, VaultMaze
from rl.envs.markov_game import BatchedGame
from rl.envs.vault_maze import behaviour, true_guard
from rl.programs import write_program
from tests.rl.csp.games import trainer


class Masked(VaultMaze):
    """The maze with an action of ours forbidden in the left corridor, whose node is the second."""

    def action_mask(self, state: Any) -> dict[str, torch.Tensor]:
        legal = torch.ones(len(state["node"]), 1, 3, dtype=torch.bool)
        legal[state["node"] == 1, :, 1] = False
        return {"agent": legal}


class Push(BatchedGame):
    """Two steps; we push by two numbers, the target by one, and are paid where we end."""

    seats, players = ("us", "them"), {"us": 2, "them": 1}
    observation_dim, n_actions, action_dim = {"us": 3, "them": 3}, {"us": 0, "them": 0}, {"us": 2, "them": 1}
    horizon, discount = 2, 1.0

    def reset(self, batch: int, generator: torch.Generator) -> Any:
        place = torch.randn(batch, 3, generator=generator)
        return {"place": place, "t": torch.zeros(batch), "done": torch.zeros(batch, dtype=torch.bool)}

    def observe(self, state: Any) -> Any:
        return {"us": state["place"][:, None].expand(-1, 2, -1), "them": state["place"][:, None]}

    def step(self, state: Any, actions: Any, generator: torch.Generator) -> Any:
        move = actions["us"].mean((1, 2)) - actions["them"][:, 0, 0]
        t, live = state["t"] + 1, ~state["done"]
        following = {"place": state["place"] + move[:, None] * live[:, None], "t": t, "done": t >= 2}
        return following, (state["place"][:, 0] * move).masked_fill(~live, 0), t >= 2


def bold(game: BatchedGame, seat: str, **options: Any) -> SeatPolicy:
    """A policy whose laws are far from even."""
    torch.manual_seed(0)
    policy = SeatPolicy.of(game, seat, hidden=[8], **options)
    with torch.no_grad():
        policy.head.weight.mul_(200)
    return policy


CASES = {
    "masked, with memory": (Masked("grid"), "agent", {"memory": 4, "normalise": True}),
    "real": (Push(), "us", {}),
    "the target's seat": (VaultMaze(), "guard", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_plays_as_the_policy_to_the_last_episode(case: str, tmp_path: Path) -> None:
    game, seat, options = CASES[case]
    policy = bold(game, seat, **options).train()
    save_policy(policy, tmp_path / "policy.safetensors", game, seat)
    assert all(part.training for part in policy.modules())  # saving changes nothing of how it trains
    saved = load_policy(tmp_path / "policy.safetensors")
    assert saved.seat == Seat.of(game, seat)
    check_fixed(saved, game, seat)
    other = random_policy(game, game.seats[1 - game.seats.index(seat)])
    sides = [(one, other) if seat == game.seats[0] else (other, one) for one in (policy, saved)]
    first, second = (play(game, pair, 12, torch.Generator().manual_seed(3)) for pair in sides)
    assert torch.equal(first.live, second.live)
    torch.testing.assert_close(first.rewards, second.rewards)
    torch.testing.assert_close(first.actions[seat], second.actions[seat], rtol=1e-3, atol=1e-3)


def test_a_file_loads_without_game_module_and_lightning(tmp_path: Path) -> None:
    policy = bold(VaultMaze(), "agent")
    save_policy(policy, tmp_path / "policy.safetensors", VaultMaze())
    program = (
        "import sys; from rl.csp.policy_file import load_policy; "
        f"print(load_policy({str(tmp_path / 'policy.safetensors')!r}).act([1, 0, 0, 0, 0, 0, 0], "
        "deterministic=True).action.item()); assert not {'rl.envs.vault_maze', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    law, _ = policy(torch.eye(7)[:1, None, None])
    assert int(done.stdout) == int(law.log_probs.argmax())
    with pytest.raises(ValueError, match="the policy is for a seat of"):
        Player(load_policy(tmp_path / "policy.safetensors"), GameAsParallelEnv(VaultMaze()), "guard_0")
    whole = (tmp_path / "policy.safetensors").read_bytes()
    (tmp_path / "policy.safetensors").write_bytes(whole[:-3] + b"xyz")
    with pytest.raises(ValueError, match=r"copy it again"):
        load_policy(tmp_path / "policy.safetensors")
    write_program(tmp_path / "other.safetensors", {"format": "gapbridge-policy-3"}, {})
    with pytest.raises(ValueError, match="holds no policy of format gapbridge-seat-policy"):
        load_policy(tmp_path / "other.safetensors")


def test_act_draws_from_the_law_and_asks_for_masks() -> None:
    game = Masked()
    policy = bold(game, "agent")
    seat = Seat.of(game)
    assert seat == Seat("agent", 1, 7, 3, 0, masked=True)
    seen, mask = torch.eye(7)[1], [True, False, True]
    law, _ = policy(seen[None, None, None], torch.tensor(mask)[None, None, None])
    drawn = decide(
        policy, seat, seen.expand(20_000, 7), [mask] * 20_000, generator=torch.Generator().manual_seed(0)
    ).action
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, law.log_probs.exp()[0, 0, 0], atol=0.015, rtol=0)
    assert shares[1] == 0
    assert int(decide(policy, seat, seen, mask, deterministic=True).action) == int(law.log_probs.argmax())
    for arguments, message in (
        ((seen,), "no mask is given"),
        ((seen, [False] * 3), "allow an action in every row"),
        ((seen, [True] * 2), r"must be \(3,\)"),
        ((seen[:6], mask), r"has shape \(6,\), but agent sees 7"),
        ((seen * float("nan"), mask), "not finite"),
        ((seen, mask, torch.zeros(2)), r"memory has shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decide(policy, seat, *arguments)


def test_memory_goes_from_step_to_step() -> None:
    game = VaultMaze("grid")
    policy = bold(game, "agent", memory=3)
    seat, width = Seat.of(game), game.observation_dim["agent"]
    seen = torch.randn(5, 2, width)
    laws, last = policy(seen[:, :, None])
    memory = None
    for step in range(5):
        decision = decide(policy, seat, seen[step], memory=memory, deterministic=True)
        memory = decision.memory
        assert torch.equal(decision.action, laws.log_probs[step, :, 0].argmax(-1))
    torch.testing.assert_close(memory, last[:, 0])


def test_real_actions_are_clipped_as_the_game_clips_them() -> None:
    policy, seat = bold(Push(), "us"), Seat.of(Push())
    for shape in ((50, 3), (25, 2, 3), (2, 3), (3,)):
        found = decide(policy, seat, torch.randn(shape)).action
        assert found.abs().max() <= 1
        assert found.shape == (*shape[:-1], 2)


def _module() -> CSPModule:
    maze = VaultMaze()
    generator = torch.Generator().manual_seed(0)
    data = record_target(maze, maze.policy(behaviour()), maze.policy(true_guard()), 30, generator)
    return CSPModule(maze, data, hidden=[8])


@pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")
def test_a_module_acts_and_predicts() -> None:
    module = _module()
    seen = torch.eye(7)
    found: Any = trainer().predict(module, DataLoader(seen, batch_size=4))
    assert [len(one.action) for one in found] == [4, 3]
    assert module.act(seen, deterministic=True).action.shape == (7,)


def test_a_table_plays_its_plan_and_is_saved(tmp_path: Path) -> None:
    maze = VaultMaze()
    plan = np.eye(3)[[0, 0, 0, 2, 0, 0, 0]] * 0.9 + 0.1 / 3
    table = TablePolicy(maze.observations, plan)
    save_policy(table, tmp_path / "plan.safetensors", maze)
    exact = maze.exact.value(plan, true_guard())
    for policy in (table, load_policy(tmp_path / "plan.safetensors")):
        found = value_of(maze, policy, ScriptedPolicy(maze.policy(true_guard())), 4000, 0)
        assert found.low < exact < found.high
    with pytest.raises(ValueError, match="no distribution"):
        TablePolicy(maze.observations, 2 * plan)
    with pytest.raises(ValueError, match="one row of finite probabilities"):
        TablePolicy(maze.observations, plan[:3])


class Strange(nn.Module):
    """A policy whose law is none that a file holds."""

    memory = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, observations: Any, masks: Any = None, memories: Any = None) -> Any:
        class Law(CategoricalLaw):
            pass

        if observations.sum() > 5:
            return CategoricalLaw(self.layer(observations), masks), None
        return CategoricalLaw(2 * self.layer(observations), masks), None


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    maze = VaultMaze()
    with pytest.raises(ValueError, match="plays by a _ScriptedLaw, which a file cannot hold"):
        save_policy(ScriptedPolicy(maze.policy(true_guard())), tmp_path / "p.safetensors", maze)
    with pytest.raises(ValueError, match=r"cannot be traced|decide otherwise"):
        save_policy(Strange(), tmp_path / "p.safetensors", maze)
    with pytest.raises(ValueError, match="has no seat 'thief'"):
        save_policy(bold(maze, "agent"), tmp_path / "p.safetensors", maze, "thief")
    assert not (tmp_path / "p.safetensors").exists()


def test_a_program_of_torch_export_gives_the_law() -> None:
    _check_program("masked, with memory", lambda program, inputs: program.module()(*inputs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["masked, with memory", "real"])
def test_onnx_gives_the_law(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    def run(program: Any, inputs: Any) -> Any:
        torch.onnx.export(program, dynamo=True).save(str(tmp_path / "policy.onnx"))
        session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
        named = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, named)]

    _check_program(case, run)


def _check_program(case: str, run: Any) -> None:
    game, seat, options = CASES[case]
    policy, masked = bold(game, seat, **options), Seat.of(game, seat).masked
    inputs = [torch.randn(5, game.observation_dim[seat])]
    if masked:
        inputs.append(torch.rand(5, game.n_actions[seat]) < 0.7)
        inputs[-1][:, 0] = True
    memory = torch.rand(5, options["memory"]) if "memory" in options else None
    inputs += [] if memory is None else [memory]
    found = run(export_policy(policy, game, seat), inputs)
    law, after = policy(
        inputs[0][None, :, None],
        inputs[1][None, :, None] if masked else None,
        None if memory is None else memory[:, None],
    )
    torch.testing.assert_close(found[0], law.log_probs[0, :, 0] if game.n_actions[seat] else law.mean[0, :, 0])
    if memory is not None:
        torch.testing.assert_close(found[-1], after[:, 0])


def test_a_player_acts_in_an_environment() -> None:
    env = GameAsParallelEnv(Masked())
    player = Player(bold(Masked(), "agent"), env, "agent_0")
    seen, _ = env.reset(seed=0)
    while env.agents:
        action, _ = player.predict(seen["agent_0"], deterministic=True)
        assert env.action_space("agent_0").contains(action)
        seen, *_ = env.step({"agent_0": action, "guard_0": 0})
    with pytest.raises(ValueError, match="without action_mask"):
        player.predict(np.zeros(7))
    with pytest.raises(ValueError, match="no agent 'thief'"):
        Player(bold(VaultMaze(), "agent"), env, "thief")
