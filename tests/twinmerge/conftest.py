"""What several tests of twins need."""

import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Room for the code of folders, forgotten afterwards."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for key in [k for k in sys.modules if k.startswith("transformers_modules")]:
        del sys.modules[key]
