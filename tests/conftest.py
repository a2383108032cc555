"""Fixtures for every test: no network, and nothing left behind: environment, threads, processes, process groups."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nursery import Nursery

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
os.environ.update(OFFLINE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

# set on purpose by the libraries, once for the whole process
ALLOWED_KEYS = {
    "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "PYGAME_HIDE_SUPPORT_PROMPT",
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "PYTEST_VERSION",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "SDL_AUDIODRIVER",  # by PettingZoo
    "TF2_BEHAVIOR",
    "TF_CPP_MIN_LOG_LEVEL",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
}
# threads of libraries that live as long as the process
ALLOWED_THREADS = ("TMonitor", "tqdm", "QueueFeederThread", "QueueManagerThread", "ThreadPoolExecutor", "asyncio")


@pytest.fixture(scope="session", autouse=True)
def unhurried_disk() -> Iterator[None]:
    """Files are not forced to the disk: no test pulls the plug, and a run folder would wait for a dozen of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)  # what is no open file fails as before
        yield


@pytest.fixture(autouse=True)
def environment_police() -> Iterator[None]:
    """Restore the environment, and fail a test that leaves a variable behind."""
    before = dict(os.environ)
    yield
    left = {key for key in os.environ if os.environ[key] != before.get(key)} - ALLOWED_KEYS
    os.environ.clear()
    os.environ.update(before)
    assert not left, f"the test leaves these environment variables behind: {sorted(left)}"


@pytest.fixture(autouse=True)
def signal_police() -> Iterator[None]:
    """Restore the signal handlers, and fail a test that leaves one behind (Lightning's own are restored silently)."""
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}
    yield
    after = {number: signal.getsignal(number) for number in watched}
    for number, handler in before.items():
        signal.signal(number, handler)
    left = [
        number.name
        for number in watched
        if after[number] is not before[number]
        and getattr(after[number], "__module__", "").startswith(("recipes", "tests"))
    ]
    assert not left, f"the test leaves a handler behind for {left}"


@pytest.fixture(autouse=True)
def process_group_police() -> Iterator[None]:
    """Destroy the process group, and fail a test that leaves one behind."""
    yield
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    torch.distributed.destroy_process_group()
    pytest.fail("the test leaves a torch.distributed process group behind")


@pytest.fixture(autouse=True)
def thread_police() -> Iterator[None]:
    """Fail a test that leaves a thread of its own behind."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 2.0
    while (left := _new_threads(before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"the test leaves these threads behind: {left}"


def _new_threads(before: set[threading.Thread]) -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread not in before and thread.is_alive() and not thread.name.startswith(ALLOWED_THREADS)
    ]


@pytest.fixture(autouse=True)
def child_police() -> Iterator[None]:
    """Fail a test that leaves a child process behind."""
    before = _children()
    yield
    deadline = time.monotonic() + 2.0
    while (left := _children() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"the test leaves these child processes behind: {sorted(left)}"


def _children() -> set[str]:
    """Return command lines and ids of the living children, where the system tells them (/proc)."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # takes nothing from whoever waits for one
    except ChildProcessError:  # there is none, and most tests need no look at every process of the machine
        return set()
    mine, found = str(os.getpid()).encode(), set()
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/stat", "rb", buffering=0) as stat:
                fields = stat.read(4096).rpartition(b")")[2].split()
            if fields[1] != mine or fields[0] == b"Z":
                continue
            command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it ended while we looked
            continue
        if "resource_tracker" not in command and "semaphore_tracker" not in command:
            found.add(f"{number}: {command}")
    return found


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Processes of their own that need not import torch and its like anew."""
    made = Nursery()
    yield made
    made.close()


def pytest_configure(config: pytest.Config) -> None:
    """Accept the one warning that lightning 2.6 provokes in torch 2.14 at every fit."""
    config.addinivalue_line("filterwarnings", "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
