"""List every benchmark, the command that remakes it and whether its results are there: ``python -m benchmarks``.

README.md and the pages in docs/ quote figures from ``benchmarks/results/*.json`` only. A quoted number is followed,
with no space, by its source in an HTML comment, ``<!-- <file>.<figure>:<format> -->``::

    Factorising is 12.3x<!-- factorize.speedup_2048:.1f --> faster (at least
    11.8x<!-- factorize.speedup_2048.low:.1f -->), with 0.7%<!-- factorize.max_excess_residual:.1% --> more residual.

The format is Python's; a unit in letters may stand between the number and the comment; ``.low`` and ``.high`` name the
bounds of an interval. ``tests/test_figures.py`` compares every such number with the committed file.
"""

import ast
from pathlib import Path

from benchmarks.common import RESULTS


def main() -> None:
    """Print one block for each benchmark."""
    folder = Path(__file__).parent
    for script in sorted(folder.glob("*.py")):
        text = script.read_text(encoding="utf-8")
        if script.stem == "__main__" or '__name__ == "__main__"' not in text:  # what benchmarks share
            continue
        title = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        state = "present" if (RESULTS / f"{script.stem}.json").exists() else "missing"
        print(f"{script.stem}: {title}")
        print(f"  remake   python -m benchmarks.{script.stem}")
        print(f"  results  benchmarks/results/{script.stem}.json ({state})")


if __name__ == "__main__":
    main()
