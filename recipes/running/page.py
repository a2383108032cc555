"""One self-contained HTML page for a run: tables, figures as inline images, the recipe, the environment."""

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
MANY = 12  # columns of a table above which it is set narrower

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --block: #f6f8fa }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9da7b1; --line: #3d444d; --back: #0d1117; --block: #161b22 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 }
main { max-width: min(94vw, 82rem); margin: 2rem auto }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; break-after: avoid } p { max-width: 62rem }
nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none } a { color: inherit }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600 } tbody th { font-weight: 400 } td { overflow-wrap: break-word; max-width: 26rem }
.many table { font-size: 11px } .many th, .many td { padding: .25rem .2rem }
.many thead th { overflow-wrap: anywhere; min-width: 2.6rem } tr { break-inside: avoid } .number { text-align: right }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 1.2rem 0; break-inside: avoid } figcaption { color: var(--soft); max-width: 62rem }
img { max-width: min(100%, 56rem); background: #fff; border-radius: 4px }
pre { background: var(--block); padding: .8rem; overflow-x: auto; font-size: 13px }
:focus-visible { outline: 2px solid #0969da; outline-offset: 2px }
@media print {
  :root { color-scheme: light }
  nav { display: none } .scroll { overflow: visible } table { font-size: 11px } pre { white-space: pre-wrap }
}
"""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        data: Bytes of a PNG or GIF.
        title: What it shows.
        told: How to read it, a sentence or two.
        numbers: The file beside the page that holds its numbers; none where empty.
    """

    data: bytes
    title: str
    told: str = ""
    numbers: str = ""


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: Heading of the page.
        summary: One paragraph of plain text: what was found.
        first: What is drawn right below the summary, above the contents.
        tables: Rows of each table by its title; the keys of the rows are the columns. A value of `text` and `href` is a
            link to a file beside the page.
        figures: What is drawn.
        details: Blocks of plain text by their heading: the recipe, the environment.
    """

    title: str
    summary: str = ""
    first: Sequence[Picture] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    figures: Sequence[Picture] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """Return the page; everything in it is escaped and nothing is fetched from elsewhere.

    >>> "<td class='number'>0.25</td>" in render(Report("r", tables={"t": [{"task": "a<b", "score": 0.25}]}))
    True
    """
    sections = [(title, _table(title, rows)) for title, rows in report.tables.items()]
    sections += [("Figures", "\n".join(map(_figure, report.figures)))] if report.figures else []
    sections += [(title, f"<pre tabindex='0'>{_escape(text)}</pre>") for title, text in report.details.items()]
    links = "".join(f"<li><a href='#s{number}'>{_escape(title)}</a></li>" for number, (title, _) in enumerate(sections))
    parts = [f"<h1>{_escape(report.title)}</h1>"]
    if report.summary:
        parts.append(f"<p>{_escape(report.summary)}</p>")
    parts += map(_figure, report.first)
    parts.append(f"<nav aria-label='Contents'><ul>{links}</ul></nav>")
    parts += [
        f"<section aria-labelledby='s{number}'><h2 id='s{number}'>{_escape(title)}</h2>\n{inside}\n</section>"
        for number, (title, inside) in enumerate(sections)
    ]
    head = f"<meta charset='utf-8'><title>{_escape(report.title)}</title><style>{_STYLE}</style>"
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}{view}</head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _table(title: str, rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    named = {column: _escape(column).replace("_", "_<wbr>") for column in columns}  # where a long name may be broken
    head = "".join(f"<th scope='col'{_aligned(rows, column)}>{name}</th>" for column, name in named.items())
    body = "\n".join(f"<tr>{''.join(_row(row, columns))}</tr>" for row in rows)
    kind = "scroll many" if len(columns) > MANY else "scroll"
    region = f"<div class='{kind}' role='region' tabindex='0' aria-label='{_escape(title)}'>"
    return f"{region}<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def _aligned(rows: Sequence[Row], column: str) -> str:
    """The class of a heading over numbers, which stands above them on the right."""
    values = [value for row in rows if (value := row.get(column)) is not None]
    numbers = values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return " class='number'" if numbers else ""


def _row(row: Row, columns: Sequence[str]) -> Iterator[str]:
    """The cells of a row, the first of them its heading where it is a text."""
    for place, column in enumerate(columns):
        value = row.get(column)
        plain = place == 0 and isinstance(value, str)
        yield f"<th scope='row'>{_escape(str(value))}</th>" if plain else _cell(value)


def _cell(value: object) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool | str):
        return f"<td>{_escape(str(value))}</td>"
    if isinstance(value, int | float):
        return f"<td class='number'>{_escape(f'{value:,}' if isinstance(value, int) else f'{value:.4g}')}</td>"
    if isinstance(value, Mapping) and set(value) == {"text", "href"} and ":" not in str(value["href"]):
        return f"<td><a href='{_escape(str(value['href']))}'>{_escape(str(value['text']))}</a></td>"
    return f"<td>{_escape(json.dumps(value, default=str))}</td>"


def _figure(picture: Picture) -> str:
    told = f"{picture.title}. {picture.told}" if picture.told else picture.title
    link = f" <a href='{_escape(picture.numbers)}'>Its numbers</a>" if picture.numbers else ""
    kind = "gif" if picture.data.startswith(b"GIF8") else "png"
    image = f"<img alt='{_escape(told)}' src='data:image/{kind};base64,{base64.b64encode(picture.data).decode()}'>"
    return f"<figure>{image}<figcaption>{_escape(told)}{link}</figcaption></figure>"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
