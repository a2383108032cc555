"""The two errors a user may see: a wrong recipe (exit code 2) and a failed run (exit code 1)."""


class RecipeError(Exception):
    """The recipe or the command line is wrong; nothing was run and nothing was written.

    Args:
        problems: One sentence each; all are shown, one a line.

    >>> print(RecipeError("merge.yaml:8: method.rnk: unknown key", "merge.yaml:9: seed: expected a whole number"))
    merge.yaml:8: method.rnk: unknown key
    merge.yaml:9: seed: expected a whole number
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class RunError(Exception):
    """A run failed for a reason the user can act on: one sentence, no traceback."""

    exit_code = 1
