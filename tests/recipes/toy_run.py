"""`python -m tests.recipes.toy_run` is `python -m recipes.run` with the toy recipe in the table."""

import sys

from recipes.front import table
from recipes.run import abandoned, main

table.TABLE["toy"] = table.Entry("tests.recipes.toy", "a recipe for tests")

if __name__ == "__main__":
    sys.exit(abandoned(main()))
