"""A checkpoint of plain strings runs no code: its paths are followed only on request, and only to what they must be."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.csp.dataset import record_target, save_data
from rl.csp.module import CSPModule
from rl.envs.hybrid import HybridSimulator
from rl.envs.switched_lqr import switched_lqr
from rl.envs.vault_maze import VaultMaze, behaviour, true_guard
from rl.hpo.module import HPOModule
from rl.hpo.simulators import load_simulator
from rl.loading import find

PETTING = {"environment": "subprocess.getoutput", "ours": ["a"], "target": ["b"], "horizon": 1}


def checkpoint(path: Path, **hyper: Any) -> Path:
    torch.save(
        {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {},
            "loops": {},
            "hparams_name": "kwargs",
            "hyper_parameters": hyper,
        },
        path,
    )
    return path


@pytest.mark.parametrize("weights_only", [True, None])
@pytest.mark.parametrize("extra", [{}, {"_instantiator": "lightning.pytorch.cli.instantiate_module"}])
def test_a_hostile_game_runs_no_command(
    tmp_path: Path, weights_only: bool | None, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PYGAME_HIDE_SUPPORT_PROMPT", "SDL_AUDIODRIVER"):  # pettingzoo sets them when it is imported
        monkeypatch.setenv(variable, "dummy")
    hostile = {**PETTING, "arguments": {"cmd": f"touch {tmp_path / 'ran'}"}}
    path = checkpoint(
        tmp_path / "evil.ckpt", game="rl.envs.parallel.ParallelGame", data="x.npz", game_args=hostile, **extra
    )
    with pytest.raises(ValueError, match=r"names the game 'rl\.envs.*trust=True"):
        CSPModule.load_from_checkpoint(path, weights_only=weights_only)
    with pytest.raises(ValueError, match=r"names arguments of the game.*trust=True"):
        CSPModule.load_from_checkpoint(path, game="rl.envs.parallel.ParallelGame")
    with pytest.raises(ValueError, match="is neither called env"):  # even trusted, only environments are made
        CSPModule.load_from_checkpoint(path, trust=True)
    assert not (tmp_path / "ran").exists()


def test_a_hostile_simulator_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = checkpoint(tmp_path / "evil.ckpt", simulator="stranger.Simulator", hidden=[8])
    with pytest.raises(ValueError, match=r"names the simulator 'stranger\.Simulator'.*give simulator="):
        HPOModule.load_from_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="cannot be imported"):
        HPOModule.load_from_checkpoint(path, trust=True)
    assert (tmp_path / "ran").exists()


def test_what_the_user_names_is_followed(tmp_path: Path) -> None:
    path = "rl.envs.switched_lqr.switched_lqr"
    arguments = {"dimension": 2, "modes": 2}
    made = HPOModule(path, arguments, hidden=[8])
    file = checkpoint(tmp_path / "own.ckpt", **made.hparams)
    kept = torch.load(file, weights_only=True)
    kept["state_dict"] = made.state_dict()
    torch.save(kept, file)
    for options in ({"trust": True}, {"simulator": path}, {"simulator": switched_lqr(2, 2)}):
        again = HPOModule.load_from_checkpoint(file, **options)
        assert torch.equal(again.policy.log_std, made.policy.log_std)
    with pytest.raises(ValueError, match="names the simulator"):  # trust ends with the call
        HPOModule.load_from_checkpoint(file)
    assert HPOModule(path, arguments, hidden=[8]).hparams["simulator"] == path  # and so does distrust


def test_the_game_that_the_user_names_is_followed(tmp_path: Path) -> None:
    maze = VaultMaze()
    recorded = record_target(maze, maze.policy(behaviour()), maze.policy(true_guard()), 40, torch.Generator())
    save_data(tmp_path / "guard.npz", recorded)
    made = CSPModule("rl.envs.vault_maze.VaultMaze", str(tmp_path / "guard.npz"), hidden=[8])
    file = checkpoint(tmp_path / "own.ckpt", **made.hparams)
    kept = torch.load(file, weights_only=True)
    kept["state_dict"] = made.state_dict()
    torch.save(kept, file)
    again = CSPModule.load_from_checkpoint(file, game="rl.envs.vault_maze.VaultMaze")
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())


def badly_annotated() -> "Nothing":  # type: ignore[name-defined]  # noqa: F821
    raise AssertionError("called")


@pytest.mark.parametrize("path", ["subprocess.getoutput", f"{__name__}.badly_annotated", "os.environ", "builtins.dict"])
def test_a_path_to_what_makes_no_simulator_is_not_called(path: str) -> None:
    with pytest.raises(ValueError, match=r"is neither a subclass of rl\.envs\.HybridSimulator nor annotated"):
        load_simulator(path, {"cmd": "exit 1"})
    assert HybridSimulator is find("simulator", "rl.envs.hybrid.HybridSimulator")


@pytest.mark.parametrize("text", ["def broken(:", "raise RuntimeError('no licence')", "import nothing_at_all"])
def test_a_module_that_breaks_while_it_is_imported_gives_a_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"broken{abs(hash(text))}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"simulator 'broken\d+\.make' cannot be imported \(.+\); give the path"):
        load_simulator(f"broken{abs(hash(text))}.make")
