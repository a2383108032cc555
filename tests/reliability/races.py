"""Two processes at once on one run folder, one cache, one wheel: one of them works, and what is left is whole."""

import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.reliability.broken import LONGEST, Breaker
from tests.reliability.compare import contents, differences
from tests.reliability.server import Hung
from tests.reliability.variants import Variant

KINDS = ("same-folder", "force", "resume", "numbered", "two-resumes", "wheel", "cache", "cache-killed")
ONE = {"same-folder", "force", "resume", "two-resumes"}  # of these, one alone may work


class Racer:
    """Starts pairs of runs.

    Args:
        breaker: Of whose variants.
        variants: By name; `hpo`, `merge` and `wheel` are raced.
    """

    def __init__(self, breaker: Breaker, variants: dict[str, Variant]) -> None:
        self._breaker, self._variants = breaker, variants

    def case(self, number: int) -> dict[str, Any]:
        """Race two runs and say how it went.

        Returns:
            A row: `case`, `codes`, `corrupted` (what is wrong with what they left, or with how they ended).
        """
        kind = KINDS[number % len(KINDS)]
        name = f"race-{kind}-{number:03d}"
        draw = random.Random(name)
        variant = self._variants["wheel" if kind == "wheel" else "merge" if kind.startswith("cache") else "hpo"]
        unbroken = self._breaker.reference(variant)
        home = self._breaker.home(name, variant)
        row: dict[str, Any] = {"case": name, "codes": [], "corrupted": ""}
        if kind == "two-resumes":
            request = self._request(variant, home, ["--out", "run"], "0")
            request |= {"strike": draw.randrange(20, len(unbroken.moments) - 10), "signal": signal.SIGKILL}
            self._breaker.servers[0].start(request).wait(LONGEST)
        words = {
            "same-folder": (["--out", "run"], ["--out", "run"]),
            "force": (["--out", "run"], ["--out", "run", "--force"]),
            "resume": (["--out", "run"], ["--out", "run", "--resume"]),
            "numbered": ([], []),
            "two-resumes": (["--out", "run", "--resume"], ["--out", "run", "--resume"]),
        }.get(kind, (["--out", "run"], ["--out", "other"]))
        late = 0.0 if kind in ("same-folder", "two-resumes", "numbered", "wheel") else 0.6 * unbroken.seconds
        runs = [self._breaker.servers[0].start(self._request(variant, home, words[0], "1"))]
        if kind in ("force", "resume"):
            self._wait_for(home / "run" / ".lock")
        else:
            time.sleep(draw.uniform(0.0, late))
        runs.append(self._breaker.servers[1].start(self._request(variant, home, words[1], "2")))
        if kind == "cache-killed":
            time.sleep(draw.uniform(0.0, unbroken.seconds))
            runs[0].send(signal.SIGKILL)
        try:
            row["codes"] = [run.wait(2 * LONGEST) for run in runs]
        except Hung as hung:
            return row | {"corrupted": str(hung)}
        row["corrupted"] = self._fault(kind, home, row["codes"], unbroken.contents)
        if not row["corrupted"]:
            shutil.rmtree(home)
        return row

    def _request(self, variant: Variant, home: Path, words: list[str], tag: str) -> dict[str, Any]:
        return self._breaker.request(variant, home, words, tag) | {"keep": None}

    def _wait_for(self, file: Path) -> None:
        deadline = time.monotonic() + LONGEST
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _fault(self, kind: str, home: Path, codes: list[int], expected: dict[str, Any]) -> str:
        """What is wrong; empty when nothing is."""
        told = [(home / f"err{tag}.txt").read_text(encoding="utf-8", errors="replace") for tag in "12"]
        if any("Traceback" in text for text in told):
            return f"a traceback: {''.join(told)[-300:]}"
        done = [number for number, code in enumerate(codes) if code == 0]
        if kind in ONE:
            late = kind != "same-folder" and "complete already" in (home / "out2.txt").read_text()
            if len(done) != 1 and not late:
                return f"{len(done)} of two runs in one folder end well: {[text[-200:] for text in told]}"
            refused = told[1 - done[0]] if len(done) == 1 else ""
            if len(done) == 1 and not refused.strip():
                return "the other run ends without a word"
            places = [home / "run"]
        elif kind == "cache-killed":
            if codes[1] != 0:
                return f"the run whose neighbour was killed ends with {codes[1]}: {told[1][-300:]}"
            places = [home / "other"]
        else:
            if len(done) != 2:
                return f"they end with {codes}: {[text[-200:] for text in told]}"
            places = {"numbered": sorted((home / "runs").glob("*/*")), "wheel": []}.get(
                kind, [home / "run", home / "other"]
            )
        unlike = [d for place in places for d in differences(expected.get("run"), contents(place))]
        if kind.startswith("cache"):  # who takes an expert from the cache trains none, and has no rows of its training
            unlike = [d for d in unlike if not re.fullmatch(r"/metrics\.csv/\w+ is missing", d)]
        if "cache" in expected and kind != "numbered":
            unlike += differences(expected["cache"], contents(home / "cache"))
        left = [str(path.relative_to(home)) for path in home.rglob("*.part")] if kind != "cache-killed" else []
        return "; ".join([*unlike[:3], *left[:1]])
