"""One session for one request or one `async with db()` block."""

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.exceptions import MissingSessionError, PoolTimeoutError
from rowsignal.orm.request_sessions.engine_binding import EngineBinding
from rowsignal.orm.sessions.aborted import failures
from rowsignal.orm.sessions.finishing import ENDED, connections_of, end, is_begun


class Scope(Protocol):
    """What `db` finds in the current context."""

    binding: EngineBinding
    outer: "Scope | None"

    @property
    def session(self) -> AsyncSession:
        """The session that the current task is to use."""

    def held_connections(self) -> int:
        """Count the connections that this scope itself holds now."""


class SessionScope:
    """Open a session on first use, and end it once.

    Making it costs nothing: a request that never asks for its session makes none, and a session
    takes no connection before its first statement.
    """

    __slots__ = ("_arguments", "_since", "binding", "has_ended", "opened", "outer")

    def __init__(
        self,
        binding: EngineBinding,
        outer: Scope | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.binding = binding
        self.outer = outer
        self.has_ended = False
        self._arguments = arguments
        self._since = 0
        self.opened: AsyncSession | None = None

    @property
    def session(self) -> AsyncSession:
        """The scope's session; `MissingSessionError` once it has ended."""
        if self.has_ended:
            raise MissingSessionError(ENDED)
        if self.opened is None:
            self.opened = self._open()
        return self.opened

    def held_connections(self) -> int:
        """Count the connections that the session holds now."""
        return 0 if self.opened is None else len(connections_of(self.opened))

    async def finish(self, *, commit: bool, commit_begun: bool = False) -> None:
        """End the session, once; `commit_begun` commits what the program began by `begin()`."""
        session = self.opened
        if session is not None and not self.has_ended:
            self.has_ended = True
            commit = commit or (commit_begun and is_begun(session))
            await end(session, commit=commit, since=self._since)
        self.has_ended = True

    def _open(self) -> AsyncSession:
        session = self.binding.sessionmaker(**(self._arguments or {}))
        self._since = failures(session)
        if self.outer is not None:
            guard = PoolGuard(session, self)
            session.sync_session.get_bind = guard  # type: ignore[method-assign] # for this object
        return session


class PoolGuard:
    """Refuse a connection that only the blocks around this one could give back.

    A nested block that waits for its own enclosing blocks waits in vain, until the pool's timeout
    or, in a pool without one, for ever. Where others hold connections too, the pool decides.
    """

    __slots__ = ("_find_bind", "_scope", "_session")

    def __init__(self, session: AsyncSession, scope: Scope) -> None:
        self._find_bind = session.sync_session.get_bind
        self._session = session
        self._scope = scope

    def __call__(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """Stand in for the session's `get_bind`, which every statement calls first."""
        capacity = self._scope.binding.capacity
        if capacity is not None and not connections_of(self._session):
            held = count_held(self._scope.outer, self._scope.binding)
            if held >= capacity:
                raise PoolTimeoutError(
                    f"The pool's {capacity} connections are held by the request and blocks around "
                    "this `async with db()`: end or commit those first, or make the pool larger."
                )
        return self._find_bind(*args, **kwargs)


def count_held(scope: Scope | None, binding: EngineBinding) -> int:
    """Count the connections of one engine that a scope and those around it hold."""
    held = 0
    while scope is not None:
        if scope.binding is binding:
            held += scope.held_connections()
        scope = scope.outer
    return held
