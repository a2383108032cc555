"""Solar cells by their electroluminescence: real images of 44 modules, with the type of each cell and its state."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CELLS", "read_cells"]

CELLS = ("functional mono", "defective mono", "functional poly", "defective poly")
_STATES = {0.0: "functional", 1.0: "defective"}


def read_cells(labels: Path) -> list[tuple[str, str]]:
    """The cells whose state is certain, in the order of the file.

    A cell is 300 x 300 pixels of one channel, from a module of monocrystalline or polycrystalline silicon. Experts say
    how likely it is defective: 0, 1/3, 2/3 or 1. Those in between are left out, as nobody is sure of them.

    Args:
        labels: ``labels.csv`` of the `elpv-dataset`, with the folder of the images beside it; a line is a path, a
            probability and a type, between spaces.

    Returns:
        Path of the image and its class, one of `CELLS`.

    References:
        Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
        Solar Energy 185, 2019.
    """
    rows = [line.split() for line in labels.read_text(encoding="utf-8").splitlines()]
    return [
        (str(labels.parent / path), f"{_STATES[float(likely)]} {kind}")
        for path, likely, kind in rows
        if float(likely) in _STATES
    ]
