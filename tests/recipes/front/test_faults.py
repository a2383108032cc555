"""Whatever is wrong with a folder, a number, a file or a module: one sentence, and no frame of ours."""

import json
import os
import pwd
import time

import numpy as np
import pytest

from distill.cache import TeacherCache
from distill.errors import DistillError
from recipes.data.wheels import cache_root
from recipes.errors import RunError
from rl.csp.dataset import load_data
from rl.csp.loading import load_game
from rl.hpo.simulators import load_simulator
from twinmerge.errors import CheckpointError
from twinmerge.headers import inspect_checkpoint, read_header, read_json
from twinmerge.patterns import check_patterns

TOY = "recipe: toy\n"


def told(done, code, *words):
    assert done.code == code, done.err
    assert all(word in done.err for word in words), done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made(front, tmp_path):
    (tmp_path / "runs").write_text("a file")
    told(front("r.yaml", r=TOY), 1, "runs/toy-toy", "give a folder that can be written with --out")
    told(front("r.yaml", "--out", "/proc/nowhere/run"), 1, "/proc/nowhere", "give a folder that can be written")


def test_a_full_disk_at_the_start(front, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told(front("r.yaml", "--out", "o", r=TOY), 1, "the disk is full: o/inputs.json; free some space")


def test_a_user_without_a_home(monkeypatch):
    for key in ("HOME", "GAPBRIDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    with pytest.raises(RunError, match="this user has no home folder for the cache; set GAPBRIDGE_CACHE to a folder"):
        cache_root()


def test_names_of_300_characters(front):
    long = "n" * 300
    told(front(f"{long}.yaml"), 1, "the name is too long for this file system; give a shorter one")
    told(front("r.yaml", "--out", long, r=TOY), 1, "the name is too long for this file system")
    told(front("r.yaml", f"path={long}"), 1, "the name is too long for this file system")
    told(front("r.yaml", f"name={long}"), 2, "name: expected 1 to 64 letters")


def test_out_is_a_link(front, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert front("r.yaml", "--out", "link", r=TOY).code == 0
    assert front("r.yaml", "--out", "link", "--force").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/result.json").is_file()
    (tmp_path / "dangling").symlink_to("nothing")
    told(front("r.yaml", "--out", "dangling", "--force"), 2, "--out dangling: this is a link to nothing; give a folder")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("digits", [20, 101, 4500])
def test_numbers_of_thousands_of_digits(front, digits):
    number = "9" * digits
    told(front("r.yaml", f"seed={number}", r=TOY), 2, "expected a number of at most 64 bits, got 9999")
    told(front("s.yaml", s=f"{TOY}seed: 0x{number}\n"), 2, "expected a number of at most 64 bits")
    told(front("r.yaml", f"tasks.{number}.name=a"), 2, "tasks: ")
    told(front("r.yaml", "seed=4294967296"), 2, "seed: expected a number >= 0 and <= 4294967295, got 4294967296")


def test_a_recipe_of_many_megabytes(front, tmp_path):
    (tmp_path / "big.yaml").write_bytes(b"#" * (2**24 + 1))
    told(front("big.yaml"), 2, "16777217 bytes are no recipe; at most 16777216 are read")


@pytest.mark.parametrize("text", ["class Simulator(:", "raise SystemExit(3)", "import nothing_of_this_name", "1/0"])
def test_a_module_that_cannot_be_imported(front, tmp_path, monkeypatch, text):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"simulator '{name}.Simulator' cannot be imported \("):
        load_simulator(f"{name}.Simulator")
    with pytest.raises(ValueError, match=rf"game '{name}.Simulator' cannot be imported \("):
        load_game(f"{name}.Simulator")
    refused = front("hpo_tiny.yaml", f"simulator={{class_path: {name}.Simulator}}", "--check")
    assert refused.code == 2
    assert "cannot be imported" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("cut", [1, 40, 200, 400])
def test_a_truncated_archive(tmp_path, cut):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, observation=np.random.default_rng(0).random((9, 4)), action=np.zeros(9, int))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"data.npz is no .npz file of plain arrays, or was cut off"):
        load_data(path)


def test_an_archive_of_absurd_size_is_not_unpacked(tmp_path, monkeypatch):
    from rl.csp import reading

    monkeypatch.setattr(reading, "LARGEST", 10**5)
    np.savez_compressed(tmp_path / "bomb.npz", observation=np.zeros((10**5, 10)))
    with pytest.raises(ValueError, match=r"bytes unpack to 80001\d\d"):
        load_data(tmp_path / "bomb.npz")
    head = (
        b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}".ljust(117) + b"\n"
    )
    import zipfile

    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("observation.npy", head)
    with pytest.raises(ValueError, match=r"header.npz is no .npz file"):
        load_data(tmp_path / "header.npz")


DEEP = b"[" * 200_000
ODD_HEADERS = {
    "deep": DEEP,
    "list": b"[1]",
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    "text": b'{"a": {"dtype": "F32", "shape": "1", "data_offsets": "04"}}',
    "null": b'{"a": null}',
    "digits": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
    "not utf-8": b'{"\xff": 1}',
}


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_odd_headers_of_safetensors(tmp_path, name):
    header = ODD_HEADERS[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"model.safetensors has a corrupted safetensors header"):
        read_header(file)


def test_deep_and_odd_json(tmp_path):
    for name in ("config.json", "MANIFEST.json"):
        (tmp_path / name).write_bytes(DEEP)
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON \(nested too deeply\)"):
        read_json(tmp_path / "config.json")
    with pytest.raises(DistillError, match=r"MANIFEST.json is damaged"):
        TeacherCache.open(tmp_path, None)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is no table"):
        inspect_checkpoint(tmp_path)
    for text in ('{"identity": 1}', '{"identity": {}, "form": {}, "shards": {}}', "[]"):
        (tmp_path / "MANIFEST.json").write_text(text)
        with pytest.raises(DistillError, match=r"MANIFEST.json is damaged|of something else"):
            TeacherCache.open(tmp_path, None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)+b", "(.*)*x", "(a{1,9}){1,9}", r"(a)(\1)+", ".*" * 6, "(", "a" * 2000]
)
@pytest.mark.parametrize("key", ["alpha_pattern", "rank_pattern", "target_modules"])
def test_a_pattern_that_could_be_matched_for_ever_is_refused_at_once(tmp_path, pattern, key):
    start = time.monotonic()
    config = {key: pattern if key == "target_modules" else {pattern: 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{key} has the pattern"):
        inspect_checkpoint(tmp_path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "pattern",
    [
        r"^encoder\.layer\.0\.attention\.self\.query",
        "q_proj",
        r".*\.(q_proj|v_proj)$",
        r"model\.layers\.[0-9]+\.self_attn\.(q|k|v)_proj",
        r"^(?!.*lm_head).*(q_proj|v_proj).*$",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)",
    ],
)
def test_patterns_that_people_write_are_taken(tmp_path, pattern):
    check_patterns(tmp_path, {"target_modules": pattern, "alpha_pattern": {pattern: 8}, "rank_pattern": {}})


def test_an_expert_whose_labels_are_null(tmp_path):
    from recipes.merge.experts import inspect_expert
    from tests.recipes import tiny

    tiny.save_base(tmp_path)
    (tmp_path / "head.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    for labels in (None, {"0": "a"}, "ab", 3):
        card = {"labels": labels, "pooling": "mean", "layer_norm": False}
        (tmp_path / "expert.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=r"expert.json cannot be read \(labels is .*, but it must be a list"):
            inspect_expert(tmp_path, None)
