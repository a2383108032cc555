"""Answers by a vLLM server that has the plug-in: a mixture is the name of an adapter that the server resolves."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
from fastapi import Response
from fastapi.responses import StreamingResponse

from twinmerge.serving.asking import Asked, RequestError
from twinmerge.serving.mixtures import MixtureCache


class Names:
    """The mixtures that a server knows, least recently used first, with the number of requests that use each.

    A server keeps every name it has resolved until it is told otherwise; above the limit, the one unused for longest is
    unloaded and its folder removed. Names in use are never unloaded, even when they are more than the limit.

    Args:
        client: of the server.
        cache: where the server's plug-in writes mixtures.
        limit: of names.
    """

    def __init__(self, client: httpx.AsyncClient, cache: Path, limit: int) -> None:
        self.client, self.cache, self.limit = client, cache, limit
        self.held: OrderedDict[str, int] = OrderedDict()
        self._lock = asyncio.Lock()

    async def take(self, name: str) -> None:
        """Count one more request that uses a name."""
        async with self._lock:
            self.held[name] = self.held.pop(name, 0) + 1
            idle = [other for other, users in self.held.items() if not users]
            for old in idle[: max(0, len(self.held) - self.limit)]:
                reply = await self.client.post("/v1/unload_lora_adapter", json={"lora_name": old})
                if reply.status_code in (200, 404):  # 404: it was never loaded
                    await asyncio.to_thread(MixtureCache.forget, self.cache, old)
                    del self.held[old]

    def drop(self, name: str) -> None:
        """Count one less."""
        self.held[name] -= 1


class VllmEngine:
    """Passes requests on to a vLLM server.

    Args:
        server: its address, such as http://127.0.0.1:8000.
        cache: where its plug-in writes mixtures (`GAPBRIDGE_MIXTURES`), on a disk that this process sees.
        names: mixtures that the server holds at most.
        timeout: seconds that an answer may keep silent.
    """

    name = "vllm"

    def __init__(self, server: str, cache: Path, names: int = 64, timeout: float = 600.0) -> None:
        self.server, self.cache, self.limit, self.timeout = server, cache, names, timeout

    async def start(self) -> None:
        """Open the connections."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        wait = httpx.Timeout(self.timeout, connect=5.0)
        self.client = httpx.AsyncClient(base_url=self.server, timeout=wait, limits=limits, trust_env=False)
        self.names = Names(self.client, self.cache, self.limit)

    async def stop(self) -> None:
        """Close them; the server stops its work for who leaves."""
        await self.client.aclose()

    async def trouble(self) -> str | None:
        """What keeps the server from answering."""
        try:
            reply = await self.client.get("/health", timeout=5.0)
        except httpx.HTTPError as error:
            return f"the vLLM server at {self.server} does not answer ({type(error).__name__})"
        return None if reply.status_code == 200 else f"the vLLM server at {self.server} says {reply.status_code}"

    async def answer(self, asked: Asked, parts: tuple[int, ...] | None, leaving: AsyncExitStack) -> Response:
        """The server's own answer, in one piece or as a stream."""
        name = asked.served_as(parts)
        path = "/v1/chat/completions" if asked.chat else "/v1/completions"
        try:
            if parts is not None:
                await self.names.take(name)
                leaving.callback(self.names.drop, name)
            request = self.client.build_request("POST", path, json=asked.body | {"model": name})
            reply = await self.client.send(request, stream=True)
            leaving.push_async_callback(reply.aclose)
            kind = reply.headers.get("content-type")
            if asked.body.get("stream") and reply.status_code == 200:
                return StreamingResponse(reply.aiter_raw(), reply.status_code, media_type=kind)
            return Response(await reply.aread(), reply.status_code, media_type=kind)
        except httpx.TimeoutException as error:
            raise RequestError(504, f"the vLLM server kept silent for {self.timeout:g} seconds.") from error
        except httpx.HTTPError as error:
            raise RequestError(
                502, f"the vLLM server does not answer ({type(error).__name__}); see its log."
            ) from error
