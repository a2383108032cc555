"""Steps of a pre-flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from recipes.errors import RecipeError


def check_all(steps: Iterable[Callable[[], str]]) -> Iterator[str]:
    """Yield the line of every step of a pre-flight.

    Raises:
        RecipeError: After the last step, with the problems of all that failed.
    """
    problems: list[str] = []
    for step in steps:
        try:
            yield step()
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
