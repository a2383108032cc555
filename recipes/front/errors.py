"""The two faults that the front reports as one sentence: a wrong recipe and a failed run."""

__all__ = ["RecipeError", "RunError"]


class RecipeError(Exception):
    """The recipe, or something it names, is wrong; the front exits with 2."""


class RunError(Exception):
    """A run that began cannot go on; the front exits with 1."""
