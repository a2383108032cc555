"""The OpenAI-compatible front: routes every prompt by the shared expert and has it answered under its mixture."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, cast

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from twinmerge.serving.asking import EXPERT, ROUTED, SHARED, Asked, Limits, RequestError, read
from twinmerge.serving.batching import Batcher
from twinmerge.serving.mixtures import in_parts
from twinmerge.serving.packed import Packed
from twinmerge.twin_mixin import TwinMixin
from twinmerge.twin_parts import Router, masked_mean

Parts = tuple[int, ...]
_EXIT = "gapbridge.exit"
log = logging.getLogger(__name__)


class Engine(Protocol):
    """What answers prompts under a mixture.

    Attributes:
        name: `vllm` or `transformers`.
    """

    name: str

    async def start(self) -> None:
        """Begin to work in the running event loop."""

    async def stop(self) -> None:
        """End; requests in work are given up."""

    async def trouble(self) -> str | None:
        """What keeps it from answering, None when nothing does."""

    async def answer(self, asked: Asked, parts: Parts | None, leaving: AsyncExitStack) -> Response:
        """The answer under a mixture in 64ths, None for the shared expert; `leaving` is closed after it was sent."""


class PromptRouter:
    """The mixture of every prompt, computed by the shared expert in batches of prompts that arrive together.

    In float32 on a CPU, where every token of padding costs what a token costs, the prompts are laid end to end in rows
    of up to `row` tokens, if the model keeps such prompts apart: that is tried on two prompts first.

    Args:
        twin: the routed model.
        size: prompts of one batch.
        row: tokens of one row; a longer prompt has a row of its own.
    """

    def __init__(self, twin: TwinMixin, size: int = 16, row: int = 1024) -> None:
        self.twin, self.row = twin, row
        self.batches: Batcher[list[int], Parts] = Batcher(self.weigh, size, wait=0.002)
        self.packs = twin.router is not None and twin.router_reads == "last" and self._keeps_apart()
        self.quick = Packed(getattr(twin, twin.base_model_prefix, twin))  # the router reads no vocabulary's head

    def weigh(self, prompts: Sequence[list[int]]) -> list[Parts]:
        """Mixtures in 64ths; padding and company do not move the router."""
        with torch.inference_mode(), self.quick:
            weights = self._packed(prompts) if self.packs else self._padded(prompts)
        return [in_parts(row) for row in weights.tolist()]

    def _padded(self, prompts: Sequence[list[int]]) -> Tensor:
        longest = max(map(len, prompts))
        ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=self.twin.device)
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts], device=self.twin.device)
        return self.twin.route(ids, mask)

    def _packed(self, prompts: Sequence[list[int]]) -> Tensor:
        rows: list[list[list[int]]] = [[]]
        for prompt in prompts:
            if rows[-1] and sum(map(len, rows[-1])) + len(prompt) > self.row:
                rows.append([])
            rows[-1].append(prompt)
        features = torch.cat([self._features(row) for row in rows])
        return cast(Router, self.twin.router).weights(features)

    def _features(self, row: Sequence[list[int]]) -> Tensor:
        """The router's features of prompts end to end, told apart by positions that begin anew with each."""
        ids = torch.tensor([[token for prompt in row for token in prompt]])
        places = torch.tensor([[place for prompt in row for place in range(len(prompt))]])
        with self.twin.mixture.use(None):
            tokens = self.twin._hidden(ids, None, position_ids=places)
        return torch.cat([masked_mean(own, None) for own in torch.split(tokens, [len(p) for p in row], 1)])

    def _keeps_apart(self) -> bool:
        """Whether prompts end to end have the features that each has alone."""
        twin = self.twin
        if twin.device.type != "cpu" or twin.dtype != torch.float32 or "position_ids" not in twin._accepted:
            return False
        first, second = [1, 2, 3, 1, 2, 3, 1], [3, 1, 3, 2, 3]
        with torch.inference_mode():
            alone = torch.cat([twin.features(torch.tensor([prompt])) for prompt in (first, second)])
            return torch.allclose(self._features([first, second]), alone, rtol=1e-4, atol=1e-4 * float(alone.std()))


class Conversations:
    """The mixture of every conversation, that of its first prompt; the one unused for longest is forgotten first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[str, asyncio.Task[Parts]] = OrderedDict()

    async def mixture(self, name: str, first: Callable[[], Awaitable[Parts]]) -> Parts:
        """The kept mixture, or that of a conversation's first prompt, which is then kept."""
        task = self.held.pop(name, None)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(first())
        self.held[name] = task
        while len(self.held) > self.limit:
            self.held.popitem(last=False)
        return await asyncio.shield(task)  # a client that leaves does not take the mixture from the others


class Gate:
    """Counts the requests in work, refuses those above the limit, and frees what a request held however it ends."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit, self.inside = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.inside >= self.limit:
            busy = RequestError(
                429, f"{self.inside} requests are in work, the limit of this server; send it again later."
            )
            await JSONResponse(busy.body(), busy.status, {"Retry-After": "1"})(scope, receive, send)
            return
        self.inside += 1
        try:
            async with AsyncExitStack() as leaving:
                scope[_EXIT] = leaving
                await self.app(scope, receive, send)
        finally:
            self.inside -= 1


def create_app(engine: Engine, twin: TwinMixin, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> FastAPI:
    """The front as an ASGI application.

    Args:
        engine: what answers.
        twin: the routed model, which routes the prompts.
        tokenizer: of the folder.
        limits: what is answered at most.
    """
    router, conversations, tasks = PromptRouter(twin), Conversations(limits.conversations), list(twin.tasks)
    started = int(time.time())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await router.batches.start()
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()
            await router.batches.stop()

    app = FastAPI(title="gapbridge serve", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, limit=limits.requests)

    @app.exception_handler(RequestError)
    async def refuse(request: Request, refusal: RequestError) -> Response:
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def nothing_there(request: Request, found: HTTPException) -> Response:
        asked = f"{request.method} {request.url.path}"
        refusal = RequestError(
            found.status_code,
            f"{asked} is not served ({found.detail}); POST to /v1/completions or /v1/chat/completions, or GET "
            "/v1/models or /health.",
        )
        return JSONResponse(refusal.body(), refusal.status, found.headers)

    @app.get("/health")
    async def health() -> Response:
        trouble = await engine.trouble()
        state = {"status": trouble or "ok", "engine": engine.name, "tasks": tasks, "routed": twin.router is not None}
        return JSONResponse(state, 503 if trouble else 200)

    @app.get("/v1/models")
    async def models() -> Response:
        names = [ROUTED, SHARED, *(f"{EXPERT}{task}" for task in tasks)]
        data = [{"id": name, "object": "model", "created": started, "owned_by": "gapbridge"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def mixture(asked: Asked) -> Parts | None:
        if asked.shared or asked.parts is not None:
            return asked.parts
        if twin.router is None:
            raise RequestError(400, f"this twin has no router; ask for '{SHARED}', an expert or a mixture.", "model")
        if asked.conversation is None:
            return await router.batches.submit(asked.ids)
        return await conversations.mixture(asked.conversation, lambda: router.batches.submit(asked.ids))

    async def complete(request: Request, chat: bool) -> Response:
        body = await _body(request, limits.body)

        async def work() -> Response:
            asked = await asyncio.to_thread(read, body, chat, tokenizer, tasks, limits)
            return await engine.answer(asked, await mixture(asked), request.scope[_EXIT])

        try:
            return await _unless_gone(request, work())
        except RequestError:
            raise
        except Exception as error:  # whatever nobody foresaw: the client gets a sentence, the log our frames
            log.exception("a request failed")
            reason = f"{type(error).__name__}: {error}"
            raise RequestError(500, f"the answer failed ({reason}); see the server's log.") from error

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await complete(request, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await complete(request, chat=True)

    return app


async def _body(request: Request, limit: int) -> Any:
    """The JSON of a request, no more than `limit` bytes of it read."""
    read_so_far = bytearray()
    async for chunk in request.stream():
        read_so_far += chunk
        if len(read_so_far) > limit:
            raise RequestError(413, f"the request is larger than the {limit} bytes that this server reads.")
    try:
        body = json.loads(read_so_far)
        json.dumps(body, ensure_ascii=False).encode()  # half a character is none, and no tokenizer takes it
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and lists in lists without end
        raise RequestError(400, f"the body is no JSON ({error}).") from error
    return body


async def _unless_gone(request: Request, work: Any) -> Response:
    """The work's response; the work is given up when the client leaves before it is there."""

    async def gone() -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await request.receive()

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
    if not tasks[0].done() or tasks[0].cancelled():
        return Response(status_code=499)  # nobody reads it
    response: Response = tasks[0].result()
    return response
