"""Responses of an application's exception handlers, sent from a middleware."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]
Handler = Callable[[Any, Exception], Any]


def find_handler(scope: ASGIScope, error: Exception) -> Handler | None:
    """Return the handler that a Starlette application has for an error, if any.

    Handlers of `Exception` and of status 500 are left out: Starlette calls them outside of all
    middleware, where a re-raised error arrives anyway.
    """
    by_class, by_status = scope.get("starlette.exception_handlers") or _registered(scope)
    handler: Handler | None = by_status.get(getattr(error, "status_code", None))
    candidates = (by_class.get(cls) for cls in type(error).__mro__)
    return handler or next(filter(None, candidates), None)


def _registered(scope: ASGIScope) -> tuple[dict[Any, Handler], dict[Any, Handler]]:
    """Return an application's handlers, before its middleware puts them into the scope."""
    handlers = dict(getattr(scope.get("app"), "exception_handlers", {}))
    by_class = {key: one for key, one in handlers.items() if isinstance(key, type)}
    by_class.pop(Exception, None)
    by_status = {key: one for key, one in handlers.items() if isinstance(key, int) and key != 500}
    return by_class, by_status


async def answer(scope: ASGIScope, receive: Receive, send: Send, error: Exception) -> bool:
    """Send the response of the application's handler for an error; return False without one.

    Needed if the error is raised by the application's `send`: Starlette then assumes that the
    response has begun and calls no handler, although nothing was sent yet.
    """
    handler = find_handler(scope, error)
    if handler is None:
        return False
    # Only reached under Starlette, which is not needed otherwise.
    from starlette.requests import Request  # noqa: PLC0415

    response = await _call(handler, Request(scope, _spent), error)
    if response is not None:
        await response(scope, receive, send)
    return True


async def _call(handler: Handler, request: Any, error: Exception) -> Any:
    is_async = any(map(inspect.iscoroutinefunction, (handler, type(handler).__call__)))
    if not is_async:
        handler_result = await asyncio.to_thread(handler, request, error)
    else:
        handler_result = handler(request, error)
    return await handler_result if inspect.isawaitable(handler_result) else handler_result


async def _spent() -> Message:
    raise RuntimeError("The request's body was read before its commit failed: keep what you need.")
