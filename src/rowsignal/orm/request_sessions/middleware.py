"""A session for every HTTP request, committed before the response begins."""

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any, ClassVar, Literal, Unpack

from sqlalchemy import URL
from sqlalchemy.exc import TimeoutError as PoolError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.orm.request_sessions.engine_binding import EngineBinding, EngineSource
from rowsignal.orm.request_sessions.exception_handlers import (
    ASGIApp,
    ASGIScope,
    Message,
    Receive,
    Send,
    answer,
)
from rowsignal.orm.request_sessions.pool_limits import Limits, PoolLimits
from rowsignal.orm.request_sessions.pools import pool_timed_out
from rowsignal.orm.request_sessions.proxy import SessionProxy
from rowsignal.orm.request_sessions.scopes import RequestScope

logger = logging.getLogger(__name__)

CommitOnExit = bool | Literal["always"]
SUCCESSES = range(100, 400)
SERVED = "rowsignal.proxies"

db = SessionProxy()


class SQLAlchemyMiddleware:
    """Give every HTTP request a session, `db.session`, that ends before its response begins.

        app.add_middleware(SQLAlchemyMiddleware, db_url=url, commit_on_exit=True)

    - `db_url`, `engine_args`: the engine is made by `create_async_engine(db_url, **engine_args)`
      and disposed when the application shuts down or fails to start. A `custom_engine` is never
      disposed. With neither, the engine of an earlier `db.init(...)` is used.
    - `session_args`: for the session factory; the class is SQLModel's where that is installed.
    - `commit_on_exit`: commit when the response's status is in `commit_statuses` (below 400);
      "always" commits for every status. A transaction begun by `db.session.begin()` is
      committed by the same rule, since its block would end too late.
    - `exclude_paths`: paths that get no session, with all paths below them.
    - `limits`: limits for requests and a warning for a full pool, see `PoolLimits`.

    The request is one transaction: `get_transaction` and `lock_tables` are savepoints in it, and
    their changes are committed with the response, regardless of `commit_on_exit`.

    The commit comes before the response: the application's exception handlers answer a commit that
    fails, so it never follows a 2xx. An exception that reaches the middleware rolls back. Streaming
    bodies and background tasks run without the request's session, and so do WebSockets and lifespan
    handlers: they open `async with db():`.

    Raises `ProxyBoundError` while the proxy serves another engine.
    """

    proxy: ClassVar[SessionProxy] = db

    def __init__(
        self,
        app: ASGIApp,
        db_url: str | URL | None = None,
        custom_engine: AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: CommitOnExit = False,
        exclude_paths: Iterable[str] | None = None,
        commit_statuses: Container[int] = SUCCESSES,
        **limits: Unpack[PoolLimits],
    ) -> None:
        self.app = app
        self.rule = CommitRule(commit_on_exit, commit_statuses)
        self.exclude_paths = tuple(path.rstrip("/") or "/" for path in exclude_paths or ())
        self.limits = Limits(**limits)
        bound = self.proxy.binding
        if db_url is None and custom_engine is None and bound is not None:
            self.source = bound.require_live().source
        else:
            self.source = EngineSource(db_url, custom_engine, engine_args or {}, session_args or {})
        self._bind()

    @property
    def binding(self) -> EngineBinding:
        """The engine in use; created again if the application restarts after a shutdown."""
        if self._binding.is_disposed:
            self._bind()
        return self._binding

    def _bind(self) -> None:
        self._binding = self.proxy.bind(self.source)
        self._queue = self.limits.make_queue(self._binding)
        self.limits.watch(self._binding)

    async def dispose(self) -> None:
        """Close the pool of an engine made from a URL, if no lifespan does so; idempotent."""
        await self._binding.give_up()

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http" and self._is_ours(scope):
            await self._serve_in_turn(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_ours(self, scope: ASGIScope) -> bool:
        # A mounted application with the same middleware works in the session of the outer one.
        if self.proxy in scope.get(SERVED, ()):
            return False
        return not (self.exclude_paths and is_below(self.exclude_paths, scope))

    async def _serve_in_turn(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if self._queue is None:
            await self._serve(scope, receive, send)
        else:
            await self._queue.serve(self._serve, scope, receive, send)

    async def _serve(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        current = self.proxy.current
        session = RequestScope(self.binding, current.get())
        gate = ResponseGate(session, self.rule, send)
        scope[SERVED] = (*scope.get(SERVED, ()), self.proxy)
        token = current.set(session)
        try:
            await self.app(scope, receive, gate.send)
        except Exception as error:
            await session.finish(commit=False)
            failure = gate.failure_of(error)
            if failure is None:
                raise
            # Raised by our own `send`: Starlette takes the response for begun and asks no handler.
            if not await answer(scope, receive, send, failure):
                raise failure from failure.__cause__
        finally:
            current.reset(token)
            await session.finish(commit=False)

    async def _live(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        lifespan = Lifespan(self.binding, send)
        try:
            await self.app(scope, receive, lifespan.send)
        finally:
            await lifespan.end()


class ResponseGate:
    """Holds the response back until the session has committed or rolled back."""

    __slots__ = ("_rule", "_send", "_session", "failure", "has_started")

    def __init__(self, session: RequestScope, rule: "CommitRule", send: Send) -> None:
        self._session = session
        self._rule = rule
        self._send = send
        self.failure: Exception | None = None
        self.has_started = False

    async def send(self, message: Message) -> None:
        """Forward a message of the application; raise the commit's error instead."""
        if message["type"] == "http.response.start":
            if not self._session.has_ended:
                await self._finish(message["status"])
            self.has_started = True
        await self._send(message)

    def failure_of(self, error: Exception) -> Exception | None:
        """Return the error that the application's handlers have not seen yet, if any."""
        # No other response can be sent any more.
        if self.has_started:
            return None
        if isinstance(error, PoolError):
            failure = pool_timed_out(self._session.binding.engine.pool, error)
            failure.__cause__ = error
            return failure
        return self.failure

    async def _finish(self, status: int) -> None:
        rule = self._rule
        try:
            if rule.accepts(status):
                await self._session.commit_blocks()
            await self._session.finish(
                commit=rule.commits(status), commit_begun=rule.accepts(status)
            )
        except Exception as error:
            self.failure = error
            raise


class CommitRule:
    """Decides by the status whether a response commits."""

    __slots__ = ("_commits", "_statuses")

    def __init__(self, commit_on_exit: CommitOnExit, statuses: Container[int]) -> None:
        self._commits = bool(commit_on_exit)
        self._statuses = None if commit_on_exit == "always" else statuses

    def accepts(self, status: int) -> bool:
        """Tell whether changes made for a response of this status are kept."""
        return self._statuses is None or status in self._statuses

    def commits(self, status: int) -> bool:
        """Tell whether a response of this status commits the session."""
        return self._commits and self.accepts(status)


class Lifespan:
    """Disposes of the engine when its last application has shut down or failed to start."""

    def __init__(self, binding: EngineBinding, send: Send) -> None:
        self._binding = binding
        self._send = send
        self._has_ended = False
        binding.lifespans += 1

    async def send(self, message: Message) -> None:
        """Forward a message of the application; dispose of the engine before the last one."""
        # A failed startup is the last message, too.
        if message["type"] != "lifespan.startup.complete":
            await self.end()
        await self._send(message)

    async def end(self) -> None:
        """Count one application fewer; log an error if the pool cannot be closed.

        The server waits for the application's last message in any case.
        """
        if self._has_ended:
            return
        self._has_ended = True
        self._binding.lifespans -= 1
        if self._binding.lifespans > 0:
            return
        try:
            await self._binding.dispose()
        except Exception:
            logger.exception("the engine's pool could not be closed at shutdown")


def is_below(paths: Iterable[str], scope: ASGIScope) -> bool:
    """Tell whether a request's path, within its application, is one of `paths` or below one."""
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    if root and path.startswith(root + "/"):
        # Servers disagree on whether the path contains the root path.
        path = path.removeprefix(root)
    path = path.rstrip("/") or "/"
    return any(path == one or (one != "/" and path.startswith(one + "/")) for one in paths)


def create_middleware_and_session_proxy() -> tuple[type[SQLAlchemyMiddleware], SessionProxy]:
    """Return a middleware class and its `db`, for one more database."""
    proxy = SessionProxy()
    return type("SQLAlchemyMiddleware", (SQLAlchemyMiddleware,), {"proxy": proxy}), proxy
