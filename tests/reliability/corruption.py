"""Damage to every kind of file that is kept and read again: found and told in a sentence, or without effect.

The n-th damage of an artefact is a function of its name and n. It counts as found when the reader refuses in one
sentence, or says that it makes the thing anew and does; as harmless when what is read is equal to the bit.
"""

import copy
import json
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.recipes.data.conftest import offer_wheel
from tests.reliability.compare import differences
from tests.reliability.mutations import Late, within

KINDS = ("flip", "flip", "truncate", "remove", "add", "swap", "zero", "append")
LONG = 120.0  # seconds that one case may compute


@dataclass(frozen=True)
class Artefact:
    """Something that is written and read again.

    Attributes:
        make: Writes it into a folder that exists.
        read: Returns what a user gets of it, as tensors, numbers and text.
        kinds: Of damage. A user's own table has no sums, so that another number in it cannot be told from its own.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    kinds: tuple[str, ...] = KINDS


class Refused(Exception):  # noqa: N818 (it is an answer)
    """The reader's own way of saying that it does not take the thing."""


def damage(folder: Path, kind: str, draw: random.Random) -> str:
    """Damage one file of a folder and say which, and how."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.endswith(".lock"))
    file = draw.choice(files)
    name, content = file.relative_to(folder).as_posix(), bytearray(file.read_bytes())
    if kind == "remove":
        file.unlink()
    elif kind == "add":
        name = f"{file.relative_to(folder).parent.as_posix()}/more{file.suffix}"
        (folder / name).write_bytes(content[::-1])
    elif kind == "swap":
        others = [f for f in files if f.suffix == file.suffix and f.read_bytes() != bytes(content)] or [file]
        other = draw.choice(others)
        file.write_bytes(other.read_bytes())
        other.write_bytes(bytes(content))
        name = f"{name} and {other.relative_to(folder).as_posix()}"
    elif kind == "truncate":
        file.write_bytes(content[: draw.randrange(len(content) or 1)])
    elif kind == "append":
        file.write_bytes(bytes(content) + draw.randbytes(draw.choice((1, 64, 4096))))
    else:
        at = draw.randrange(len(content) or 1)
        if kind == "zero":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        elif content:
            content[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(content))
    return f"{kind} {name}"


def corrupt(name: str, numbers: range, ground: Path) -> list[dict[str, str]]:
    """Damage an artefact many times, a fresh copy each.

    Args:
        name: Of `ARTEFACTS`.
        numbers: Which damages.
        ground: Folder for the artefact, which is made once.

    Returns:
        A row for each: `case`, `what`, `outcome` (refused, harmless, undetected or raw) and `said`.
    """
    artefact, whole = artefacts()[name], ground / name
    if not (whole / "ready").is_file():
        shutil.rmtree(whole, ignore_errors=True)
        (whole / "it").mkdir(parents=True)
        artefact.make(whole / "it")
        (whole / "ready").touch()
    expected = artefact.read(_copied(whole / "it"))
    rows = []
    for number in numbers:
        draw = random.Random(f"{name} {number}")
        folder = _copied(whole / "it")
        what = damage(folder, draw.choice(artefact.kinds), draw)
        outcome, said = _outcome(artefact, folder, expected)
        rows.append({"case": f"{name}-{number:03d}", "what": what, "outcome": outcome, "said": said})
        shutil.rmtree(folder.parent)
    return rows


def _copied(whole: Path) -> Path:
    return Path(shutil.copytree(whole, Path(tempfile.mkdtemp(prefix="damaged-")) / "it"))


def _outcome(artefact: Artefact, folder: Path, expected: Any) -> tuple[str, str]:
    from distill.errors import DistillError
    from explain.errors import ExplainError
    from recipes.errors import RecipeError, RunError
    from rl.errors import SimulatorError
    from twinmerge.errors import CheckpointError

    ours = (Refused, DistillError, ExplainError, RecipeError, RunError, SimulatorError, CheckpointError)
    try:
        with within(LONG):
            found = artefact.read(folder)
    except ours as error:
        return ("refused" if _is_sentence(str(error)) else "raw"), f"{type(error).__name__}: {error}"[:400]
    except (ValueError, FileNotFoundError) as error:  # the wings' word for a wrong argument, when they raise it
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = last.filename.startswith(str(Path(__file__).parents[2])) and _is_sentence(str(error))
        return ("refused" if told else "raw"), f"{type(error).__name__}: {error} at {last}"[:400]
    except Late:
        return "raw", f"at work for {LONG:.0f} s"
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"[:400]
    unlike = differences(expected, found)
    return ("undetected", unlike[0][:400]) if unlike else ("harmless", "")


def _is_sentence(text: str) -> bool:
    return "\n" not in text and "Traceback" not in text and " " in text.strip()


# ------------------------------------------------------------------ what is damaged


def artefacts() -> dict[str, Artefact]:
    """Every kind, by name."""
    return {
        "twin": Artefact(_make_twin, _read_twin),
        "twin-shared": Artefact(_make_twin, lambda folder: _read_twin(folder, "shared")),
        "teacher-cache": Artefact(_make_cache, _read_cache),
        "teacher-cache-hidden": Artefact(lambda folder: _make_cache(folder, hidden=True), _read_cache),
        "policy-file": Artefact(_make_policy, _read_policy),
        "hpo-checkpoint": Artefact(lambda folder: _make_module(folder, "hpo"), lambda f: _read_module(f, "hpo")),
        "csp-checkpoint": Artefact(lambda folder: _make_module(folder, "csp"), lambda f: _read_module(f, "csp")),
        "target-data": Artefact(_make_data, _read_data),
        "training-checkpoint": Artefact(lambda folder: _make_module(folder, "hpo"), _read_training),
        "wheel": Artefact(_make_wheel, _read_wheel),
        "explain-table": Artefact(_make_table, _read_table, ("truncate", "remove", "append")),
    }


def _make_twin(folder: Path) -> None:
    import twinmerge
    from tests.twinmerge.test_folder import make_twin

    twinmerge.save(make_twin("bert_frozen")[0], folder, overwrite=True)


def _read_twin(folder: Path, mode: str = "routed") -> Any:
    import twinmerge
    from tests.twinmerge import tiny

    model = twinmerge.load(folder, mode=mode)
    with torch.no_grad():
        return model(**tiny.text())[0]


def _make_cache(folder: Path, hidden: bool = False) -> None:
    from distill.cache import TeacherCache, encode
    from distill.form import Form
    from distill.functional.chunked import LanguageHead

    head = LanguageHead(torch.randn(9, 4, generator=torch.Generator().manual_seed(2))) if hidden else None
    form = Form("hidden" if hidden else "logits")
    cache = TeacherCache.create(folder, _identity(), form, views=2, shard=8, head=head)
    generator = torch.Generator().manual_seed(1)
    for shard in cache.missing():
        rows = torch.randn(shard.stop - shard.start, 4 if hidden else 9, generator=generator)
        pixels = torch.arange(shard.start, shard.stop)
        cache.write(shard, {**encode(form, rows, torch.zeros(len(rows))), "pixels": pixels})
    cache.finish()


def _identity() -> Any:
    from distill.cache import Identity

    return Identity("toy", "w", "float32", 8, (0.5,), (0.5,), "a", "d", 20, 3)


def _read_cache(folder: Path) -> Any:
    from distill.cache import TeacherCache

    cache = TeacherCache.open(folder, _identity())
    return [cache.logits(view, range(20)) for view in range(2)]


def _make_policy(folder: Path) -> None:
    from rl.envs.newsvendor import Newsvendor
    from rl.hpo.policies import HybridPolicy
    from rl.hpo.policy_file import save_policy

    torch.manual_seed(0)
    policy = HybridPolicy(1, 2, 1, [8])
    policy.bind(Newsvendor())
    save_policy(policy, folder / "policy.safetensors")


def _read_policy(folder: Path) -> Any:
    from rl.hpo.policy_file import load_policy

    policy = load_policy(folder / "policy.safetensors")
    acts = [policy.act([place]) for place in (-1.0, 0.3, 2.0)]
    return [[int(act.mode), torch.as_tensor(act.parameters)] for act in acts]


def _make_module(folder: Path, kind: str) -> None:
    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    module, data = _module(kind)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", devices=1, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / "it.ckpt")


def _module(kind: str) -> tuple[Any, Any]:
    if kind == "hpo":
        from rl.hpo.data import SeedDataModule
        from rl.hpo.module import HPOModule

        module: Any = HPOModule("rl.envs.newsvendor.Newsvendor", {}, hidden=[4], seed=0)
        sizes = {"batch_size": 4, "updates_per_epoch": 2, "group_size": 4}
        return module, SeedDataModule(**sizes, validation_episodes=4, test_episodes=4, seed=0)
    from rl.csp.data import RolloutDataModule
    from rl.csp.module import CSPModule

    game, pairs = _pairs()
    return CSPModule(game, pairs, hidden=[4], epochs=1, seed=0), RolloutDataModule(2, 4, validation_episodes=4, seed=0)


def _pairs() -> tuple[Any, Any]:
    from recipes.csp.games import build

    scenario = build("vault_maze", "", {})
    data = _recorded(scenario)
    return scenario.game, data.pairs()


def _recorded(scenario: Any) -> Any:
    from rl.csp.dataset import record_target

    generator = torch.Generator().manual_seed(0)
    return record_target(scenario.recorded, scenario.ours, scenario.target, 5, generator)


def _read_module(folder: Path, kind: str) -> Any:
    if kind == "hpo":
        from rl.hpo.module import HPOModule

        options = {"simulator": "rl.envs.newsvendor.Newsvendor", "simulator_args": {}}
        module: Any = HPOModule.load_from_checkpoint(folder / "it.ckpt", **options)
    else:
        from rl.csp.module import CSPModule

        game, pairs = _pairs()
        module = CSPModule.load_from_checkpoint(folder / "it.ckpt", game=game, data=pairs)
    return copy.deepcopy(module.state_dict())


def _read_training(folder: Path) -> Any:
    from recipes.running.resume import newest_valid_checkpoint

    told: list[str] = []
    found = newest_valid_checkpoint(folder, told.append)
    if found is None:
        raise Refused(told[0] if told else "there is no checkpoint")
    content = torch.load(found, map_location="cpu", weights_only=True)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")}


def _make_data(folder: Path) -> None:
    from recipes.csp.games import build
    from rl.csp.dataset import save_data

    save_data(folder / "data.npz", _recorded(build("vault_maze", "", {})))


def _read_data(folder: Path) -> Any:
    from recipes.csp.games import build
    from rl.csp.loading import load_pairs

    pairs = load_pairs(str(folder / "data.npz"), build("vault_maze", "", {}).game)
    return [value for value in pairs if isinstance(value, torch.Tensor)]


def _make_wheel(folder: Path) -> None:
    _read_wheel(folder)


def _read_wheel(folder: Path) -> Any:
    from tests.reliability import programs

    index = folder.parent.parent / "reliability-index"
    if not index.is_dir():
        offer_wheel(index, programs.FILES)
    with mock.patch.dict(os.environ, {"GAPBRIDGE_CACHE": str(folder / "cache")}):
        if code := programs.fetch([str(index)]):
            raise Refused(f"the wheel is not fetched: code {code}")
    return {name: (folder / "cache" / "toy-1.0" / name).read_bytes().hex() for name in programs.FILES}


def _make_table(folder: Path) -> None:
    import pandas as pd

    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"age": draw.integers(20, 60, 300), "loss": draw.random(300), "half": np.arange(300) % 2})
    frame.to_parquet(folder / "table.parquet")


def _read_table(folder: Path) -> Any:
    from recipes.explain.domains import DomainData, load_domains

    data = DomainData("parquet", str(folder / "table.parquet"), column="half", source=0, target=1)
    return [frame.to_dict("list") for frame in load_domains(data, print)]


def main(words: list[str]) -> int:
    """Damage an artefact in a process of its own; words: its name, first number, how many, ground, result file."""
    rows = corrupt(words[0], range(int(words[1]), int(words[1]) + int(words[2])), Path(words[3]))
    Path(words[4]).write_text(json.dumps(rows), encoding="utf-8")
    return 0
