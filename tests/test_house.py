"""What the house promises of itself: the counts of benchmarks.house, live and stored, against their bars."""

import json
import subprocess
import sys

import pytest

from benchmarks import house

STORED = json.loads((house.ROOT / "benchmarks/results/house.json").read_text(encoding="utf-8"))["figures"]


COUNT = """
import json, sys
from benchmarks import house

figures = house.figures_of(house.sources(), house.tables_of(house.sources()))
print(json.dumps({"figures": figures, "heavy": sorted({"torch", "lightning", "transformers"} & set(sys.modules))}))
"""


@pytest.fixture(scope="module")
def counted():
    """What a process of its own counts, and which heavy libraries it has imported for that."""
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", house.BARS)
def test_the_counts_keep_their_bars(counted, name):
    assert counted["figures"][name] <= house.BARS[name]
    assert STORED[name] <= house.BARS[name]


def test_every_block_of_the_docs_is_run(counted):
    assert counted["figures"]["docs_blocks_run"] == counted["figures"]["docs_blocks"] > 0
    assert STORED["docs_blocks_run"] == STORED["docs_blocks"] > 0


def test_counting_needs_no_torch(counted):
    assert counted["heavy"] == []


def test_circles_are_found(tmp_path):
    files = {
        "a.py": "import b\n",
        "b.py": "def f():\n    from c import g\n",
        "c.py": "import a\n",
        "d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import e\n",
        "e.py": "import d\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert house.circles({path.stem: path for path in tmp_path.glob("*.py")}) == [["a", "b", "c"]]
