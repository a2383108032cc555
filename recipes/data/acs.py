"""The American Community Survey's public coverage task, one state a domain, through the optional package folktables."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from recipes.data.wheels import cache_root
from recipes.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ACS_NEEDS", "acs_available", "read_acs"]

ACS_NEEDS = "the package folktables and, on the first run, a connection to www2.census.gov (about 60 MB a state)"
YEAR = 2018
# Numbers; all other columns are categories.
NUMBERS = ("AGEP", "PINCP", "SCHL")


def acs_available() -> bool:
    """Whether folktables is installed."""
    return importlib.util.find_spec("folktables") is not None


def read_acs(states: tuple[str, ...]) -> pd.DataFrame:
    """Persons under 65 with an income of at most 30 000 dollars in 2018, and whether they have public health coverage.

    Args:
        states: Their postal codes, such as NE and LA.

    Returns:
        A frame with the features of the task, `state`, `white` (1 or 0, in the place of RAC1P) and the label `PUBCOV`.

    Raises:
        RunError: When folktables is not installed or the data cannot be had.
    """
    if not acs_available():
        raise RunError(
            f"data.kind acs needs {ACS_NEEDS}; run 'pip install folktables', or use kind gss, csv or parquet"
        )
    import folktables
    import pandas as pd

    frames = []
    try:
        root = cache_root() / "acs"
        source = folktables.ACSDataSource(str(YEAR), "1-Year", "person", root_dir=str(root))
        for state in states:
            rows = source.get_data(states=[state], download=True)
            features, label, _ = folktables.ACSPublicCoverage.df_to_pandas(rows)
            frames.append(features.assign(state=state, PUBCOV=label.to_numpy()[:, 0].astype(int)))
    except Exception as fault:  # the package raises what its transport and its parsing raise, bare assertions included
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]
        raise RunError(f"the ACS data of {', '.join(states)} cannot be had ({reason}); it needs {ACS_NEEDS}") from fault
    frame = pd.concat(frames, ignore_index=True)
    frame["white"] = (frame.pop("RAC1P") == 1).astype(int)
    categories = [name for name in frame if name not in {*NUMBERS, "state", "white", "PUBCOV", "ST"}]
    frame[categories] = frame[categories].fillna(-1).astype(int).astype(str)
    return frame.drop(columns="ST")
