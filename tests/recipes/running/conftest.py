"""The front as sweeps and searches need it."""

import pytest

from recipes.running import sweep
from tests.recipes.conftest import ROOT


@pytest.fixture
def swept(front, monkeypatch):
    """The front, whose sweeps start the toy recipe in processes of their own."""
    monkeypatch.setattr(sweep, "RUN", ("-m", "tests.recipes.toy_run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return front
