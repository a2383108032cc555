"""One self-contained HTML page for a run: tables, figures as inline images, the recipe, the environment."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; display: block; overflow-x: auto } caption { text-align: left; color: #57606a }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: left; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figcaption { color: #57606a } img { max-width: 100% }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px }
"""


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: Heading of the page.
        summary: One paragraph of plain text: what was found.
        tables: Rows of each table by its title; the keys of the rows are the columns.
        figures: PNG or GIF bytes of each figure by its name.
        details: Blocks of plain text by their heading: the recipe, the environment.
    """

    title: str
    summary: str = ""
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """Return the page; everything in it is escaped and nothing is fetched from elsewhere.

    >>> "<td class='number'>0.25</td>" in render(Report("r", tables={"t": [{"task": "a<b", "score": 0.25}]}))
    True
    """
    parts = [f"<h1>{_escape(report.title)}</h1>"]
    if report.summary:
        parts.append(f"<p>{_escape(report.summary)}</p>")
    parts += [_table(title, rows) for title, rows in report.tables.items()]
    parts += [_figure(name, data) for name, data in report.figures.items()]
    parts += [f"<h2>{_escape(title)}</h2><pre>{_escape(text)}</pre>" for title, text in report.details.items()]
    head = f"<meta charset='utf-8'><title>{_escape(report.title)}</title><style>{_STYLE}</style>"
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}{view}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(title: str, rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{_escape(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(_cell(row.get(column)) for column in columns)}</tr>" for row in rows)
    return f"<h2>{_escape(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool | str):
        return f"<td>{_escape(str(value))}</td>"
    if isinstance(value, int | float):
        return f"<td class='number'>{_escape(f'{value:,}' if isinstance(value, int) else f'{value:.4g}')}</td>"
    return f"<td>{_escape(json.dumps(value, default=str))}</td>"


def _figure(name: str, data: bytes) -> str:
    kind = "gif" if data.startswith(b"GIF8") else "png"
    image = f"<img alt='{_escape(name)}' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"
    return f"<figure>{image}<figcaption>{_escape(name)}</figcaption></figure>"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
