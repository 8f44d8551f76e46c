"""The connection to NATS: the caller's, or one that is opened and closed here."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import errors as js_errors

logger = logging.getLogger("rowsignal.relay")

PING_INTERVAL = 2
RECONNECT_WAIT = 0.25  # nats-py takes fractions, whatever its annotation says
# The path or the servers are not there just now, or JetStream is electing: trying again may help.
OUTAGES = (NatsError, js_errors.Error, OSError, TimeoutError)


@asynccontextmanager
async def connected(nats: str | Client, name: str) -> AsyncIterator[Client]:
    """Yield a connected client; one for a URL waits as long as it takes, and reconnects for ever.

    Several servers stand in one URL with commas between them.
    """
    if isinstance(nats, Client):
        yield nats
        return
    client = Client()
    try:
        await client.connect(
            servers=[server.strip() for server in nats.split(",")],
            name=name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT,  # type: ignore[arg-type]  # see there
            ping_interval=PING_INTERVAL,
            error_cb=_failed,
            disconnected_cb=_disconnected,
            reconnected_cb=_reconnected,
        )
        yield client
    finally:
        await client.close()


async def _failed(error: Exception) -> None:
    logger.debug("the connection to NATS: %s: %s", type(error).__name__, error)


async def _disconnected() -> None:
    logger.warning("the connection to NATS is lost")


async def _reconnected() -> None:
    logger.info("NATS is connected again")
