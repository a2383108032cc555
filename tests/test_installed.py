"""What installed packages register is read once, and again when one is installed or removed."""

import shutil
from importlib import metadata

from gapbridge.installed import entry_points

GROUP = "gapbridge.tests"


def install(place, name, value):
    info = place / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {value}\n")
    return info


def found():
    return [(point.name, point.value, point.dist.name) for point in entry_points(GROUP)]


def test_packages_are_read_again_only_when_one_comes_or_goes(tmp_path, monkeypatch):
    reads, read = [], metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **given: reads.append(given) or read(**given))
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert found() == []
    second = install(tmp_path / "site", "b", "beta:B")
    install(tmp_path / "site", "a", "alpha:A")
    assert found() == [("a", "alpha:A", "a"), ("b", "beta:B", "b")]
    count = len(reads)
    assert found() == found()
    assert len(reads) == count
    shutil.rmtree(second)
    assert found() == [("a", "alpha:A", "a")]
    install(tmp_path / "other", "c", "gamma:C")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert [point[0] for point in found()] == ["a", "c"]
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr("sys.path", [""])
    assert [point[0] for point in found()] == ["c"]
    monkeypatch.chdir(tmp_path / "site")
    assert [point[0] for point in found()] == ["a"]
