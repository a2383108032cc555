"""A damaged, incomplete or interrupted twin folder: one sentence each, and never half a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import twinmerge
from tests.twinmerge import tiny
from tests.twinmerge.test_folder import make_twin
from twinmerge import CheckpointError
from twinmerge.artefact import whole_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twinmerge.save(make_twin("bert_frozen")[0], tmp_path_factory.mktemp("saved") / "twin")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


FILES = (
    "model.safetensors",
    "config.json",
    "twin.json",
    "router/router.safetensors",
    "heads/mood.safetensors",
    "experts/spam/adapter_model.safetensors",
    "experts/spam/adapter_config.json",
    "modeling_twin.py",
    "MANIFEST.json",
)
DAMAGE: dict[str, Callable[[Path], Any]] = {"flip": _flip, "truncate": _truncate, "delete": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_one_sentence(damage: str, name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    DAMAGE[damage](folder / name)
    with pytest.raises(CheckpointError) as caught:
        twinmerge.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    harmless = name in ("modeling_twin.py", "MANIFEST.json") or (damage == "flip" and name.endswith(".safetensors"))
    if not harmless and not (damage != "delete" and name.endswith(".json")):  # cut white space is still JSON
        with pytest.raises(CheckpointError) as caught:
            twinmerge.load(folder, check=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["extra.bin", "experts/spam/more.safetensors", "experts/odd/adapter_config.json", "heads/x"]
)
def test_an_added_file_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(CheckpointError, match="was added since"):
        twinmerge.load(folder)
    (folder / name).unlink()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")  # what download tools leave is none of the folder's
    twinmerge.load(folder)


@pytest.mark.parametrize(
    "part", ["experts/spam/adapter_model.safetensors", "router/router.safetensors", "heads/mood.safetensors"]
)
@pytest.mark.parametrize("change", ["remove", "add"])
def test_missing_and_unexpected_tensors_are_refused_unverified(
    part: str, change: str, saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    tensors = load_file(folder / part)
    for name in sorted(tensors) if change == "remove" else ["odd.weight"]:
        changed = {k: v for k, v in tensors.items() if k != name} | ({name: torch.ones(2)} if change == "add" else {})
        save_file(changed, folder / part)
        with pytest.raises(CheckpointError) as caught:
            twinmerge.load(folder, check=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["remove", "add"])
def test_the_shared_expert_must_be_complete(change: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    tensors = load_file(folder / "model.safetensors")
    if change == "remove":
        tensors.pop("pooler.dense.bias")
    else:
        tensors["odd.weight"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="pooler.dense.bias" if change == "remove" else "odd.weight"):
        twinmerge.load(folder, check=False)


def test_other_refusals(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    twin, _ = make_twin("bert_frozen")
    card = json.loads((folder / "twin.json").read_text())
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: twinmerge.load(tmp_path / "none"), "is not a folder"),
        (lambda: twinmerge.load(tmp_path), "has no MANIFEST.json"),
        (lambda: twinmerge.load(folder, mode="best"), "choose routed, shared or expert:<task> with a task of spam"),
        (lambda: twinmerge.load(folder, mode="expert:ham"), "mode 'expert:ham' is unknown"),
        (lambda: twinmerge.load(folder, mode="expert:../spam"), "is unknown"),
        (lambda: twinmerge.save(tiny.bert(), tmp_path / "x"), "a BertModel has no routing"),
        (lambda: twinmerge.save(twin, tmp_path / "x", texts={"../evil": ""}), "is not a plain file name"),
        (lambda: twinmerge.save(twin, tmp_path / "x", texts={"twin.json": ""}), "is not a plain file name"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(FileExistsError, match="exists already"):
        twinmerge.save(twin, folder)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 99}, "update it"),
        ({"tasks": ["../spam"]}, "no folder name"),
        ({"heads": {"../router/router": {}}}, "no folder name"),
    ]
    for change, message in changes:
        (folder / "twin.json").write_text(json.dumps(card | change))
        with pytest.raises(CheckpointError, match=message):
            twinmerge.load(folder, check=False)
    for name in ("a/b", "..", "a.b", "", "x" * 65):
        twin.tasks[0] = name
        with pytest.raises(ValueError, match="is not a folder name"):
            twinmerge.save(twin, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["twin"]


def test_a_failing_save_leaves_the_old_folder(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "twin")
    twin, _ = make_twin("bert_frozen")

    class Broken:
        def save_pretrained(self, where: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        twinmerge.save(twin, folder, tokenizer=Broken(), overwrite=True)
    twinmerge.load(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["twin"]


def test_whole_folder_cleans_up_after_the_dead(tmp_path: Path) -> None:
    target = tmp_path / "made"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    left = tmp_path / f".made.{dead.stdout.strip()}.part"
    left.mkdir()
    with whole_folder(target) as out:
        (out / "a").write_text("1")
    assert not left.exists()
    (tmp_path / ".made.old").mkdir()  # killed after the second rename: the next save must not stumble over it
    (tmp_path / ".made.old" / "a").write_text("0")
    with whole_folder(target, overwrite=True) as out:
        (out / "a").write_text("2")
    assert (target / "a").read_text() == "2"
    target.rename(tmp_path / ".made.old")  # killed between the two renames
    with pytest.raises(FileExistsError), whole_folder(target):
        pass
    assert (target / "a").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


WRITER = """
import os, sys
from pathlib import Path
import twinmerge
from tests.twinmerge.test_folder import make_twin
twin, _ = make_twin("bert_frozen")
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    version = 1000 * int(line)
    while True:
        version += 1
        twin.pooler.dense.bias.data.fill_(version)
        twinmerge.save(twin, sys.argv[1], overwrite=True)
        print(version, flush=True)
"""


def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """A real process saves again and again; whenever it is killed, what it last reported or began is there, whole."""
    target, root = tmp_path / "twin", Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(target)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as process:
        for turn in range(15):
            process.stdin.write(f"{turn}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            reported = int(process.stdout.readline())  # the first save of this turn is done: some folder is there
            time.sleep(0.004 * turn + 0.0017 * (turn % 5))
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline().strip()) != "gone":
                reported = int(line)
            found = twinmerge.load(target, mode="shared").pooler.dense.bias.detach()
            assert float(found[0]) in (reported, reported + 1)
            assert (found == found[0]).all()
        process.stdin.close()
    twinmerge.save(make_twin("bert_frozen")[0], target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["twin"]
