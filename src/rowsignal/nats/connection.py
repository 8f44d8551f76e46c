"""The connection to NATS: the caller's, or one that is opened and closed here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import errors as js_errors

logger = logging.getLogger("rowsignal.relay")

PING_INTERVAL = 2
CLOSE_TIMEOUT = 1.0
RECONNECT_WAIT = 0.25  # nats-py takes fractions, whatever its annotation says
# The path or the servers are not there just now, or JetStream is electing: trying again may help.
OUTAGES = (NatsError, js_errors.Error, OSError, TimeoutError)

Result = TypeVar("Result")


class CancellableClient(Client):
    """A client whose requests end when their task is cancelled.

    nats-py awaits answers by `asyncio.wait_for`, which in Python 3.11 drops a cancellation that
    arrives together with the answer: a loop of requests would never end.
    """

    async def connect(self, *arguments: Any, **options: Any) -> None:
        """Connect to a server."""
        await heeding_cancellation(super().connect(*arguments, **options))

    async def request(self, *arguments: Any, **options: Any) -> Msg:
        """Send a request, and wait for the answer."""
        return await heeding_cancellation(super().request(*arguments, **options))

    async def flush(self, *arguments: Any, **options: Any) -> None:
        """Wait until the server has taken what was sent."""
        await heeding_cancellation(super().flush(*arguments, **options))


async def heeding_cancellation(work: Awaitable[Result]) -> Result:
    """Await something; raise `CancelledError` for a cancellation that it has dropped."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    result = await work
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def servers_of(urls: str) -> list[str]:
    """Return the servers of an address: several stand with commas between them."""
    return [server.strip() for server in urls.split(",")]


async def connect_once(
    urls: str,
    name: str,
    *,
    lost: Callable[[], Awaitable[None]],
    failed: Callable[[Exception], Awaitable[None]],
    timeout: float,
) -> Client:
    """Connect to one of the servers, each tried once; `lost` is called when it is gone.

    For a caller that connects anew by itself, because it has to read again what it missed.
    """
    client = CancellableClient()
    try:
        async with asyncio.timeout(timeout):
            await client.connect(
                servers=servers_of(urls),
                name=name,
                allow_reconnect=True,  # without, nats-py would try the first server alone
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                ping_interval=PING_INTERVAL,
                disconnected_cb=lost,
                closed_cb=lost,
                error_cb=failed,
            )
    except BaseException:
        if client.is_connecting or client.is_connected:  # else there is nothing that could close
            await close(client)
        raise
    return client


async def close(client: Client) -> None:
    """Close a connection, whatever its server does: one that was stopped reads nothing."""
    with suppress(TimeoutError, OSError, NatsError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await client.close()


@asynccontextmanager
async def connected(nats: str | Client, name: str) -> AsyncIterator[Client]:
    """Yield a connected client; one for a URL waits as long as it takes, and reconnects for ever.

    Several servers stand in one URL with commas between them.
    """
    if isinstance(nats, Client):
        yield nats
        return
    client = CancellableClient()
    try:
        await client.connect(
            servers=servers_of(nats),
            name=name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT,
            ping_interval=PING_INTERVAL,
            error_cb=_failed,
            disconnected_cb=_disconnected,
            reconnected_cb=_reconnected,
        )
        yield client
    finally:
        await close(client)


async def _failed(error: Exception) -> None:
    logger.debug("the connection to NATS: %s: %s", type(error).__name__, error)


async def _disconnected() -> None:
    logger.warning("the connection to NATS is lost")


async def _reconnected() -> None:
    logger.info("NATS is connected again")
