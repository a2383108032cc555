"""The survey as files."""

import pandas as pd
import pytest

from tests.recipes.explain.survey import people


@pytest.fixture
def tables(tmp_path):
    """Files of both domains, apart and together."""
    here, there = people(300, 0), people(300, 1, shift=1.5)
    here.to_csv(tmp_path / "here.csv", index=False)
    there.to_parquet(tmp_path / "there.parquet")
    there.to_csv(tmp_path / "there.csv", index=False)
    pd.concat([here, there]).to_csv(tmp_path / "both.csv", index=False)
    return tmp_path
