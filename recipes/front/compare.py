"""Whether a run may go on with this recipe: equal to the one it was started with, but for a short list of keys."""

from pathlib import Path
from typing import Any

from recipes.errors import RecipeError
from recipes.front import table
from recipes.front.parse import Parsed, parse
from recipes.front.schema import show

MAY_DIFFER = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
_ABSENT = object()


def differences(before: Any, after: Any, path: str = "") -> dict[str, tuple[object, object]]:
    """Return the keys whose values differ, dotted, with both values.

    >>> differences({"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 2]})
    {'a.b': (1, 2)}
    """
    if type(before) is type(after) and isinstance(before, dict | list):
        keys = (
            list(dict.fromkeys([*before, *after])) if isinstance(before, dict) else range(max(len(before), len(after)))
        )
        found: dict[str, tuple[object, object]] = {}
        for key in keys:
            inner = f"{path}.{key}" if path else str(key)
            found |= differences(_get(before, key), _get(after, key), inner)
        return found
    return {} if before == after and type(before) is type(after) else {path: (before, after)}


def _get(values: Any, key: Any) -> Any:
    if isinstance(values, dict):
        return values.get(key, _ABSENT)
    return values[key] if key < len(values) else _ABSENT


def check_resume(folder: Path, now: Parsed) -> dict[str, tuple[object, object]]:
    """Compare the recipe of a run folder with the present one.

    Args:
        folder: The run folder.
        now: The present recipe.

    Returns:
        The differences that are accepted, by key.

    Raises:
        RecipeError: When there is no recipe in the folder, or something else differs; every difference is a line.
    """
    stored = folder / "recipe.yaml"
    if not stored.is_file():
        raise RecipeError(f"--resume: {folder} holds no recipe.yaml, so no run was started there; start one without it")
    try:
        before = parse(stored)
    except RecipeError as error:
        raise RecipeError(f"--resume: the recipe of {folder} is no longer valid:", *error.problems) from error
    found = differences(before.plain, now.plain)
    fixed: tuple[str, ...] = getattr(table.load(now.name), "FIXED", ())  # of what may differ elsewhere
    refused = {key: pair for key, pair in found.items() if not _accepted(key) or key in fixed}
    if refused:
        lines = [
            f"  {key}: the run has {_shown(was)}, now it is {_shown(value)}" for key, (was, value) in refused.items()
        ]
        raise RecipeError(f"--resume: the recipe of {folder} differs; set these back, or start a new run:", *lines)
    return found


def _accepted(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_DIFFER)


def _shown(value: object) -> str:
    return "absent" if value is _ABSENT else show(value)
