"""A process that has imported everything once and forks a child for each run, so that a tiny run takes a second.

The server itself never computes: it has no threads, and a fork of it is as good as a new interpreter.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
IMPORTS = (
    "torch",
    "lightning.pytorch",
    "lightning.pytorch.loggers",
    "torchmetrics",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "peft",
    "safetensors.torch",
    "pandas",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "tensorboard",
    "torch.utils.tensorboard",
    "jsonargparse",
    "timm",
    "recipes.run",
    "recipes.running.execute",
    "recipes.running.trainer",
    "recipes.running.callbacks",
    "recipes.running.resume",
    "recipes.merge.recipe",
    "recipes.merge.finetune",
    "recipes.distill.recipe",
    "recipes.hpo.recipe",
    "recipes.csp.recipe",
    "recipes.explain.recipe",
    "recipes.data.text_module",
    "distill.module",
    "distill.data",
    "twinmerge.module",
    "twinmerge.artefact",
    "twinmerge.folders",
    "rl.hpo.module",
    "rl.hpo.data",
    "rl.csp.module",
    "rl.csp.data",
    "rl.envs.switched_lqr",
    "rl.envs.inventory",
    "rl.envs.vault_maze",
    "rl.envs.check",
    "rl.envs.newsvendor",
    "rl.csp.baselines",
    "rl.csp.worst_case",
    "recipes.csp.report",
    "recipes.hpo.report",
    "sklearn.datasets",
    "timm.models",
    "distill.networks",
    "distill.cached_data",
    "torchvision.transforms.v2",
    "PIL.Image",
    "tensorboard.summary.writer.event_file_writer",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Hung(Exception):  # noqa: N818 (it is an answer)
    """A run did not end in its time."""


class Run:
    """A child of the server that is at work.

    Args:
        server: Its server.
        process: Its number.
    """

    def __init__(self, server: "Server", process: int) -> None:
        self._server, self.process = server, process

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code, or the negative number of the signal that ended it.

        Raises:
            Hung: After this many seconds; the child and its children are killed.
        """
        return self._server._wait(self.process, seconds)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when the child has ended."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(self.process, number)
            else:
                os.kill(self.process, number)


class Server:
    """A client's end of the server; to be used in a `with` block.

    Args:
        hashes: PYTHONHASHSEED of the server: with another one, sets of strings have another order.
    """

    def __init__(self, hashes: int = 0) -> None:
        self._hashes = hashes
        self._ended: dict[int, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            **OFFLINE,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONHASHSEED": str(self._hashes),
        }
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._answer(600.0) is None:
            raise Hung("the server does not start")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, request: dict[str, Any]) -> Run:
        """Begin a run; see `tests.reliability.child.run` for what a request holds."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while "started" not in (answer := self._answer(60.0) or {}):
            if not answer:
                raise Hung("the server does not answer")
            self._ended[answer["ended"]] = answer["code"]
        return Run(self, answer["started"])

    def _wait(self, process: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while process not in self._ended:
            answer = self._answer(deadline - time.monotonic())
            if answer is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                while process not in self._ended:
                    answer = self._answer(60.0)
                    self._ended[answer["ended"]] = answer["code"]
                raise Hung(f"process {process} was at work for {seconds:.0f} s")
            self._ended[answer["ended"]] = answer["code"]
        return self._ended.pop(process)

    def _answer(self, seconds: float) -> Any:
        """The next answer; None when none came in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(handle, 2**16)
            if not data:
                raise RuntimeError("the server has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def _serve() -> None:
    """Answer requests, one JSON object a line, until the input ends.

    Lines are read and written unbuffered: a forked child must not inherit half a line.
    """
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    for name in IMPORTS:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    from tests.reliability import child

    answers = os.dup(1)
    os.dup2(2, 1)  # nothing but answers goes to the client
    _tell(answers, {"ready": os.getpid()})
    children: set[int] = set()
    rest = b""
    while True:
        if select.select([0], [], [], 0.02 if children else None)[0]:
            data = os.read(0, 2**16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                process = _fork(json.loads(line), child.run)
                children.add(process)
                _tell(answers, {"started": process})
        for process in [*children]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                children.discard(process)
                _tell(answers, {"ended": process, "code": os.waitstatus_to_exitcode(status)})
    for process in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    os._exit(0)  # nothing to tidy up, and much to tear down


def _fork(request: dict[str, Any], work: Any) -> int:
    process = os.fork()
    if process == 0:
        os.setsid()
        code = 98
        try:
            code = work(request)
        finally:
            os._exit(code)
    return process


def _tell(handle: int, answer: dict[str, Any]) -> None:
    os.write(handle, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve()
