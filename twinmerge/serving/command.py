"""The command `gapbridge serve FOLDER`: an OpenAI-compatible server that routes every prompt to its own mixture."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from transformers import PreTrainedTokenizerBase

from twinmerge.errors import CheckpointError
from twinmerge.twin_mixin import TwinMixin

if TYPE_CHECKING:
    from twinmerge.serving.front import Engine

_NEEDED = ("fastapi", "uvicorn", "httpx")
_LOCAL = ("127.0.0.1", "::1", "localhost")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"gapbridge serve: {message}; see gapbridge serve --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gapbridge serve",
        description="Serve a causal twin folder: every prompt is routed and answered under its own mixture.",
        epilog="Words after -- are options of vLLM, such as --gpu-memory-utilization 0.8.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a twin folder")
    add("--host", default="127.0.0.1", help="address to listen on; this machine only by default")
    add("--port", type=_port, default=8080, help="port to listen on (8080)")
    add("--engine", choices=["auto", "vllm", "transformers"], default="auto", help="auto: vLLM where it is installed")
    add("--server", metavar="URL", help="a running vLLM server with the plug-in, instead of starting one")
    add("--mixtures", type=Path, metavar="DIR", help="that server's GAPBRIDGE_MIXTURES")
    add("--vllm-python", default=sys.executable, metavar="PYTHON", help="of another environment that has vLLM")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: as stored")
    add("--device", default="cpu", help="of the router, and of the twin without vLLM, such as cuda (cpu)")
    add("--batch", type=_count, default=8, help="prompts of one batch without vLLM (8)")
    add("--names", type=_count, default=64, help="mixtures that vLLM holds at most (64)")
    add("--requests", type=_count, default=256, help="requests in work at once, more get 429 (256)")
    add("--conversations", type=_count, default=4096, help="conversations whose mixture is kept (4096)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if _count(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port; give one from 1 to 65535")
    return int(text)


def main(words: Sequence[str]) -> int:
    """Serve until interrupted; return the exit code: 0 ended, 1 cannot serve, 2 a wrong command line.

    Args:
        words: of the command line, after `serve`.
    """
    split = list(words).index("--") if "--" in words else len(words)
    options = _parser().parse_args(list(words)[:split])
    try:
        serve(options, list(words)[split + 1 :])
    except (CheckpointError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def serve(options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Load the folder, start what answers, and listen.

    Raises:
        CheckpointError: when the folder cannot be served.
        RuntimeError: when a package is missing or vLLM does not start.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise RuntimeError(
            f"gapbridge serve needs {', '.join(missing)}; install them with: pip install 'gapbridge[serve]'"
        )
    import uvicorn

    from twinmerge.serving.asking import Limits
    from twinmerge.serving.front import create_app

    if options.host not in _LOCAL:
        print(f"listening on {options.host}: whoever reaches it may use it, it asks for no key", file=sys.stderr)
    _kind(options, extra)
    _try_port(options.host, options.port)
    with ExitStack() as stack:
        twin, tokenizer = load(options.folder, options.dtype, options.device)
        context = int(getattr(twin.config, "max_position_embeddings", 2048))
        engine = _engine(options, extra, twin, tokenizer, context, stack)
        limits = Limits(context, options.requests, conversations=options.conversations)
        app = create_app(engine, twin, tokenizer, limits)
        print(f"{options.folder} answers by {engine.name} on http://{options.host}:{options.port}/v1", file=sys.stderr)
        uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


def _try_port(host: str, port: int) -> None:
    """Say that nobody can listen there before a model is read and a server started."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RuntimeError(
            f"{host}, port {port}, cannot be listened on ({error.strerror}); give another --host or --port."
        ) from error


def load(folder: Path, dtype: str, device: str) -> tuple[TwinMixin, PreTrainedTokenizerBase]:
    """The routed twin and its tokenizer.

    Raises:
        CheckpointError: for a folder that is no twin of a causal language model, or has no tokenizer.
    """
    from transformers import AutoTokenizer

    from twinmerge.artefact import MANIFEST, load as load_twin

    if (folder / "merged" / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is the folder of a run; serve the twin in it, {folder / 'merged'}.")
    twin = load_twin(folder, dtype=dtype)
    if not hasattr(twin, "lm_head") and twin.get_output_embeddings() is None:
        raise CheckpointError(
            f"{folder} holds a {twin.__class__.__name__}, which generates no text; serve a causal twin."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer; save the twin with tokenizer=<the base>.") from error
    twin.to(device)  # type: ignore[arg-type]  # transformers wraps the method, and its types are lost
    return twin, tokenizer


def _kind(options: argparse.Namespace, extra: Sequence[str]) -> str:
    """What will answer: `server`, a running vLLM, `vllm`, one that is started here, or `transformers`.

    Raises:
        RuntimeError: when the options name what is not there, or do not belong together.
    """
    if options.server is not None:
        if options.mixtures is None:
            raise RuntimeError("--server needs --mixtures, the folder that the server's GAPBRIDGE_MIXTURES names.")
        return "server"
    here = options.vllm_python != sys.executable or importlib.util.find_spec("vllm") is not None
    if options.engine == "vllm" and not here:
        raise RuntimeError(
            "vllm is not installed here; install it, name its environment by --vllm-python, or leave --engine out."
        )
    if options.engine == "transformers" or not here:
        if extra:
            words = " ".join(extra)
            raise RuntimeError(
                f"'{words}' is meant for vLLM, and transformers answers here; leave out -- and the rest."
            )
        return "transformers"
    if shutil.which(options.vllm_python) is None:
        raise RuntimeError(f"--vllm-python {options.vllm_python} is no program; name the Python that has vLLM.")
    return "vllm"


def _engine(
    options: argparse.Namespace,
    extra: Sequence[str],
    twin: TwinMixin,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    stack: ExitStack,
) -> Engine:
    """What answers, started."""
    from twinmerge.serving.transformers_engine import TransformersEngine
    from twinmerge.serving.vllm_engine import VllmEngine
    from twinmerge.serving.vllm_server import running

    kind = _kind(options, extra)
    if kind == "server":
        return VllmEngine(options.server, options.mixtures, options.names)
    if kind == "transformers":
        return TransformersEngine(twin, tokenizer, context, options.batch)
    # vLLM's own `auto` would serve weights in float32 as float16 or bfloat16.
    more = ["--dtype", str(twin.dtype).removeprefix("torch."), *extra]
    server = stack.enter_context(running(options.folder, names=options.names, python=options.vllm_python, extra=more))
    return VllmEngine(server.address, server.cache, options.names)
