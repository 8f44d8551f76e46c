"""One session for one request or one `async with db()` block."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util.concurrency import in_greenlet

from rowsignal.exceptions import MissingSessionError, PoolTimeoutError
from rowsignal.orm.request_sessions.engine_binding import EngineBinding
from rowsignal.orm.request_sessions.pools import await_room
from rowsignal.orm.sessions.aborted import connections_of
from rowsignal.orm.sessions.finishing import ENDED, end, is_begun
from rowsignal.orm.sessions.transactions import make_whole


class Scope(Protocol):
    """The scope of `db` in the current context."""

    binding: EngineBinding
    outer: "Scope | None"

    @property
    def session(self) -> AsyncSession:
        """The session of the current task."""

    def held_connections(self) -> int:
        """Count the connections of this scope that are not returned while the task waits."""


class SessionScope:
    """Opens a session at first use, and ends it once.

    A request that never uses its session creates none, and a session acquires no connection before
    its first statement. `pool_timeout` limits how long that statement waits for the connection;
    `has_asked` says that a guarded session has requested it.
    """

    __slots__ = (
        "_arguments", "_pool_timeout", "binding", "has_asked", "has_ended", "opened", "outer",
    )  # fmt: skip

    def __init__(
        self,
        binding: EngineBinding,
        outer: Scope | None = None,
        arguments: Mapping[str, Any] | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        self.binding = binding
        self.outer = outer
        self.has_asked = False
        self.has_ended = False
        self._arguments = arguments
        self._pool_timeout = pool_timeout
        self.opened: AsyncSession | None = None

    @property
    def session(self) -> AsyncSession:
        """The scope's session; raises `MissingSessionError` once it has ended."""
        if self.has_ended:
            raise MissingSessionError(ENDED)
        if self.opened is None:
            self.opened = self._open()
        return self.opened

    def held_connections(self) -> int:
        """Count the connections that the session holds now."""
        return 0 if self.opened is None else len(connections_of(self.opened))

    async def finish(self, *, commit: bool, commit_begun: bool = False) -> None:
        """End the session, once.

        `commit_begun` commits a transaction begun by `begin()` or `get_transaction`.
        """
        session = self.opened
        if session is not None and not self.has_ended:
            # Set first: code that the end runs, such as an event, must not open it again.
            self.has_ended = True
            commit = commit or (commit_begun and is_begun(session))
            await end(session, commit=commit)
        self.has_ended = True

    def _open(self) -> AsyncSession:
        session = self.binding.sessionmaker(**(self._arguments or {}))
        make_whole(session)
        # Only enclosing scopes can hold connections that this session would wait for in vain.
        if self.outer is not None or self._pool_timeout is not None:
            guard = PoolGuard(session, self, self._pool_timeout)
            session.sync_session.get_bind = guard  # type: ignore[method-assign] # for this object
        return session


class RequestScope(SessionScope):
    """The session of a request, and the open blocks of the request's own task.

    FastAPI ends a block around the `yield` of a dependency after the response, too late for a
    commit that may fail. So the changes of such a block are committed before.
    """

    __slots__ = ("_blocks",)

    def __init__(self, binding: EngineBinding, outer: Scope | None = None) -> None:
        super().__init__(binding, outer)
        self._blocks: list[tuple[object, SessionScope]] = []

    def enter(self, block: SessionScope) -> None:
        """Register a block of the current task that commits when it ends."""
        self._blocks.append((asyncio.current_task(), block))

    def leave(self, block: SessionScope) -> None:
        """Remove a block."""
        self._blocks = [entry for entry in self._blocks if entry[1] is not block]

    async def commit_blocks(self) -> None:
        """Commit the changes of the current task's open blocks; the blocks stay open."""
        task = asyncio.current_task()
        # The innermost first, as they would end.
        for opener, block in reversed(self._blocks):
            session = block.opened
            if opener is task and session is not None and session.sync_session.in_transaction():
                await session.commit()


class PoolGuard:
    """Refuses to wait for a connection that only the enclosing blocks could return.

    A nested block that waits for its enclosing blocks would wait until the pool's timeout, or for
    ever in a pool without one. If other tasks hold connections too, the pool decides.
    """

    __slots__ = ("_find_bind", "_scope", "_session", "_timeout")

    def __init__(self, session: AsyncSession, scope: SessionScope, timeout: float | None) -> None:
        self._find_bind = session.sync_session.get_bind
        self._session = session
        self._scope = scope
        self._timeout = timeout

    def __call__(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """Replace the session's `get_bind`, which every statement calls first."""
        bind = self._find_bind(*args, **kwargs)
        # Outside a greenlet the bind is only asked for; with a connection no other is acquired.
        if isinstance(bind, Engine) and in_greenlet() and not connections_of(self._session):
            self._refuse_waiting_for_itself()
            self._scope.has_asked = True
            if self._timeout is not None:
                await_room(bind, self._timeout)
        return bind

    def _refuse_waiting_for_itself(self) -> None:
        binding = self._scope.binding
        if binding.capacity is None:
            return
        if count_held(self._scope.outer, binding) >= binding.capacity:
            raise PoolTimeoutError(
                f"The pool's {binding.capacity} connections are held by the request and blocks "
                "around this `async with db()`: end or commit those first, or make the pool "
                "larger.",
                pool_status=binding.pool_status(),
            )


def request_of(scope: Scope | None) -> RequestScope | None:
    """Return the innermost request around a scope, if any."""
    while scope is not None and not isinstance(scope, RequestScope):
        scope = scope.outer
    return scope


def count_held(scope: Scope | None, binding: EngineBinding) -> int:
    """Count the connections of one engine that a scope and its enclosing scopes hold."""
    held = 0
    while scope is not None:
        if scope.binding is binding:
            held += scope.held_connections()
        scope = scope.outer
    return held
