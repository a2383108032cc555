"""Answers by transformers where there is no vLLM: prompts that wait together are generated as one batch."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import GenerationConfig, PreTrainedTokenizerBase

from twinmerge.serving.asking import Asked, RequestError
from twinmerge.serving.batching import Batcher
from twinmerge.serving.decoding import Job, Sampling, decode, fitting
from twinmerge.twin_mixin import TwinMixin

_READ = frozenset(
    {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed"}
    | {"stop", "stream", "stream_options", "user", "n", "documents", "add_generation_prompt"}
    | {"continue_final_message", "chat_template_kwargs"}
)
# What asks for nothing may be sent, as clients do; anything else that this engine does not do is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "echo": (False,),
    "best_of": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "response_format": ({"type": "text"},),
}


class Text:
    """Tokens of an answer as text, given out as far as no later token can change it.

    Args:
        tokenizer: of the model.
        stops: texts that end the answer and are left out of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.given, self.ended = 0, False

    def add(self, token: int) -> str:
        """The text that a token completes."""
        self.ids.append(token)
        return self._new(self._decoded(), last=False)

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        return self._new(self._decoded(), last=True)

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _new(self, text: str, last: bool) -> str:
        if self.ended:
            return ""
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.ended, safe = True, min(found)
        elif last:
            safe = len(text)
        else:  # a character of several tokens, or the beginning of a stop text
            held = (n for stop in self.stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
            safe = min(len(text.rstrip("\ufffd")), len(text) - max(held, default=0))
        new = text[self.given : safe]
        self.given = max(self.given, safe)
        return new


class TransformersEngine:
    """Generates in batches on the twin itself.

    A batch runs to the end of its longest answer; what arrives meanwhile waits for the next.

    Args:
        twin: the routed model; its generation_config is replaced, so that nobody samples unless a request says so.
        tokenizer: of the folder.
        context: tokens of a prompt and its answer together.
        size: prompts of one batch.
    """

    name = "transformers"

    def __init__(self, twin: TwinMixin, tokenizer: PreTrainedTokenizerBase, context: int, size: int = 8) -> None:
        found = [tokenizer.eos_token_id, getattr(twin.generation_config, "eos_token_id", None)]
        listed = [token for entry in found for token in (entry if isinstance(entry, list) else [entry])]
        self.ends = frozenset(token for token in listed if token is not None)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends, default=0)
        twin.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=sorted(self.ends) or None)
        self.twin, self.tokenizer, self.context = twin, tokenizer, context
        self.batches: Batcher[Job, None] = Batcher(self._work, size)

    async def start(self) -> None:
        """Begin to work in the running event loop."""
        await self.batches.start()

    async def stop(self) -> None:
        """End after the batch in hand."""
        await self.batches.stop()

    async def trouble(self) -> str | None:
        """Nothing keeps it from answering."""
        return None

    def _work(self, jobs: Sequence[Job]) -> list[None]:
        for batch in fitting([job for job in jobs if not job.stopped.is_set()], self.context):
            decode(self.twin, batch, self.ends, self.pad)
        return [None] * len(jobs)

    async def answer(self, asked: Asked, parts: tuple[int, ...] | None, leaving: AsyncExitStack) -> Response:
        """The answer in one piece or as a stream of server-sent events."""
        told = _Told(asked, parts)
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()
        body = asked.body
        job = Job(
            asked.ids,
            parts,
            _length(asked, self.context),
            _sampling(body),
            lambda token: loop.call_soon_threadsafe(tokens.put_nowait, token),
        )
        text = Text(self.tokenizer, _stops(body))
        leaving.callback(job.stopped.set)
        pieces = self._pieces(job, tokens, text)
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(told.stream(pieces, job, text, usage), media_type="text/event-stream")
        return JSONResponse(told.whole("".join([piece async for piece in pieces]), job, text))

    async def _pieces(self, job: Job, tokens: asyncio.Queue[int | None], text: Text) -> AsyncIterator[str]:
        done = asyncio.ensure_future(self.batches.submit(job))
        try:
            while True:
                waiting = asyncio.ensure_future(tokens.get())
                await asyncio.wait([waiting, done], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done() and (done.cancelled() or done.exception()):
                    waiting.cancel()
                    done.result()
                token = await waiting
                if token is None:
                    break
                if piece := text.add(token):
                    yield piece
                if text.ended:
                    break
            if piece := text.rest():
                yield piece
        finally:
            job.stopped.set()
            done.cancel()


class _Told:
    """Wraps an answer as OpenAI words it."""

    def __init__(self, asked: Asked, parts: tuple[int, ...] | None) -> None:
        self.asked = asked
        self.kind = "chat.completion" if asked.chat else "text_completion"
        self.head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": self.kind,
            "created": int(time.time()),
            "model": asked.served_as(parts),
        }

    def usage(self, text: Text) -> dict[str, int]:
        """Tokens of the prompt and of the answer."""
        prompt, answer = len(self.asked.ids), len(text.ids)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def whole(self, said: str, job: Job, text: Text) -> dict[str, Any]:
        """An answer in one piece."""
        answer = {"message": {"role": "assistant", "content": said}} if self.asked.chat else {"text": said}
        choice = {"index": 0, **answer, "logprobs": None, "finish_reason": "stop" if text.ended else job.reason}
        return {**self.head, "choices": [choice], "usage": self.usage(text)}

    async def stream(self, pieces: AsyncIterator[str], job: Job, text: Text, usage: bool) -> AsyncIterator[str]:
        """Server-sent events, a failure among them as an event of its own."""
        if self.asked.chat:
            yield self._event({"role": "assistant", "content": ""}, None)
        try:
            async for piece in pieces:
                yield self._event({"content": piece} if self.asked.chat else piece, None)
        except Exception as error:  # the status was sent long ago
            failed = RequestError(500, f"the answer broke off ({type(error).__name__}: {error}).")
            yield f"data: {json.dumps(failed.body())}\n\n"
            return
        yield self._event({} if self.asked.chat else "", "stop" if text.ended else job.reason)
        if usage:
            yield f"data: {json.dumps({**self._part(), 'choices': [], 'usage': self.usage(text)})}\n\n"
        yield "data: [DONE]\n\n"

    def _part(self) -> dict[str, Any]:
        return {**self.head, "object": f"{self.kind}.chunk" if self.asked.chat else self.kind}

    def _event(self, said: Any, reason: str | None) -> str:
        choice = {"index": 0, "delta" if self.asked.chat else "text": said, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**self._part(), 'choices': [choice]})}\n\n"


def _length(asked: Asked, context: int) -> int:
    given = asked.body.get("max_completion_tokens") or asked.body.get("max_tokens")
    if given is None:  # as OpenAI and vLLM have it
        return context - len(asked.ids) if asked.chat else min(16, context - len(asked.ids))
    return int(given)


def _sampling(body: dict[str, Any]) -> Sampling:
    for key, value in body.items():
        if key not in _READ and value is not None and value not in _NEUTRAL.get(key, ()):
            raise RequestError(
                400,
                f"{key} is {value!r}, which the transformers engine does not do; leave it out, or serve by vLLM.",
                key,
            )
    sampling = Sampling(
        _number(body, "temperature", 1.0, 0.0, 2.0),
        _number(body, "top_p", 1.0, 0.0, 1.0),
        int(_number(body, "top_k", 0, -1, math.inf)),
        None if body.get("seed") is None else int(_number(body, "seed", 0, -(2**63), 2**63 - 1)),
    )
    if not sampling.top_p:
        raise RequestError(400, "top_p is 0; give a number above 0 and up to 1.", "top_p")
    return sampling


def _number(body: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    whole = isinstance(default, int)
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise RequestError(400, f"{key} is {value!r}; give {kind} from {low:g} to {high:g}.", key)
    return value


def _stops(body: dict[str, Any]) -> list[str]:
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(400, "stop is one text or a list of up to 16.", "stop")
    return stops
