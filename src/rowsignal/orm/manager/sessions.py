"""One session of a manager, for a block or for a request."""

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.orm.manager.manager import AsyncDatabaseManager
from rowsignal.orm.sessions.finishing import end
from rowsignal.orm.sessions.transactions import make_whole


class ManagedSession(AsyncGenerator[AsyncSession, None]):
    """One session: committed if its block succeeds, else rolled back."""

    def __init__(self, manager: AsyncDatabaseManager) -> None:
        self._session = manager.Session()
        make_whole(self._session)
        self._is_started = self._is_finished = False

    async def __aenter__(self) -> AsyncSession:
        return self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._finish(error)

    async def asend(self, _value: None) -> AsyncSession:
        """Yield the session; at the second call commit it and stop."""
        if not self._is_started:
            return self._start()
        if not self._is_finished:
            await self._finish(None)
        raise StopAsyncIteration

    async def athrow(self, *error: Any) -> AsyncSession:
        """Roll back, close, and raise."""
        # Also with a class and its arguments, a form that is deprecated since Python 3.12.
        raised = error[0] if isinstance(error[0], BaseException) else error[1] or error[0]()
        await self._finish(raised)
        raise raised

    async def aclose(self) -> None:
        """Roll back and close, unless the session has ended."""
        if not self._is_finished:
            await self._finish(GeneratorExit())

    def __del__(self) -> None:
        """Return the connection at once if an exception ended a loop over this.

        `async for` does not report the exception, and a finalizer cannot await: the connection is
        aborted, so the server rolls back.
        """
        if self._is_started and not self._is_finished:
            self._session.sync_session.invalidate()

    def _start(self) -> AsyncSession:
        if self._is_started:
            raise RuntimeError("This session was handed out before: make another one.")
        self._is_started = True
        return self._session

    async def _finish(self, error: BaseException | None) -> None:
        self._is_finished = True
        await end(self._session, commit=error is None)


def make_db_session(manager: AsyncDatabaseManager) -> ManagedSession:
    """Yield one session, committed at the end.

    Use it as `async with make_db_session(manager) as session:`. In a FastAPI dependency
    `async for session in make_db_session(manager): yield session` works too, and an exception
    in the handler rolls back. FastAPI ends dependencies after the response is sent;
    `Depends(gen_db_session, scope="function")` lets a failing commit be an error response.
    """
    return ManagedSession(manager)
