"""Colour and shape by which a reader tells what a figure shows apart."""

from __future__ import annotations

SHAPES = "os^vD<>P*X"


def mark(number: int) -> tuple[tuple[float, float, float, float], str]:
    """Colour and marker of the series of this number; the first twenty have colours of their own.

    >>> mark(0)[1], mark(11)[1]
    ('o', 's')

    Args:
        number: From 0.

    Returns:
        Red, green, blue and opacity, all in [0, 1], and a marker of matplotlib.
    """
    from matplotlib import colormaps

    # The strong colours first, then the pale ones beside them.
    return colormaps["tab20"](2 * number % 20 + number // 10 % 2), SHAPES[number % len(SHAPES)]
