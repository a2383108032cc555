"""All that is tried, case by case: a case that has its file is not tried again, so that a campaign can be cut short."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.reliability import environments, hostile
from tests.reliability.broken import Breaker
from tests.reliability.corruption import artefacts
from tests.reliability.races import Racer
from tests.reliability.run_damage import DAMAGED, corrupt_run
from tests.reliability.server import Hung, Server
from tests.reliability.variants import Ground, Variant

Rows = list[dict[str, Any]]
CHUNK = {"corruptions": 10, "parsed": 250, "checked": 25}  # cases of one process
SLOW = {"wheel": 8}  # cases of an artefact whose reading starts other programs


class Campaign:
    """Runs cases in a folder, each once.

    Args:
        work: Folder of the runs and of the rows, `cells/<part>/<case>.json`.
    """

    def __init__(self, work: Path) -> None:
        self.work = work.absolute()
        self._stack = ExitStack()
        self._servers: list[Server] = []
        self._breaker: Breaker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def server(self) -> Server:
        """The first server, started when it is needed."""
        if not self._servers:
            self._servers.append(self._stack.enter_context(Server(0)))
        return self._servers[0]

    @property
    def servers(self) -> tuple[Server, Server]:
        """Two servers; in the other one, sets have another order."""
        first = self.server
        if len(self._servers) == 1:
            self._servers.append(self._stack.enter_context(Server(1)))
        return first, self._servers[1]

    @property
    def breaker(self) -> Breaker:
        """What runs the variants."""
        if self._breaker is None:
            self._breaker = Breaker(Ground(self.work / "ground"), self.servers, self.work / "runs")
        return self._breaker

    def variants(self) -> dict[str, Variant]:
        """The variants by name."""
        return {variant.name: variant for variant in Ground(self.work / "ground").variants()}

    def rows(self, part: str) -> Rows:
        """The rows of a part that are there."""
        found: Rows = []
        for file in sorted((self.work / "cells" / part).glob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            found += content if isinstance(content, list) else [content]
        return found

    def _once(self, part: str, case: str, work: Callable[[], Any]) -> Any:
        file = self.work / "cells" / part / f"{case}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                content = work()
            except Hung as fault:  # the process of the case broke down: that is a fault of what it tried
                ended = {"case": case, "what": f"process {case}", "outcome": "raw", "said": str(fault)[-600:]}
                content = ended | {"accepted": 0, "refused": 0, "faults": [str(fault)[-600:]]}
            file.with_suffix(".part").write_text(json.dumps(content, indent=1), encoding="utf-8")
            file.with_suffix(".part").replace(file)
        return json.loads(file.read_text(encoding="utf-8"))

    # -------------------------------------------------------------- the parts

    def broken(self, count: int, names: tuple[str, ...] = ()) -> Rows:
        """Break runs: the variants by their shares, and every variant of two processes twice or not at all."""
        for variant, number in _dealt(list(self.variants().values()), count, names):
            self._once("broken", f"{variant.name}-{number:03d}", lambda v=variant, n=number: self.breaker.case(v, n))
        return self.rows("broken")

    def corruptions(self, count: int, runs: int) -> Rows:
        """Damage artefacts, `count` times in all, and interrupted runs."""
        names = list(artefacts())
        each, step = -(-count // len(names)), CHUNK["corruptions"]
        for name in names:
            limit = min(each, SLOW.get(name, each))
            for first in range(0, limit, step):
                size = min(step, limit - first)
                self._once("corruptions", f"{name}-{first:03d}", lambda n=name, f=first, s=size: self._damage(n, f, s))
        for number in range(runs):
            name = DAMAGED[number % len(DAMAGED)]
            variant, turn = self.variants()[name], number // len(DAMAGED)
            case = f"run-{name}-{turn:03d}"
            self._once("corruptions", case, lambda v=variant, n=turn: corrupt_run(self.breaker, v, n))
        return self.rows("corruptions")

    def _damage(self, name: str, first: int, size: int) -> Rows:
        words = [name, str(first), str(size), str(self.work / "artefacts")]
        return self._program("tests.reliability.corruption:main", words, seconds=3600.0)

    def parsed(self, count: int) -> Rows:
        """Mutated recipes through `recipes.front.parse`."""
        return self._mutated("parsed", count)

    def checked(self, count: int) -> Rows:
        """Mutated recipes through `--check`."""
        return self._mutated("checked", count)

    def _mutated(self, part: str, count: int) -> Rows:
        for first in range(0, count, CHUNK[part]):
            size = min(CHUNK[part], count - first)
            words = [str(first), str(size)]
            program = f"tests.reliability.mutations:{'parse' if part == 'parsed' else 'check'}_many"
            self._once(part, f"{first:06d}", lambda p=program, w=words: self._program(p, w, limits={"AS": 12 * 2**30}))
        return self.rows(part)

    def hostile(self, names: tuple[str, ...] = ()) -> Rows:
        """Every hostile file."""
        for name in names or tuple(hostile.attacks()):
            self._once("hostile", name, lambda n=name: self._attack(n))
        return self.rows("hostile")

    def _attack(self, name: str) -> Any:
        limits = {"AS": hostile.MEMORY}
        return self._program("tests.reliability.hostile:main", [name], seconds=1200.0, limits=limits)

    def races(self, count: int) -> Rows:
        """Race pairs of processes."""
        for number in range(count):
            self._once("races", f"{number:03d}", lambda n=number: Racer(self.breaker, self.variants()).case(n))
        return self.rows("races")

    def environments(self, names: tuple[str, ...] = ()) -> Rows:
        """Every machine that lacks something."""
        variant = self.variants()["finetune-epochs-3"]
        for name in names or (*environments.PLACES, *environments.DISKS, *environments.ALONE):
            self._once("environments", name, lambda n=name: environments.environment_case(self.breaker, variant, n))
        return self.rows("environments")

    def _program(self, program: str, words: list[str], seconds: float = 3600.0, **options: Any) -> Any:
        """Run a program of ours in an empty folder; its last word is the file that it leaves its rows in."""
        home = self.work / "programs" / "-".join([program.rpartition(".")[2].replace(":", "-"), *words[:2]])
        shutil.rmtree(home, ignore_errors=True)
        (home / "here").mkdir(parents=True)
        found = home / "rows.json"
        request = {
            "program": program,
            "words": [*words, str(found)],
            "cwd": str(home / "here"),
            "root": str(home / "here"),
            "out": str(home / "out.txt"),
            "err": str(home / "err.txt"),
            "log": str(home / "moments.log"),
            "env": {"GAPBRIDGE_CACHE": str(self.work / "empty-cache")},
            **options,
        }
        code = self.server.start(request).wait(seconds)
        if code != 0 or not found.is_file():
            error = (home / "err.txt").read_text(encoding="utf-8", errors="replace")
            raise Hung(f"{program} {words} ends with {code}: {error[-600:]}")
        rows = json.loads(found.read_text(encoding="utf-8"))
        shutil.rmtree(home)
        return rows


def _dealt(variants: list[Variant], count: int, names: tuple[str, ...]) -> Iterator[tuple[Variant, int]]:
    """Which variant each case takes: in turn, as often as its share; two processes only for long campaigns."""
    chosen = [variant for variant in variants if not names or variant.name in names]
    shares = [variant for variant in chosen if variant.share > 0]
    total = sum(variant.share for variant in shares)
    plan = [(variant, math.ceil(count * variant.share / total)) for variant in shares]
    if count >= 100:
        plan += [(variant, 3) for variant in chosen if variant.processes > 1]
    turns = max((times for _, times in plan), default=0)
    for turn in range(turns):
        for variant, times in plan:
            # spread evenly, so that a campaign that is cut short has seen every variant
            first, last = turn * times // turns, (turn + 1) * times // turns
            yield from ((variant, number) for number in range(first, last))
