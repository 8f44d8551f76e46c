"""Errors as `application/problem+json` (RFC 9457), and the routes that return them."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import DataError, DBAPIError
from starlette.responses import JSONResponse

from rowsignal.exceptions import (
    AccessDeniedError,
    FilterError,
    MissingRightError,
    NotFoundError,
    NotPermittedError,
    NotWatchedError,
    PositionError,
    ReaderLimitError,
    RowSignalError,
    StandbyError,
    UnavailableError,
    UnsupportedError,
)
from rowsignal.listener import OUTAGES

logger = logging.getLogger("rowsignal.sse")

STATUSES: Mapping[type[RowSignalError], HTTPStatus] = {
    NotPermittedError: HTTPStatus.FORBIDDEN,
    AccessDeniedError: HTTPStatus.UNAUTHORIZED,
    FilterError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PositionError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFoundError: HTTPStatus.NOT_FOUND,
    MissingRightError: HTTPStatus.SERVICE_UNAVAILABLE,
    NotWatchedError: HTTPStatus.SERVICE_UNAVAILABLE,
    ReaderLimitError: HTTPStatus.SERVICE_UNAVAILABLE,
    StandbyError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnsupportedError: HTTPStatus.NOT_IMPLEMENTED,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
NOSNIFF = ("X-Content-Type-Options", "nosniff")


class Problem(JSONResponse):
    """One error as a document; `detail` is a sentence for people."""

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
    """Return the response to a request that failed with this error."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), None)
    if isinstance(error, ReaderLimitError) and error.is_own:
        status = HTTPStatus.TOO_MANY_REQUESTS
    headers = {}
    # RFC 9110, 15.5.2: such an answer names the way to authenticate.
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        headers["Retry-After"] = "2"
    return Problem(status or HTTPStatus.INTERNAL_SERVER_ERROR, str(error), headers)


class ProblemRoute(APIRoute):
    """A route that returns errors as `application/problem+json` in every application."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the handler, wrapped."""
        handle = super().get_route_handler()

        async def handle_problems(request: Request) -> Response:
            answer = await _answer(handle, request)
            answer.headers.setdefault(*NOSNIFF)
            return answer

        return handle_problems


async def _answer(handle: Callable[[Request], Any], request: Request) -> Response:
    try:
        _refuse_broken_text(request)
        answer: Response = await handle(request)
    except RowSignalError as error:
        return problem_of(error)
    except HTTPException as error:
        return Problem(HTTPStatus(error.status_code), str(error.detail), error.headers)
    except DataError as error:
        logger.info("a request has a value that PostgreSQL refuses: %s", described(error))
        return problem_of(FilterError("A value does not fit the type of its column."))
    except OUTAGES as error:
        logger.warning("a request could not be served: %s", described(error))
        return problem_of(UnavailableError("The database does not answer just now."))
    except RequestValidationError as error:
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error))
    return answer


def described(error: BaseException) -> str:
    """Return the kind of a database error without its message, which may quote values."""
    if not isinstance(error, DBAPIError):
        return type(error).__name__
    code = getattr(error.orig, "sqlstate", None)
    return type(error.orig).__name__ + (f" (SQLSTATE {code})" if code else "")


def _refuse_broken_text(request: Request) -> None:
    """Refuse an address that is not UTF-8: servers replace bytes that they cannot decode."""
    for raw in (request.scope.get("raw_path") or b"", request.scope["query_string"]):
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise FilterError("The address holds escaped bytes that are not UTF-8.") from None


def _sentence(error: RequestValidationError) -> str:
    return "; ".join(f"{it['loc'][-1]}: {it['msg']}" for it in error.errors()) + "."
