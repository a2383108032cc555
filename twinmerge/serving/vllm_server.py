"""Start a vLLM server of a twin folder with the plug-in, wait until it answers, and end it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from twinmerge.serving import resolver
from twinmerge.serving.asking import SHARED
from twinmerge.serving.mixtures import Mixer


@dataclass(frozen=True)
class Server:
    """A vLLM server.

    Attributes:
        address: of its API.
        cache: where its plug-in writes mixtures.
    """

    address: str
    cache: Path


def command(folder: Path, port: int, rank: int, names: int, python: str, extra: Sequence[str]) -> list[str]:
    """The command line of the server.

    Args:
        folder: a twin folder.
        port: on the loopback interface.
        rank: of the largest mixture, as vLLM counts it.
        names: mixtures that the server holds at most.
        python: of the environment that has vLLM.
        extra: further options of vLLM, which come last and so win.
    """
    at_once = min(8, names)
    options = {
        "model": str(folder.resolve()),
        "served-model-name": SHARED,
        "host": "127.0.0.1",
        "port": str(port),
        "max-lora-rank": str(rank),
        "max-loras": str(at_once),
        "max-cpu-loras": str(max(at_once, names)),
        "generation-config": "vllm",  # requests say how to sample; the front has the same defaults without vLLM
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    # `vllm serve` asks for the version of a distribution named vllm, which its builds for CPUs are not.
    return [python, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora", *words, *extra]


def environment(folder: Path, cache: Path, names: int) -> dict[str, str]:
    """What the server and its plug-in read from the environment."""
    mine = {
        resolver.FOLDER: str(folder.resolve()),
        resolver.CACHE: str(cache),
        resolver.LIMIT: str(names + 1024),  # the front holds fewer names idle; those in use may be more than `names`
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # the front unloads names that are no longer needed
    }
    return {**os.environ, **mine}


@contextmanager
def running(
    folder: Path, *, names: int = 64, python: str, extra: Sequence[str] = (), patience: float = 1800.0
) -> Iterator[Server]:
    """A server that answers, ended with the block; its log goes to this process's standard error.

    Args:
        folder: a twin folder.
        names: mixtures that it holds at most.
        python: of the environment that has vLLM and this package.
        extra: further options of vLLM.
        patience: seconds for the server to begin to answer.

    Raises:
        CheckpointError: when the folder's experts cannot be served as adapters.
        RuntimeError: when the server ends before it answers, or does not answer in time.
    """
    mixer = Mixer(folder)
    rank = mixer.server_rank
    port, memory = free_port(), in_memory(names * mixer.nbytes)
    with tempfile.TemporaryDirectory(prefix="gapbridge-mixtures-", dir=memory, ignore_cleanup_errors=True) as place:
        cache = Path(place)
        process = subprocess.Popen(
            command(folder, port, rank, names, python, extra),
            env=environment(folder, cache, names),
            cwd=cache,  # a folder named like a package would be imported instead of it
            stdout=2,
            start_new_session=True,  # its workers end with it
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address, process, patience)
            yield Server(address, cache)
        finally:
            end(process)


def in_memory(needed: int, memory: Path = Path("/dev/shm")) -> Path | None:  # noqa: S108
    """A folder in memory, if four times as much is free there; a disk would be busy with what is soon removed.

    Args:
        needed: bytes.
        memory: the folder, where a system has one.
    """
    return memory if memory.is_dir() and shutil.disk_usage(memory).free >= 4 * needed else None


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], patience: float) -> None:
    """Return when a server answers.

    Args:
        address: of the server.
        process: that will answer.
        patience: seconds.

    Raises:
        RuntimeError: when it ends before it answers, or does not answer in time.
    """
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(
                f"the vLLM server ended with code {process.returncode} before it answered; see its log above."
            )
        try:
            if httpx.get(f"{address}/health", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the vLLM server did not answer within {patience:g} seconds; see its log above.")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for kind, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, kind)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
