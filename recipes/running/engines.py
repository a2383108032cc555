"""Where the runs of a sweep go: processes of this machine, workers of a Dask cluster, or jobs of SLURM by submitit.

Other machines share the working folder and have the same environment. A run that is to stop is told by a file in the
sweep's folder, which every machine sees.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from recipes.errors import RecipeError, RunError

Command = Callable[[Sequence[str], Path], int]  # starts words with a log, waits for their end: the exit code
STOP = ".stop"
_EVERY = 0.2  # seconds between two looks


def run_here(words: Sequence[str], log: str, folder: str, stop: str, threads: int) -> int:
    """Run a command in a folder until it ends, or end it once the stop file is there.

    Args:
        words: The command.
        log: File that takes what it says.
        folder: Working folder.
        stop: The stop file.
        threads: Of OpenMP, where the environment does not say; 0 leaves them.
    """
    given = {"OMP_NUM_THREADS": str(threads)} if threads and "OMP_NUM_THREADS" not in os.environ else {}
    with open(log, "ab") as said:
        process = subprocess.Popen(list(words), cwd=folder, stdout=said, stderr=said, env={**os.environ, **given})
        while True:
            try:
                return process.wait(_EVERY)
            except subprocess.TimeoutExpired:
                if os.path.exists(stop):
                    process.terminate()


def check_engine(text: str | None) -> None:
    """Refuse what `engine` does not know, and one whose library is missing.

    Raises:
        RecipeError: With what is accepted.
    """
    kind, _, rest = (text or "").partition(":")
    if text is not None and not ((kind == "dask" and rest) or kind == "slurm"):
        raise RecipeError(
            f"--on {text}: expected dask:ADDRESS of a scheduler, such as dask:tcp://10.0.0.1:8786, or "
            "slurm:KEY=VALUE,..., such as slurm:slurm_partition=gpu,timeout_min=60"
        )
    library = {"dask": "distributed", "slurm": "submitit"}.get(kind)
    if library and find_spec(library) is None:
        raise RecipeError(f"--on {kind}: {library} is not installed; run: pip install {library}")
    if kind == "slurm":
        _pairs(rest)


@contextmanager
def engine(text: str | None, folder: Path, jobs: int) -> Iterator[Command]:
    """What starts the runs.

    Args:
        text: None for processes here; `dask:ADDRESS` of a scheduler; `slurm:KEY=VALUE,...` with arguments of submitit's
            executor, such as slurm_partition, timeout_min, gpus_per_node and cpus_per_task.
        folder: Of the sweep.
        jobs: Runs at once, which share the cores of this machine.

    Raises:
        RecipeError: As `check_engine`, and for arguments that submitit refuses.
        RunError: When the scheduler does not answer.
    """
    check_engine(text)
    stop = folder.resolve() / STOP
    stop.unlink(missing_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if jobs > 1 and text is None else 0
    here = str(Path.cwd())

    def fixed(words: Sequence[str], log: Path) -> tuple[list[str], str, str, str, int]:
        return list(words), str(log.resolve()), here, str(stop), threads

    kind, _, rest = (text or "").partition(":")
    if text is None:
        yield lambda words, log: run_here(*fixed(words, log))
    elif kind == "dask":
        with _dask(rest) as submit:
            yield lambda words, log: submit(*fixed(words, log))
    else:
        submit = _slurm(rest, folder)
        yield lambda words, log: submit(*fixed(words, log))


@contextmanager
def _dask(address: str) -> Iterator[Callable[..., int]]:
    from distributed import Client

    try:
        client = Client(address, timeout=20)
    except (OSError, TimeoutError, ValueError) as error:
        raise RunError(
            f"--on dask:{address}: the scheduler does not answer ({error}); start it, or correct it"
        ) from error
    with client:
        yield lambda *given: int(client.submit(run_here, *given, pure=False).result())


def _slurm(text: str, folder: Path) -> Callable[..., int]:
    import submitit

    given = _pairs(text)
    cluster = given.get("cluster", "slurm")
    executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
    try:
        executor.update_parameters(**{key: value for key, value in given.items() if key != "cluster"})
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"--on slurm: submitit refuses {text}: {' '.join(str(error).split())}") from error

    def submit(*given: object) -> int:
        job = executor.submit(run_here, *given)
        while not job.done():
            time.sleep(_EVERY)
        return int(job.result())

    return submit


def _pairs(text: str) -> dict[str, int | str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if bad := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise RecipeError(f"--on slurm: expected KEY=VALUE, got {bad[0]}")
    return {key: int(value) if value.isdecimal() else value for key, _, value in pairs}
