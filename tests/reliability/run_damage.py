"""Damage to the folder of an interrupted run, then its resumption: refused in a sentence, or ended as if unbroken."""

import random
import shutil
import signal
from pathlib import Path

from tests.reliability.broken import LONGEST, Breaker, contents_of
from tests.reliability.compare import UNLIKE, UNREAD, differences
from tests.reliability.corruption import KINDS, damage
from tests.reliability.server import Hung
from tests.reliability.variants import Variant

DAMAGED = ("finetune", "merge", "distill", "distill-cached", "hpo", "csp")


def corrupt_run(breaker: Breaker, variant: Variant, number: int) -> dict[str, str]:
    """Damage one file of an interrupted run, or of its cache, and resume it.

    Returns:
        A row as of `tests.reliability.corruption.corrupt`.
    """
    name = f"run-{variant.name}-{number:03d}"
    draw = random.Random(name)
    unbroken = breaker.reference(variant)
    whole = _interrupted(breaker, variant, len(unbroken.moments))
    home = whole.with_name(name)
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(whole, home)
    apart = home.with_name(f"{name}-apart")  # what nobody reads again
    for place in [p for p in (home / "run").rglob("*") if p.is_file() and _unread(p.relative_to(home / "run"))]:
        target = apart / place.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)
    subject = home / draw.choice([part for part in ("run", "run", "cache") if (home / part).is_dir()])
    files = [file for file in subject.rglob("*") if file.is_file()]
    what = damage(subject if files else home / "run", draw.choice(KINDS), draw)
    if apart.is_dir():
        shutil.copytree(apart, home, dirs_exist_ok=True)
        shutil.rmtree(apart)
    row = {"case": name, "what": what, "outcome": "", "said": ""}
    try:
        code = breaker.servers[1].start(breaker.request(variant, home, ["--out", "run", "--resume"])).wait(LONGEST)
    except Hung as hung:
        return row | {"outcome": "raw", "said": str(hung)}
    error = (home / "err.txt").read_text(encoding="utf-8", errors="replace").strip()
    last = error.splitlines()[-1] if error else ""
    if code == 0:
        added = what.removeprefix("add ").removeprefix("./") if what.startswith("add ") else None
        unlike = [d for d in differences(unbroken.contents, contents_of(home)) if added is None or added not in d]
        told = "metrics.csv is not what it was" in error and all("/run/metrics.csv" in d for d in unlike)
        told |= any(f"skipped: checkpoint {p} " in error and all(f"/{p}" in d for d in unlike) for p in _saved(home))
        row |= {"outcome": "harmless" if not unlike else "refused" if told else "undetected"}
        row["said"] = "; ".join(unlike[:2])[:400]
    elif "Traceback" in error or code not in (1, 2) or last.startswith(("the run failed: ", "stopped: ")) or not last:
        row |= {"outcome": "raw", "said": f"code {code}: {last[:350]}"}
    else:
        row |= {"outcome": "refused", "said": last[:400]}
    if row["outcome"] in ("harmless", "refused"):
        shutil.rmtree(home)
    return row


def _saved(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in (home / "run" / "checkpoints").rglob("*.ckpt")]


def _unread(name: Path) -> bool:
    return name.parts[0] in UNREAD or name.name in UNLIKE or name.name.startswith(".")


def _interrupted(breaker: Breaker, variant: Variant, moments: int) -> Path:
    """A run that was killed after two thirds of its moments, made once."""
    home = breaker.work / f"interrupted-{variant.name}"
    if not (home / "killed").is_file():
        home = breaker.home(home.name, variant)
        plan = {"strike": 2 * moments // 3, "signal": signal.SIGKILL}
        code = breaker.servers[0].start(breaker.request(variant, home, ["--out", "run"]) | plan).wait(LONGEST)
        assert code == -signal.SIGKILL, f"{variant.name} was to be killed and ends with {code}"
        (home / "killed").touch()
    return home
