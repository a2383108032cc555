"""The front before vLLM: what is passed on, which names the server holds, and what is said when it is gone."""

import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="the extra 'serve' is not installed")

from fastapi import FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse, StreamingResponse  # noqa: E402

from tests.twinmerge.serving.conftest import listening, texts, tokenizer  # noqa: E402
from twinmerge.serving import resolver, vllm_server  # noqa: E402
from twinmerge.serving.asking import Limits  # noqa: E402
from twinmerge.serving.command import load  # noqa: E402
from twinmerge.serving.front import create_app  # noqa: E402
from twinmerge.serving.mixtures import MixtureCache  # noqa: E402
from twinmerge.serving.vllm_engine import VllmEngine  # noqa: E402
from twinmerge.serving.vllm_server import command, environment, running  # noqa: E402


class Stock:
    """As much of a vLLM server with the plug-in as the front sees."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.mixtures, self.known, self.asked, self.healthy = MixtureCache(folder, cache), set(), [], True
        self.app = FastAPI()
        self.app.post("/v1/completions")(self.complete)
        self.app.post("/v1/chat/completions")(self.complete)
        self.app.post("/v1/unload_lora_adapter")(self.unload)
        self.app.get("/health")(lambda: Response(status_code=200 if self.healthy else 500))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if body["model"] != "shared":
            assert self.mixtures.path(body["model"]) is not None
            self.known.add(body["model"])
        if body.get("max_tokens") == 13:
            return JSONResponse({"error": {"message": "13 brings bad luck"}}, 400)
        if body.get("stream"):
            lines = [f"data: {json.dumps({'model': body['model'], 'part': i})}\n\n" for i in range(3)]
            return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")
        return JSONResponse({"model": body["model"], "prompt": body.get("prompt")})

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.known:
            return Response(status_code=404)
        self.known.discard(name)
        return Response(status_code=200)


def released(engine: VllmEngine) -> bool:
    """Whether no name stays held: one is given back after the answer is sent, so soon after the client has it all."""
    end = time.monotonic() + 10
    while any(engine.names.held.values()) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(engine.names.held.values())


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Any:
    stock = Stock(folder, tmp_path / "mixtures")
    twin, words = load(folder, "float32", "cpu")
    with listening(stock.app) as server:
        engine = VllmEngine(server, tmp_path / "mixtures", names=3)
        app = create_app(engine, twin, words, Limits(64))
        with listening(app) as front, httpx.Client(base_url=front, timeout=60, trust_env=False) as client:
            yield stock, engine, client


def test_prompts_are_passed_on_with_their_mixture_and_names_are_bounded(served: Any) -> None:
    stock, engine, client = served
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda t: client.post("/v1/completions", json={"prompt": t, "seed": 7}), texts(24)))
    assert {reply.status_code for reply in replies} == {200}
    names = {reply.json()["model"] for reply in replies}
    assert len(names) > 6
    ids = tokenizer()(texts(1)[0])["input_ids"]
    assert replies[0].json()["prompt"] == ids  # the ids that were routed
    assert all(body["seed"] == 7 for body in stock.asked)
    assert released(engine)  # names in use are kept above the limit
    client.post("/v1/completions", json={"prompt": "w5", "model": "twin@1,2,61"})
    assert len(engine.names.held) <= 3
    assert set(engine.names.held) == stock.known == {path.name for path in stock.mixtures.folder.iterdir()}
    assert released(engine)


def test_shared_experts_streams_chats_and_the_server_s_own_errors(served: Any) -> None:
    stock, engine, client = served
    assert client.post("/v1/completions", json={"prompt": "w5", "model": "shared"}).json()["model"] == "shared"
    assert not engine.names.held
    assert (
        client.post("/v1/completions", json={"prompt": "w5", "model": "expert:mood"}).json()["model"] == "twin@0,0,64"
    )
    with client.stream(
        "POST", "/v1/completions", json={"prompt": "w5", "model": "twin@4,4,56", "stream": True}
    ) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert json.loads(lines[2].removeprefix("data: ")) == {"model": "twin@4,4,56", "part": 2}
    assert lines[-1] == "data: [DONE]"
    messages = [{"role": "user", "content": "w9"}]
    assert client.post("/v1/chat/completions", json={"messages": messages}).json()["model"].startswith("twin@")
    assert stock.asked[-1]["messages"] == messages
    for stream in (False, True):
        refused = client.post("/v1/completions", json={"prompt": "w5", "max_tokens": 13, "stream": stream})
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "13 brings bad luck")
    assert released(engine)


def test_a_server_that_is_ill_or_gone_is_told(served: Any, folder: Path, tmp_path: Path) -> None:
    stock, _, client = served
    assert client.get("/health").json() == {
        "status": "ok",
        "engine": "vllm",
        "tasks": ["spam", "topic", "mood"],
        "routed": True,
    }
    stock.healthy = False
    assert client.get("/health").status_code == 503
    twin, words = load(folder, "float32", "cpu")
    gone = create_app(VllmEngine("http://127.0.0.1:9", tmp_path), twin, words, Limits(64))
    with listening(gone) as front, httpx.Client(base_url=front, timeout=60, trust_env=False) as client:
        reply = client.post("/v1/completions", json={"prompt": "w5"})
        assert reply.status_code == 502
        assert "the vLLM server does not answer (ConnectError)" in reply.json()["error"]["message"]
        assert "http://127.0.0.1:9 does not answer" in client.get("/health").json()["status"]


def test_the_server_s_command_line_and_environment(folder: Path, tmp_path: Path) -> None:
    words = command(folder, 9000, 8, 4, "/env/bin/python", ["--dtype", "float32"])
    assert words[:2] == ["/env/bin/python", "-m"]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert options["--model"] == str(folder)
    assert options["--host"] == "127.0.0.1"
    assert (options["--max-lora-rank"], options["--max-loras"], options["--max-cpu-loras"]) == ("8", "4", "4")
    assert words[-2:] == ["--dtype", "float32"]
    found = environment(folder, tmp_path, 4)
    assert (found[resolver.FOLDER], found[resolver.CACHE]) == (str(folder), str(tmp_path))
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_server_that_ends_is_told(folder: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(RuntimeError, match="ended with code 3 before it answered"), running(folder, python=str(python)):
        pass


def test_a_server_that_does_not_start_leaves_no_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "in_memory", lambda needed: tmp_path)
    with pytest.raises(FileNotFoundError), running(folder, python=str(tmp_path / "none")):
        pass
    assert not list(tmp_path.iterdir())
