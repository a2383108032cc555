"""Requests that arrive together are worked on together: one thread, one batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Gives a function as many of the waiting items as it takes.

    While a batch is worked on, what arrives waits for the next one.

    Args:
        work: from a batch of items to an answer for each; called in a thread of its own, one call at a time.
        size: items of one batch, at least 1.
        wait: seconds that a batch waits for company after its first item.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Answer]], size: int, wait: float = 0.005) -> None:
        self.work, self.size, self.wait = work, size, wait
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End after the batch in hand; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(self, item: Item) -> Answer:
        """The answer to one item, when its batch is done.

        Raises:
            Exception: whatever the work raised, to every item of its batch.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self._queue.put((item, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            if self.size > 1 and self._queue.qsize() < self.size - 1:
                await asyncio.sleep(self.wait)
            while len(batch) < self.size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(item, future) for item, future in batch if not future.cancelled()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self.work, [item for item, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:  # the work's own failure belongs to those who asked
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
