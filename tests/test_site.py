"""The documentation site's generated pages: every key, every public name, and no comment that a reader would see."""

import importlib
import runpy
from pathlib import Path

import pytest

from recipes.front import table
from recipes.front.schema import fields_of

ROOT = Path(__file__).resolve().parents[1]
SITE = runpy.run_path(str(ROOT / ".ci" / "mkdocs_hooks.py"))
PAGES = SITE["recipe_pages"]()


def rows(schema):
    """How the keys of a block begin their rows, in order."""
    return [f"| `{field.name}` |" for field in fields_of(schema)]


@pytest.mark.parametrize("name", table.TABLE)
def test_the_reference_has_every_key_of_a_recipe(name):
    page = PAGES[f"recipe-{name}"]
    for schema in [table.load(name).Recipe, *dict(SITE["blocks_of"](table.load(name).Recipe))]:
        begun = [
            line[: line.index("|", 1) + 1]
            for line in f"{page}\n{PAGES['recipe-shared']}".splitlines()
            if "| `" in line[:3]
        ]
        assert set(rows(schema)) <= set(begun)
        for field in fields_of(schema):
            assert field.help, f"{schema.__name__}.{field.name} has no help"


def test_a_row_says_type_default_and_help():
    assert "| `seed` | a whole number | `0` | " in PAGES["recipe-merge"]
    assert (
        "| `tasks` | [a list of blocks](recipe-shared.md#tasks) | required | The tasks, one expert each. |"
        in PAGES["recipe-finetune"]
    )
    assert "| `discount` | a finite number > 0 and &lt;= 1 or null | `null` |" in PAGES["recipe-hpo"]


def test_no_two_headings_of_a_page_are_alike():
    for page in PAGES.values():
        heads = [line for line in page.splitlines() if line.startswith("#")]
        assert len(heads) == len(set(heads))


@pytest.mark.parametrize("package", SITE["PACKAGES"])
def test_the_reference_has_every_public_name(package):
    page = SITE["api_pages"]()[package]
    assert [line for line in page.splitlines() if line.startswith(":::")] == [
        f"::: {package}.{name}" for name in sorted(importlib.import_module(package).__all__, key=str.lower)
    ]


def test_comments_are_left_out_and_blocks_of_code_are_not():
    strip = SITE["without_comments"]
    assert strip("a 5%<!-- speed.loss:.0% --> b\n<!-- setup\nx = 1\n\ny = 2\n-->\n") == "a 5% b\n\n"
    assert strip("```html\n<!-- kept -->\n```\n") == "```html\n<!-- kept -->\n```\n"
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert "<!--" not in strip(page.read_text(encoding="utf-8"))


def test_links_into_the_repositorys_root_fit_the_site():
    page = SITE["root_links"](SITE["outside"](ROOT / "README.md"))
    assert "(docs/" not in page
    assert "(contributing.md)" in page
    assert SITE["root_links"]("[a](../CHANGELOG.md#b), [c](hpo.md)") == "[a](changelog.md#b), [c](hpo.md)"
