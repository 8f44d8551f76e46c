"""Protection of the pool: a limit for concurrent requests, a warning when the pool fills."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypedDict

from sqlalchemy import event
from sqlalchemy.pool import Pool

from rowsignal.exceptions import PoolTimeoutError
from rowsignal.orm.request_sessions.engine_binding import EngineBinding
from rowsignal.orm.request_sessions.exception_handlers import (
    ASGIApp,
    ASGIScope,
    Message,
    Receive,
    Send,
    answer,
)
from rowsignal.orm.request_sessions.pools import check_seconds, pool_status
from rowsignal.orm.request_sessions.slots import Slots

logger = logging.getLogger(__name__)

BODY = b'{"detail": "Database request capacity exhausted"}'


class PoolLimits(TypedDict, total=False):
    """Options of the middleware that protect the pool; all are off by default.

    - `max_concurrent_requests`: requests at the same time; a further request waits for
      `request_queue_timeout` seconds (0.1) and then gets a 503, or the response of the
      application's handler for `PoolTimeoutError`.
    - `pool_warn_threshold`: log a warning, at most every `pool_warn_interval` seconds (10), when
      this share of the pool, above 0 and up to 1, is in use.
    """

    max_concurrent_requests: int | None
    request_queue_timeout: float
    pool_warn_threshold: float | None
    pool_warn_interval: float


@dataclass(frozen=True)
class Limits:
    """The same options, checked and with defaults."""

    max_concurrent_requests: int | None = None
    request_queue_timeout: float = 0.1
    pool_warn_threshold: float | None = None
    pool_warn_interval: float = 10.0

    def __post_init__(self) -> None:
        check_seconds("request_queue_timeout", self.request_queue_timeout)
        check_seconds("pool_warn_interval", self.pool_warn_interval)
        limit, threshold = self.max_concurrent_requests, self.pool_warn_threshold
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(
                f"max_concurrent_requests={limit!r} must be a whole number, at least 1."
            )
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"pool_warn_threshold={threshold!r} must be above 0 and at most 1.")

    def make_queue(self, binding: EngineBinding) -> "RequestQueue | None":
        """Return the queue of requests; None without a limit."""
        if self.max_concurrent_requests is None:
            return None
        slots = Slots(self.max_concurrent_requests, binding.pool_status)
        return RequestQueue(slots, self.request_queue_timeout)

    def watch(self, binding: EngineBinding) -> None:
        """Register the warning for an engine's pool, if it is enabled."""
        if self.pool_warn_threshold is None or binding.warns_when_full:
            return
        binding.warns_when_full = True
        PoolWarning(self.pool_warn_threshold, self.pool_warn_interval).watch(binding.engine.pool)


class RequestQueue:
    """Limits the requests served at once; a request ends with the last byte of its response."""

    def __init__(self, slots: Slots, timeout: float) -> None:
        self._slots = slots
        self._timeout = timeout

    async def serve(self, app: ASGIApp, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Run an application for one request, once there is a place."""
        try:
            await self._slots.take(self._timeout)
        except PoolTimeoutError as error:
            if not await answer(scope, receive, send, error):
                await _refuse(send, error)
            return
        place = Place(self._slots)
        try:
            await app(scope, receive, place.freed_by(send))
        finally:
            # An application may fail, or never send a last message.
            place.free()


class Place:
    """The place of one request, returned once."""

    def __init__(self, slots: Slots) -> None:
        self._slots: Slots | None = slots

    def freed_by(self, send: Send) -> Send:
        """Return a `send` that returns the place after the response's last message."""

        async def send_and_free(message: Message) -> None:
            await send(message)
            if _is_last(message):
                self.free()

        return send_and_free

    def free(self) -> None:
        """Return the place; idempotent."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.give()


class PoolWarning:
    """Logs a warning when a pool fills, at most once per interval."""

    def __init__(self, threshold: float, interval: float) -> None:
        self._threshold = threshold
        self._interval = interval
        self._next = float("-inf")

    def watch(self, pool: Pool) -> None:
        """Check the pool at each checkout."""

        def check(*_: object) -> None:
            self._check(pool_status(pool))

        event.listen(pool, "checkout", check)

    def _check(self, status: Mapping[str, Any]) -> None:
        saturation, now = status["saturation"], monotonic()
        if saturation is None or saturation < self._threshold or now < self._next:
            return
        self._next = now + self._interval
        logger.warning(
            "%d of the pool's %d connections are in use: requests will wait when none is left",
            status["checked_out"],
            status["capacity"],
        )


def _is_last(message: Message) -> bool:
    # A file that is sent by its path has no messages of a body (ASGI, path send extension).
    if message["type"] == "http.response.pathsend":
        return True
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _refuse(send: Send, error: PoolTimeoutError) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
        (b"retry-after", str(error.retry_after).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
