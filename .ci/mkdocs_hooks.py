"""What the documentation site makes of the project itself: nothing of it is maintained by hand.

- The first page is README.md, and CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are pages too.
- ``reference/<package>.md`` has the public names of a package, read from its ``__init__.pyi``, for mkdocstrings.
- ``reference/recipe-<name>.md`` has every key of a recipe, read from the dataclasses of its schema.
- Comments, which hold a figure's source or what a test runs before a block, are left out of every page.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tests read the generated pages without mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gapbridge import arguments  # noqa: E402 - the path must be set first
from recipes.front import table  # noqa: E402
from recipes.front.schema import REQUIRED, describe, fields_of, members, summary_of, to_plain  # noqa: E402
from recipes.front.show import scalar  # noqa: E402

PACKAGES = ("twinmerge", "distill", "rl.hpo", "rl.csp", "rl.envs", "explain")
MODULES = {  # packages of plain functions, without a list of public names
    "twinmerge.functional": "twinmerge/functional",
    "distill.functional": "distill/functional",
    "explain.functional": "explain/functional",
    "rl.exact": "rl/exact",
}
FROM_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
COMMENT = re.compile(r"(```.*?```)|<!--.*?-->", flags=re.DOTALL)
SHARED = "recipe-shared"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    recipes = [{name: f"reference/recipe-{name}.md"} for name in table.TABLE]
    packages = [{name: f"reference/{name}.md"} for name in (*PACKAGES, *MODULES)]
    config.nav += [
        {"Every key of every recipe": [*recipes, {"shared blocks": f"reference/{SHARED}.md"}]},
        {"Python reference": packages},
        {"Project": [{name.title(): f"{name}.md"} for name in ("contributing", "changelog", "security")]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    pages = {page: outside(ROOT / source) for page, source in FROM_ROOT.items()}
    pages |= {f"reference/{name}.md": text for name, text in api_pages().items()}
    pages |= {f"reference/{name}.md": text for name, text in recipe_pages().items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out the comments, and let links into the repository's root lead to its pages here."""
    return root_links(without_comments(markdown))


def without_comments(markdown: str) -> str:
    """The text without comments; those inside blocks of code stay.

    >>> without_comments("5%<!-- speed.loss:.0% --> less")
    '5% less'
    """
    return COMMENT.sub(lambda found: found[1] or "", markdown)


def outside(path: Path) -> str:
    """A page of the repository's root, its links as they are from inside docs/."""
    return path.read_text(encoding="utf-8").replace("](docs/", "](").replace('="docs/', '="')


def root_links(markdown: str) -> str:
    """The text with links to this site's pages of the root.

    >>> root_links("[how](../CONTRIBUTING.md#add), [why](CHANGELOG.md)")
    '[how](contributing.md#add), [why](changelog.md)'
    """
    return re.sub(r"\]\((?:\.\./)?([A-Z]+)\.md", lambda found: f"]({found[1].lower()}.md", markdown)


def api_pages() -> dict[str, str]:
    """Markdown of the Python reference by page."""
    pages = {}
    for package in PACKAGES:
        stub = (ROOT / package.replace(".", "/") / "__init__.pyi").read_text(encoding="utf-8")
        names = sorted(re.findall(r"\bas (\w+)", stub), key=str.lower)
        pages[package] = "\n\n".join([f"# {package}", *(f"::: {package}.{name}" for name in names)])
    for package, folder in MODULES.items():
        names = sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_"))
        pages[package] = "\n\n".join([f"# {package}", *(f"::: {package}.{name}" for name in names)])
    return {name: f"{text}\n" for name, text in pages.items()}


def recipe_pages() -> dict[str, str]:
    """Markdown of the recipe reference by page: blocks that several recipes have stand on a page of their own."""
    blocks = {name: places(table.load(name).Recipe) for name in table.TABLE}
    counted = [kind for found in blocks.values() for kind in found]
    shared: dict[type, str] = {}
    for kind, place in [pair for found in blocks.values() for pair in found.items()]:
        if counted.count(kind) > 1:
            shared.setdefault(kind, place)
    pages = {}
    for name, found in blocks.items():
        recipe = table.load(name).Recipe
        about = f"{table.TABLE[name].about[0].upper()}{table.TABLE[name].about[1:]}."
        head = [f"# recipe: {name}", about, f"`python -m recipes.run --new {name}` prints one to begin from."]
        own = {kind: place for kind, place in found.items() if kind not in shared}
        parts = [keys(recipe, own, shared), *section(own, own, shared)]
        pages[f"recipe-{name}"] = "\n\n".join([*head, *parts])
    text = "Blocks that stand in several recipes. A recipe's own page says where its defaults differ."
    pages[SHARED] = "\n\n".join(["# Shared blocks", text, *section(shared, {}, shared)])
    return {name: f"{text}\n" for name, text in pages.items()}


def section(blocks: dict[type, str], own: dict[type, str], shared: dict[type, str]) -> Iterator[str]:
    """A heading, the summary and the keys of every block."""
    for kind, place in blocks.items():
        yield f"## {place} {{ #{anchor(place)} }}"
        yield prose(summary_of(kind))
        yield keys(kind, own, shared)


def places(schema: type) -> dict[type, str]:
    """Every block below a schema with all the keys that it stands under, such as `model`, `second`."""
    found: dict[type, list[str]] = {}
    for kind, place in blocks_of(schema):
        found.setdefault(kind, []).append(f"`{place}`")
    return {kind: ", ".join(keys) for kind, keys in found.items()}


def blocks_of(schema: type, place: str = "") -> Iterator[tuple[type, str]]:
    """Every block below a schema, outermost first, with the key that it stands under."""
    for field in fields_of(schema):
        for kind in inner(field.kind):
            here = f"{place}.{field.name}".lstrip(".")
            yield kind, here
            yield from blocks_of(kind, here)


def inner(kind: Any) -> Iterator[type]:
    """Dataclasses in a type: itself, or the members of its lists, mappings and unions."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
    for part in typing.get_args(kind):
        yield from inner(part)


def keys(schema: type, own: dict[type, str], shared: dict[type, str]) -> str:
    """The table of a block's keys."""
    kinds = typing.get_type_hints(schema, include_extras=True)
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for field in fields_of(schema):
        cells = [f"`{field.name}`", words(kinds[field.name], own, shared), default(field.default), prose(field.help)]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def words(kind: Any, own: dict[type, str], shared: dict[type, str]) -> str:
    """A type in words; a block is a link."""
    parts = [part for part in members(kind) if list(inner(part))]
    plain = [part for part in members(kind) if part not in parts]
    texts = [link(part, own, shared) for part in parts]
    if plain:
        rest = typing.Union[tuple(plain)]  # noqa: UP007 - computed
        texts.append(prose(describe(rest) if "Annotated" not in str(rest) else arguments.describe(rest)))
    return " or ".join(texts).replace("None", "null")


def link(kind: Any, own: dict[type, str], shared: dict[type, str]) -> str:
    """A block, or many, as a link to its keys."""
    block = next(inner(kind))
    place = own.get(block) or shared[block]
    page = "" if block in own else f"{SHARED}.md"
    many = {list: "a list of blocks", dict: "a mapping from names to blocks"}
    return f"[{many.get(typing.get_origin(kind), 'a block')}]({page}#{anchor(place)})"


def default(value: Any) -> str:
    """A default as YAML; of a block only what differs from the block's own defaults."""
    if value is REQUIRED:
        return "required"
    if dataclasses.is_dataclass(value):
        changed = {
            field.name: to_plain(getattr(value, field.name))
            for field in fields_of(type(value))
            if getattr(value, field.name) != field.default
        }
        return ", ".join(f"`{name}: {flow(item)}`" for name, item in changed.items())
    return f"`{flow(to_plain(value))}`"


def flow(value: Any) -> str:
    """A plain value as YAML on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return scalar(value)


def prose(text: str) -> str:
    """Help as Markdown: what Markdown would read as markup is shown as it is."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else escaped(part) for part in parts)


def escaped(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([*_\[\]])", r"\\\1", text).replace("<", "&lt;")


def anchor(place: str) -> str:
    """A heading's anchor."""
    return place.replace("`", "").replace(".", "-").replace(", ", "-")
