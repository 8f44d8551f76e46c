"""Direct writes: bytes are sent to a client without waking the task that serves it."""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

from starlette.types import Send


class PausedWrite(Generator[object, None, None]):
    """A write that waits until the HTTP server takes more bytes; await it to finish it."""

    def __init__(self, writing: Coroutine[object, None, None], pause: object) -> None:
        self._writing = writing
        self._pauses = [pause]  # what the write yielded, and nothing awaits yet

    def __await__(self) -> Generator[object, None, None]:
        return self

    def send(self, value: None) -> object:
        """Go on with the write, to its next pause."""
        return self._pauses.pop() if self._pauses else self._writing.send(value)

    def throw(self, *error: Any) -> object:
        """Raise an error, such as a cancellation, where the write pauses."""
        return self._writing.throw(*error)


class DirectWriter:
    """Sends to one client from any task, as though the task that serves the client did.

    An HTTP server takes nearly every write at once: waking a task costs more than handing over the
    bytes. The write runs in the context of the serving task and as that task, so that time limits
    and context variables of the layers around `send` are theirs, also when the task goes on with a
    paused write (Python manual, Extending asyncio: `_enter_task`). Make it in that task.
    """

    __slots__ = ("_context", "_loop", "_send", "_task")

    def __init__(self, send: Send, context: Context) -> None:
        """Write with `send`, in `context`, the one that the present task runs in."""
        self._send = send
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._task: Any = asyncio.current_task()

    def write(self, chunk: bytes) -> PausedWrite | None:
        """Write bytes while the serving task waits; return the write if it has to be awaited."""
        loop, task, caller = self._loop, self._task, asyncio.current_task()
        writing = self._write(chunk)
        if caller is not None:
            asyncio._leave_task(loop, caller)
        asyncio._enter_task(loop, task)
        try:
            pause = self._context.run(writing.send, None)
        except StopIteration:
            return None
        finally:
            asyncio._leave_task(loop, task)
            if caller is not None:
                asyncio._enter_task(loop, caller)
        return PausedWrite(writing, pause)

    async def _write(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
