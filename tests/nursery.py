"""Processes of their own that need not import torch and its like anew: they are forked from one that has.

`Nursery` starts `python -m tests.nursery`, which imports the heavy libraries, nothing of this project, and then forks a
process for each program that it is told to run. Such a process has its own standard output, folder and environment, is
the main thread of its interpreter and ends as any other does. What a test says about how an interpreter starts, about
imports or about a launcher needs a `subprocess` instead.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "lightning", "torchmetrics", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
HEAVY += ("peft", "timm", "pandas", "matplotlib.figure")


class Nursery:
    """One process that has imported `HEAVY`, and what it forks."""

    def __init__(self) -> None:
        self._orders = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *programs: Sequence[object], folder: Path, timeout: float = 250, **environment: str
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run programs at the same time and wait for all.

        Args:
            programs: The words after `python`: `-m MODULE` or `-c CODE`, then arguments.
            folder: Where they run.
            timeout: How many seconds they have; what is left then is killed.
            environment: What differs from this process's environment.

        Returns:
            What each of them did, with its output as text.
        """
        return self._run([(words, environment) for words in programs], folder, timeout)

    def ranks(self, *words: object, folder: Path, count: int = 2) -> list[subprocess.CompletedProcess[str]]:
        """Run one program as the processes of one training, as torchrun would start them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
        each = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return self._run([(words, environment) for environment in each], folder, 250)

    def _run(
        self, programs: list[tuple[Sequence[object], dict[str, str]]], folder: Path, timeout: float
    ) -> list[subprocess.CompletedProcess[str]]:
        with tempfile.TemporaryDirectory() as place:
            tasks = []
            for index, (words, environment) in enumerate(programs):
                changed = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
                files = {name: f"{place}/{index}.{name}" for name in ("out", "err")}
                tasks.append({"words": [*map(str, words)], "folder": str(folder), "environment": changed, **files})
            codes = self._ask({"tasks": tasks, "timeout": timeout})
            return [
                subprocess.CompletedProcess(
                    task["words"], code, *(Path(str(task[name])).read_text(encoding="utf-8") for name in ("out", "err"))
                )
                for task, code in zip(tasks, codes, strict=True)
            ]

    def _ask(self, order: dict[str, Any]) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders += 1
        self._process.stdin.write(json.dumps(order | {"number": self._orders}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            number, codes = json.loads(line)
            if number == self._orders:  # an answer that a test did not wait for is not that to the next one
                return codes
        raise RuntimeError("the process that tests fork from has ended")

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def serve() -> dict[str, Any] | None:
    """Fork a process for each task of the orders that are read; return the task in it, and None where orders end."""
    for line in sys.stdin:
        order, children = json.loads(line), []
        for task in order["tasks"]:
            child = os.fork()
            if child == 0:
                return task
            children.append(child)
        print(json.dumps([order["number"], wait(children, order["timeout"])]), flush=True)
    return None


def wait(children: list[int], timeout: float) -> list[int]:
    """Return how each ended, as `subprocess` tells it; whoever has not in so many seconds is killed."""
    last, codes = time.monotonic() + timeout, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > last:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def become(task: dict[str, Any]) -> None:
    """Be the program of a task: its folder, environment, output and words."""
    for name, handle in (("out", 1), ("err", 2)):
        file = os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, handle)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    kind, name, *arguments = task["words"]
    sys.path[:] = ["", *dict.fromkeys([*os.environ["PYTHONPATH"].split(os.pathsep), *sys.path[1:]])]
    if kind == "-m":
        sys.argv = [name, *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - code of our own tests


def end(task: dict[str, Any]) -> NoReturn:
    """Be the program of a task, and end as its interpreter would, but for taking apart all that was imported."""
    code: object = 0
    try:
        become(task)
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # what is imported is not looked through, and so not copied, by every process that is forked
    chosen = serve()
    if chosen is not None:
        end(chosen)
