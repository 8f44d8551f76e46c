"""`db`: the session of the current request or block, found through the context."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import TimeoutError as PoolError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.exceptions import (
    MissingSessionError,
    ProxyBoundError,
    SessionNotInitialisedError,
)
from rowsignal.orm.request_sessions.engine_binding import EngineBinding, EngineSource
from rowsignal.orm.request_sessions.multi_sessions import MultiSessionRules, MultiSessionScope
from rowsignal.orm.request_sessions.pools import check_seconds, pool_timed_out, take_connection
from rowsignal.orm.request_sessions.scopes import RequestScope, Scope, SessionScope, request_of

NO_SESSION = (
    "No session is open here: this is neither inside a request that the middleware serves nor "
    "inside an `async with db(): ...` block. Open such a block around the use of db.session."
)
NOT_INITIALISED = (
    "This db has no engine yet. An application makes its middleware with the first event it "
    "serves; to use db before that, call `db.init(db_url=...)` or `db.init(custom_engine=...)`."
)


class SessionProxy:
    """Gives every request and every `async with db():` block a session under one name.

    `db.session` is an `AsyncSession`, the same one for all code of a request or block:

        async with db(commit_on_exit=True):
            db.session.add(Order(status="new"))

    One proxy serves one database; `create_middleware_and_session_proxy` creates more.
    """

    def __init__(self) -> None:
        self.binding: EngineBinding | None = None
        self.current: ContextVar[Scope | None] = ContextVar("rowsignal_session", default=None)

    def init(
        self,
        db_url: str | URL | None = None,
        *,
        custom_engine: AsyncEngine | None = None,
        engine_args: Mapping[str, Any] | None = None,
        session_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the proxy's engine, for programs that use `db` before their first request.

        The middleware then needs no engine of its own. Raises `ProxyBoundError` while the proxy
        serves another engine.
        """
        source = EngineSource(db_url, custom_engine, engine_args or {}, session_args or {})
        self.bind(source)

    def bind(self, source: EngineSource) -> EngineBinding:
        """Bind this engine; if it is bound already, share it."""
        binding = self.binding
        # Two applications of one process, as a factory in tests makes them, share the engine.
        if binding is not None and binding.is_live:
            if not binding.source.is_same_engine(source):
                raise ProxyBoundError(
                    "This db serves another engine, which is still in use. Dispose of that one "
                    "first (`await db.dispose()`), or make a pair of its own for each database "
                    "by create_middleware_and_session_proxy()."
                )
            binding.share(source)
            return binding
        self.binding = EngineBinding(source)
        return self.binding

    async def dispose(self) -> None:
        """Release the engine, and close its pool if it was created from a URL; idempotent."""
        if self.binding is not None:
            await self.binding.give_up()

    @property
    def session(self) -> AsyncSession:
        """The session of the current request or block.

        Raises `MissingSessionError` if none is open.
        """
        scope = self.current.get()
        if scope is None:
            self.require_binding()
            raise MissingSessionError(NO_SESSION)
        return scope.session

    def require_binding(self) -> EngineBinding:
        """Return the engine's binding, or raise `SessionNotInitialisedError`."""
        if self.binding is None or (self.binding.is_owned and self.binding.is_disposed):
            raise SessionNotInitialisedError(NOT_INITIALISED)
        return self.binding

    def __call__(
        self,
        session_args: Mapping[str, Any] | None = None,
        commit_on_exit: bool = False,
        multi_sessions: bool = False,
        max_concurrent: int | None = None,
        *,
        all_or_nothing: bool = False,
        pool_timeout: float | None = None,
    ) -> "SessionBlock":
        """Return an `async with` block with its own session or sessions.

        - `session_args`: override the arguments of the session factory.
        - `commit_on_exit`: commit if the block ends without an exception; without it, uncommitted
          changes are rolled back.
        - `multi_sessions`: each task in the block gets a session. The end of the block awaits the
          tasks that used one, or cancels them if the block raises.
        - `max_concurrent`: sessions at the same time, including the block's own.
        - `all_or_nothing`: the tasks' sessions are committed with the block's, once all tasks have
          succeeded and their deferred constraints hold; until then each keeps its connection.
        - `pool_timeout`: acquire the connection at the start, within this many seconds, or raise
          `PoolTimeoutError`. Without it the first statement acquires the connection. In a
          `multi_sessions` block it limits the wait of each task's first statement.
        """
        rules = MultiSessionRules(commit_on_exit, max_concurrent, all_or_nothing, pool_timeout)
        if not multi_sessions and (max_concurrent is not None or all_or_nothing):
            raise ValueError("max_concurrent and all_or_nothing need multi_sessions=True.")
        return SessionBlock(self, rules, session_args, multi_sessions)

    def connection(self, timeout: float | None = None) -> AbstractAsyncContextManager[AsyncSession]:
        """Yield the session of the request or block; in a `multi_sessions` block one per task.

        There the task first waits for one of the `max_concurrent` places. With `timeout` the
        session acquires its connection at the start, within this many seconds, or raises
        `PoolTimeoutError`. Raises `MissingSessionError` if no session is open.
        """
        check_seconds("timeout", timeout)
        scope = self.current.get()
        if isinstance(scope, MultiSessionScope):
            return scope.connection(timeout)
        return self._lent(timeout)

    async def gather(self, *coros: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Run coroutines concurrently; in a `multi_sessions` block each with its own session."""
        scope = self.current.get()
        if isinstance(scope, MultiSessionScope):
            return await scope.gather(*coros, return_exceptions=return_exceptions)
        return await asyncio.gather(*coros, return_exceptions=return_exceptions)

    def pool_status(self) -> dict[str, Any]:
        """Return the pool's numbers: size, capacity, checked_out, available, saturation ..."""
        return self.require_binding().pool_status()

    @asynccontextmanager
    async def _lent(self, timeout: float | None) -> AsyncIterator[AsyncSession]:
        session = self.session
        if timeout is not None:
            await take_connection(session, self.require_binding().engine.pool, timeout)
        yield session


class SessionBlock:
    """One `async with db(...)` block."""

    def __init__(
        self,
        proxy: SessionProxy,
        rules: MultiSessionRules,
        session_args: Mapping[str, Any] | None,
        multi_sessions: bool,
    ) -> None:
        self._proxy = proxy
        self._rules = rules
        self._arguments = session_args
        self._is_multi = multi_sessions
        self._scope: SessionScope | MultiSessionScope | None = None
        self._request: RequestScope | None = None
        self._token: Token[Scope | None] | None = None

    async def __aenter__(self) -> SessionProxy:
        scope = self._scope = self._open()
        timeout = self._rules.pool_timeout
        if timeout is not None and isinstance(scope, SessionScope):
            try:
                await take_connection(scope.session, scope.binding.engine.pool, timeout)
            except BaseException:
                await self._finish(has_succeeded=False)
                raise
        # A block around a yield ends after the response: the request commits it before.
        if self._rules.commit_on_exit and isinstance(scope, SessionScope):
            self._request = request_of(scope.outer)
            if self._request is not None:
                self._request.enter(scope)
        self._token = self._proxy.current.set(scope)
        return self._proxy

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._finish(has_succeeded=error is None)
        finally:
            self._leave()
        if isinstance(error, PoolError) and self._scope is not None:
            raise pool_timed_out(self._scope.binding.engine.pool, error) from error

    def _leave(self) -> None:
        # An abandoned async generator is closed in another context, which was never changed.
        with suppress(ValueError):
            if self._token is not None:
                self._proxy.current.reset(self._token)

    async def _finish(self, *, has_succeeded: bool) -> None:
        if self._request is not None and isinstance(self._scope, SessionScope):
            self._request.leave(self._scope)
        if isinstance(self._scope, MultiSessionScope):
            await self._scope.finish(has_succeeded=has_succeeded)
        elif self._scope is not None:
            commit = has_succeeded and self._rules.commit_on_exit
            await self._scope.finish(commit=commit, commit_begun=has_succeeded)

    def _open(self) -> SessionScope | MultiSessionScope:
        binding = self._proxy.require_binding()
        outer = self._proxy.current.get()
        if self._is_multi:
            return MultiSessionScope(binding, self._rules, outer, self._arguments)
        return SessionScope(binding, outer, self._arguments)
