"""Errors as `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from rowsignal.exceptions import (
    AccessDeniedError,
    FilterError,
    NotFoundError,
    NotWatchedError,
    PositionError,
    ReaderLimitError,
    RowSignalError,
    StandbyError,
    UnavailableError,
)

STATUSES: Mapping[type[RowSignalError], HTTPStatus] = {
    AccessDeniedError: HTTPStatus.UNAUTHORIZED,
    FilterError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PositionError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFoundError: HTTPStatus.NOT_FOUND,
    NotWatchedError: HTTPStatus.SERVICE_UNAVAILABLE,
    ReaderLimitError: HTTPStatus.SERVICE_UNAVAILABLE,
    StandbyError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(JSONResponse):
    """One error, as a document; `detail` is a sentence for people."""

    media_type = "application/problem+json"

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
        }
        super().__init__(content, status.value, dict(headers or {}))


def problem_of(error: RowSignalError) -> Problem:
    """Return the answer to a request that failed with this error."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), None)
    if isinstance(error, ReaderLimitError) and error.is_own:
        status = HTTPStatus.TOO_MANY_REQUESTS
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        headers["Retry-After"] = "2"
    return Problem(status or HTTPStatus.INTERNAL_SERVER_ERROR, str(error), headers)
