"""A tiny causal twin folder with a tokenizer, and the front on a port of its own."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import twinmerge
from tests.twinmerge import tiny

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(61))]
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w0{% endif %}"


def tokenizer() -> Any:
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))  # noqa: S106
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106
    made.chat_template = TEMPLATE
    return made


def make_twin(folder: Path, router: bool = True, size: float = 0.6) -> Path:
    """A twin of matrix-only experts whose mixtures differ from prompt to prompt."""
    model = tiny.llama()
    experts = [{k: v for k, v in e.items() if isinstance(v, tuple)} for e in tiny.differences(model, size=size)]
    experts = [{k: v for k, v in e.items() if "embed" not in k and "lm_head" not in k} for e in experts]
    twin = twinmerge.attach(model, tiny.TASKS, experts, tiny.router(32, temperature=0.1) if router else None).eval()
    twin.generation_config.update(eos_token_id=2, pad_token_id=0)
    return twinmerge.save(twin, folder, tokenizer=tokenizer())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twin(tmp_path_factory.mktemp("twin") / "twin")


@contextlib.contextmanager
def listening(app: Any) -> Any:
    """The address of an application that uvicorn serves in a thread."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def texts(count: int, seed: int = 0) -> list[str]:
    draws = torch.randint(3, 60, (count, 6), generator=torch.Generator().manual_seed(seed))
    return [" ".join(WORDS[i] for i in row[: 3 + k % 4]) for k, row in enumerate(draws.tolist())]
