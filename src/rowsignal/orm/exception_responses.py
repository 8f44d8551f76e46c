"""Error responses for the errors of sessions and locks."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from rowsignal.exceptions import (
    DeadlockError,
    LockTimeoutError,
    NotFoundError,
    PoolExhaustedError,
)

if TYPE_CHECKING:
    from starlette.responses import Response

# 503: the same request may succeed a moment later
STATUSES: dict[type[Exception], int] = {
    NotFoundError: 404,
    DeadlockError: 503,
    LockTimeoutError: 503,
    PoolExhaustedError: 503,
}
RETRY_AFTER = "1"


def add_exception_handlers(app: Any) -> None:
    """Register handlers that answer errors of rowsignal with fitting statuses.

        add_exception_handlers(app)

    `NotFoundError` becomes 404; `PoolExhaustedError`, `PoolTimeoutError`, `LockTimeoutError` and
    `DeadlockError` become 503 with a `Retry-After`. The body is `{"detail": ...}`, as FastAPI's.
    A handler that the application registers later for one of them replaces it.
    """
    for error, status in STATUSES.items():
        app.add_exception_handler(error, _handler(status))


def _handler(status: int) -> Callable[[Any, Exception], Awaitable["Response"]]:
    # Here, because `import rowsignal` must work where no web framework is installed
    from starlette.responses import JSONResponse  # noqa: PLC0415

    headers = {"Retry-After": RETRY_AFTER} if status == 503 else None

    async def handle(_request: Any, error: Exception) -> "Response":
        return JSONResponse({"detail": str(error)}, status, headers)

    return handle
