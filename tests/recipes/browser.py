"""What a browser makes of a report page: its structure, what it says on its console, and what it would fetch."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")

_ASKED = """<script id='asked'>
document.getElementById('asked').remove()  // the page itself has no script
const all = (what) => [...document.querySelectorAll(what)]
const shown = getComputedStyle(document.body)
document.title = JSON.stringify({
  title: document.title, lang: document.documentElement.lang, heads: all('h1').length, mains: all('main').length,
  levels: all('h1, h2, h3').map((e) => Number(e.tagName[1])),
  pictures: all('img').map((e) => ({alt: e.alt, wide: e.naturalWidth, told: e.parentElement.innerText})),
  headless: all('table').filter((e) => !e.querySelector('th[scope=col]')).length,
  unscoped: all('th:not([scope])').length,
  nameless: all('section, nav, [role=region]').filter((e) => {
    const other = e.getAttribute('aria-labelledby')
    return !(e.getAttribute('aria-label') || (other && document.getElementById(other)?.innerText))
  }).length,
  twice: all('[id]').length - new Set(all('[id]').map((e) => e.id)).size,
  sideways: all('.scroll').filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel),
  unreachable: all('a, summary, button, .scroll, pre').filter((e) => {
    e.focus()
    return e.tabIndex < 0 || document.activeElement !== e
  }).length,
  links: all('a').map((e) => e.getAttribute('href')),
  wider: document.documentElement.scrollWidth - innerWidth,
  fetched: performance.getEntriesByType('resource').map((e) => e.name).filter((name) => !name.startsWith('data:')),
  text: shown.color, back: shown.backgroundColor,
})
</script></body>"""


class Tags(HTMLParser):
    """Checks that the tags of a page match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def seen(page: Path, width: int = 1200, *, dark: bool = False) -> dict[str, Any]:
    """What headless Chromium tells of a page at a width, after it was laid out."""
    copy = page.with_name("asked.html")  # beside the page, so that its links lead where they do
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", _ASKED), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    try:
        done = subprocess.run(
            [*command, *scheme, "--enable-logging=stderr", "--dump-dom", copy.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    finally:
        copy.unlink()
    assert "CONSOLE" not in done.stderr
    assert Tags(done.stdout).open == []
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found is not None
    return dict(json.loads(html.unescape(found.group(1))))


def check_page(page: Path) -> dict[str, Any]:
    """Assert what every report must be for a reader with eyes, keyboard or screen reader; what was seen.

    Args:
        page: The report.html of a finished run.
    """
    found = seen(page)
    assert found["lang"] == "en"
    assert found["title"]
    assert (found["heads"], found["mains"]) == (1, 1)
    assert all(after - before <= 1 for before, after in zip(found["levels"], found["levels"][1:], strict=False))
    for name in ("headless", "unscoped", "nameless", "twice", "unreachable"):
        assert found[name] == 0, name
    for picture in found["pictures"]:
        assert picture["wide"] > 0
        assert picture["alt"].strip().endswith("."), picture["alt"]  # what it shows, and a sentence how to read it
        assert picture["alt"].split(". ", 1)[1:], picture["alt"]
        assert picture["alt"] in picture["told"]
    assert len({picture["alt"] for picture in found["pictures"]}) == len(found["pictures"])
    assert found["fetched"] == found["sideways"] == []
    assert found["wider"] <= 0
    for link in found["links"]:
        assert link.startswith("#") or (page.parent / link).is_file(), link
    assert seen(page, 500)["wider"] <= 0
    night = seen(page, dark=True)
    assert _light(found["back"]) - _light(found["text"]) > 150
    assert _light(night["text"]) - _light(night["back"]) > 150
    return found


def _light(colour: str) -> int:
    """The least of red, green and blue of `rgb(r, g, b)`, for one that is nearly grey."""
    return min(map(int, re.findall(r"\d+", colour)[:3]))
