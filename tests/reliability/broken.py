"""Break a run at a random moment, resume it, and compare what it leaves with what an unbroken run leaves.

Every case is a function of its name: the way of breaking, the signal and the moment are drawn from it.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.recipes.data.conftest import offer_wheel
from tests.reliability.compare import contents, differences
from tests.reliability.programs import FILES
from tests.reliability.server import OFFLINE, ROOT, Hung, Server
from tests.reliability.variants import Ground, Variant

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
WAYS = ("moment", "moment", "moment", "time", "torn")
LONGEST = 600.0  # seconds of one run on a machine that others use too
PROGRAMS = {False: "recipes.run:main", True: "tests.reliability.programs:fetch"}


@dataclass
class Attempt:
    """One process of a run.

    Attributes:
        code: Its exit code, or the negative number of the signal that ended it.
        moments: What happened in it, in order; see `tests.reliability.child.Moments`.
        error: The end of what it wrote to standard error.
        seconds: How long it took.
    """

    code: int
    moments: list[str]
    error: str
    seconds: float

    @property
    def struck(self) -> str:
        """What was about to happen when it struck itself; else the last thing that happened."""
        before = self.moments[: self.moments.index("struck")] if "struck" in self.moments else self.moments
        return before[-1] if before else "the start"

    @property
    def batches(self) -> int:
        """Batches it began."""
        return self.moments.count("batch")

    def safe(self, *, killed: bool) -> int:
        """Batches that it had trained, at the last checkpoint that it put in place."""
        done = [i for i, what in enumerate(self.moments) if what.startswith("rename ") and what.endswith(".ckpt")]
        done = [i for i in done if not (killed and "struck" in self.moments[i + 1 : i + 2])]
        return self.moments[: done[-1]].count("batch") if done else 0


@dataclass
class Reference:
    """An unbroken run.

    Attributes:
        contents: What it left.
        moments: What happened in it.
        seconds: How long it took.
        largest: Bytes of the largest file that it left.
    """

    contents: dict[str, Any] = field(repr=False)
    moments: list[str] = field(repr=False)
    seconds: float
    largest: int


class Breaker:
    """Runs variants, broken and unbroken, each in a folder of its own.

    Args:
        ground: Base, tables and recipes.
        servers: The one that breaks, and the one that resumes, in which sets have another order.
        work: Folder for the runs; a run's own is removed when it ended well.
    """

    def __init__(self, ground: Ground, servers: tuple[Server, Server], work: Path) -> None:
        self._ground, self.work, self.servers = ground, work, servers
        self._references: dict[str, Reference] = {}

    def reference(self, variant: Variant) -> Reference:
        """The unbroken run of a variant, made once and kept; a second one, elsewhere, must leave the same.

        Raises:
            AssertionError: If an unbroken run fails, or two of them differ.
        """
        if variant.name in self._references:
            return self._references[variant.name]
        kept = self.work / f"unbroken-{variant.name}.pt"
        if not kept.is_file():
            found = []
            for number in range(2):
                home = self.home(f"unbroken-{variant.name}-{number}", variant)
                attempt = self._attempt(variant, home, number, resume=False)
                assert attempt.code == 0, f"{variant.name}: an unbroken run ends with {attempt.code}: {attempt.error}"
                found.append((contents_of(home), attempt, _largest(home)))
                shutil.rmtree(home)
            unlike = differences(found[0][0], found[1][0])
            assert not unlike, f"{variant.name}: two unbroken runs differ: {unlike[:5]}"
            content, attempt, largest = found[0]
            seconds = min(each[1].seconds for each in found)
            torch.save([content, attempt.moments, seconds, largest], kept)
        self._references[variant.name] = Reference(*torch.load(kept, weights_only=True))
        return self._references[variant.name]

    def case(self, variant: Variant, number: int) -> dict[str, Any]:
        """Break one run and say how it went.

        Returns:
            A row: `case`, `way`, `signal`, `at` (the moment), `codes`, `unlike` (the first differences; none for a run
            that ends as the unbroken one), `lost` (what it had and had to do again, or that it did not finish),
            `untidy` (a signal that was not answered by a sentence).
        """
        name = f"{variant.name}-{number:03d}"
        draw = random.Random(name)
        unbroken = self.reference(variant)
        home = self.home(name, variant)
        way = draw.choice(WAYS if variant.processes == 1 else ("time",))
        struck = signal.SIGKILL if way == "torn" else draw.choice(SIGNALS)
        row: dict[str, Any] = {"case": name, "way": way, "signal": signal.Signals(struck).name, "at": "", "lost": ""}
        attempts: list[Attempt] = []
        try:
            for _ in range(2 if draw.random() < 0.2 else 1):
                plan = self._plan(draw, way, struck, unbroken)
                attempts.append(self._attempt(variant, home, 0, resume=bool(attempts), **plan))
            row["at"] = attempts[-1].struck
            attempts.append(self._finish(variant, home, row))
        except Hung as hung:
            row |= {"lost": str(hung), "codes": [a.code for a in attempts], "unlike": [str(hung)], "untidy": ""}
            return row
        row["codes"] = [attempt.code for attempt in attempts]
        row["seconds"] = round(sum(attempt.seconds for attempt in attempts), 1)
        row["unlike"] = differences(unbroken.contents, contents_of(home))[:5] if attempts[-1].code == 0 else ["no end"]
        row["untidy"] = next((_untidy(a, struck) for a in attempts[:-1] if _untidy(a, struck)), "")
        row["lost"] = row["lost"] or self._lost(attempts, unbroken, killed=struck == signal.SIGKILL)
        if not row["unlike"] and not row["lost"] and not row["untidy"]:
            shutil.rmtree(home)
        return row

    def _plan(self, draw: random.Random, way: str, struck: int, unbroken: Reference) -> dict[str, Any]:
        if way == "torn":
            return {"limits": {"TORN": draw.randrange(64, max(65, unbroken.largest))}}
        if way == "time":
            return {"after": draw.uniform(0.05, 1.0) * unbroken.seconds, "signal": int(struck)}
        return {"strike": draw.randrange(len(unbroken.moments)), "signal": int(struck)}

    def _finish(self, variant: Variant, home: Path, row: dict[str, Any]) -> Attempt:
        """Resume; a run that was broken before it left anything is started anew."""
        attempt = self._attempt(variant, home, 1, resume=True)
        if attempt.code == 2 and "--resume" in attempt.error:
            kept = [path for path in (home / "run").rglob("*") if path.suffix in (".ckpt", ".safetensors", ".pt")]
            if kept:
                row["lost"] = f"cannot be resumed although it holds {kept[0].name}: {attempt.error}"
            attempt = self._attempt(variant, home, 1, resume=False)
        return attempt

    def _lost(self, attempts: list[Attempt], unbroken: Reference, *, killed: bool) -> str:
        last = attempts[-1]
        if last.code != 0:
            return f"the resumed run ends with {last.code}: {last.error[-300:]}"
        total, safe = unbroken.moments.count("batch"), attempts[0].safe(killed=killed)
        if len(attempts) == 2 and last.batches > total - safe:
            return f"{safe} batches were in a checkpoint, and {last.batches} of {total} were trained after it"
        return ""

    def home(self, name: str, variant: Variant) -> Path:
        """An empty folder of this name with the variant's recipe in it."""
        home = self.work / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        if variant.fetches:
            if not (self.work / "index").is_dir():
                offer_wheel(self.work / "index", FILES)
        else:
            self._ground.write(variant, home)
        return home

    def _attempt(self, variant: Variant, home: Path, server: int, *, resume: bool, **plan: Any) -> Attempt:
        """Run the variant's command, or break it by the plan."""
        words = ["--out", "run", "--resume" if resume else "--force"]
        log = home / "moments.log"
        log.unlink(missing_ok=True)
        after, number = plan.pop("after", None), plan.pop("signal", signal.SIGKILL)
        request = self.request(variant, home, words) | {"signal": number, **plan}
        start = time.monotonic()
        if variant.processes > 1:
            code = _alone(request["words"], home, after, number)
        else:
            run = self.servers[server].start(request)
            if after is not None:
                time.sleep(after)
                run.send(number)
            code = run.wait(LONGEST)
        seconds = time.monotonic() - start
        moments = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        error = (home / "err.txt").read_text(encoding="utf-8", errors="replace")
        return Attempt(code, moments, error[-2000:], seconds)

    def request(self, variant: Variant, home: Path, words: list[str], tag: str = "") -> dict[str, Any]:
        """What a server is asked for a run of the variant in a folder, with these words after the recipe's name."""
        return {
            "program": PROGRAMS[variant.fetches],
            "words": [str(self.work / "index")] if variant.fetches else [f"{variant.name}.yaml", *words],
            "cwd": str(home),
            "root": str(home),
            "out": str(home / f"out{tag}.txt"),
            "err": str(home / f"err{tag}.txt"),
            "log": str(home / f"moments{tag}.log"),
            "keep": str(home / f"kept{tag}"),
            "env": {"GAPBRIDGE_CACHE": str(home / "cache")},
        }


def _alone(words: list[str], home: Path, after: float | None, number: int) -> int:
    """Run the command in a group of processes of its own, which Lightning's launcher needs."""
    environment = {**os.environ, **OFFLINE, "GAPBRIDGE_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "recipes.run", *words]
    with (home / "out.txt").open("w") as out, (home / "err.txt").open("w") as err:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=err, start_new_session=True)
        try:
            if after is not None:
                time.sleep(after)
                if process.poll() is None:
                    os.killpg(process.pid, number)  # as a terminal, or a machine that is switched off
            return process.wait(2 * LONGEST)
        except subprocess.TimeoutExpired as error:
            raise Hung(f"{' '.join(words)} was at work for {2 * LONGEST:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def contents_of(home: Path) -> dict[str, Any]:
    """What is compared of a run: its folder, the experts or the wheel in its cache, and the checkpoints it removed."""
    folders = {"run": home / "run", "cache": home / "cache", "kept": home / "kept"}
    return {name: contents(folder) for name, folder in folders.items() if folder.is_dir()}


def _largest(home: Path) -> int:
    return max((file.stat().st_size for file in home.rglob("*") if file.is_file()), default=1)


def _untidy(attempt: Attempt, struck: int) -> str:
    """What is wrong with the end of a process that got a signal it can answer."""
    if struck == signal.SIGKILL:
        return ""
    if "Traceback" in attempt.error:
        return f"a traceback: {attempt.error[-300:]}"
    nothing_to_resume = attempt.code == 2 and "holds no recipe.yaml, so no run was started there" in attempt.error
    if attempt.code not in (130, 0, -signal.SIGTERM) and not nothing_to_resume:
        return f"ends with {attempt.code}: {attempt.error[-300:]}"
    return ""
