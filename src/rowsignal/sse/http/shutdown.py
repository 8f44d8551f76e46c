"""Shutdown of streams when the server is told to stop, not when it has stopped.

Servers wait for open responses before they tell the application of the shutdown (ASGI's lifespan
comes last), each in its own way. What they have in common is the signal that they get.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger("rowsignal.sse")

CLOSING_TIMEOUT = 2.0
# SIGQUIT is what gunicorn sends its workers on Ctrl-C.
NAMES = ("SIGINT", "SIGTERM", "SIGQUIT")


async def end_in_time(end: Callable[[], Awaitable[object]]) -> None:
    """Await a closing task with a timeout, so that a hanging database cannot block the exit."""
    ending = asyncio.ensure_future(end())
    done, _ = await asyncio.wait({ending}, timeout=CLOSING_TIMEOUT)
    if done:
        await ending
    else:
        ending.cancel()
        logger.warning(
            "a database connection of the streams did not close within %g s", CLOSING_TIMEOUT
        )


@contextmanager
def on_stop_signal(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` in the running event loop when a signal tells the process to stop.

    Existing handlers are called as well; a signal without a handler is left alone. Only the main
    thread may set handlers: elsewhere the function does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    chained = {number: Chained(close, signal.getsignal(number)) for number in numbers}
    chained = {number: it for number, it in chained.items() if callable(it.before)}
    handlers = {number: signal.signal(number, it.handle) for number, it in chained.items()}
    try:
        yield
    finally:
        for number, before in handlers.items():
            # Another handler may have been set in front since.
            if signal.getsignal(number) == chained[number].handle:
                signal.signal(number, before)


class Chained:
    """A signal handler in front of another, with the attributes of that handler's server."""

    def __init__(self, close: Callable[[], None], before: Any) -> None:
        self.before = before
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._server: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)

    @property
    def should_exit(self) -> bool:
        """Tell whether uvicorn, if it is the server, is shutting down."""
        return bool(getattr(self._server, "should_exit", False))

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Start the shutdown, then call the other handler."""
        if not self._loop.is_closed():
            # A signal interrupts any bytecode: the loop must not be entered here.
            self._loop.call_soon_threadsafe(self._stop)
        self.before(number, frame)

    def _stop(self) -> None:
        self._close()
        # uvicorn's worker for gunicorn knows nothing of SIGQUIT, and would be killed after 30 s.
        if hasattr(self._server, "should_exit"):
            self._server.should_exit = True
