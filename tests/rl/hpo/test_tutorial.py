"""The tutorial of docs/hpo.md runs as it stands, block after block, and its policy beats its rule."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "hpo.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)

pytestmark = [pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")]


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile("\n".join(BLOCKS), str(PAGE), "exec"), names)  # noqa: S102 - our own page
    assert "no jump within a mode" in capsys.readouterr().out
    assert names["cost"] < names["rule"]
    assert (tmp_path / "room.safetensors").stat().st_size < 50_000
