"""Docstrings as Markdown: doctests become blocks of code, and the roles of Sphinx plain names."""

import re

from griffe import Extension, Object

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1(?=\S).*)*", flags=re.MULTILINE)
ROLE = re.compile(r":(?:\w+:)?\w+:`~?([^`]*)`")


class Docstrings(Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite one."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    r"""The docstring as Markdown.

    >>> print(markdown("See :func:`merge`.\n\n>>> 1 + 1\n2"))
    See `merge`.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    fenced = DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    return ROLE.sub(r"`\1`", fenced)
