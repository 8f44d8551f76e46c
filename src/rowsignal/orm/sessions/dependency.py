"""Sessions for a request, and for a block of code."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from rowsignal.exceptions import MissingSessionError
from rowsignal.orm.sessions.connections import pool_exhausted
from rowsignal.orm.sessions.finishing import end
from rowsignal.orm.sessions.transactions import make_whole

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

S = TypeVar("S", bound=AsyncSession)

# Where FastAPI (0.121 and newer) keeps the stack that ends before a response is sent
FUNCTION_STACK = "fastapi_function_astack"
OPEN_SESSIONS = "rowsignal.sessions"


def create_db_dependency(session_maker: async_sessionmaker[S]) -> "SessionDependency[S]":
    """Create a FastAPI dependency that gives each request one session.

        get_db = create_db_dependency(session_maker)

        @app.post("/orders")
        async def create(session: Annotated[AsyncSession, Depends(get_db)]) -> None: ...

    The request is one transaction, in which `get_transaction` and `lock_tables` are savepoints.
    It is committed when the endpoint has returned and **before the response is sent**: the
    application's exception handlers get the error of a commit that fails, and no client sees a 2xx
    for a missing row. Any exception rolls back, `HTTPException` included; a *returned* response
    commits, whatever its status. No connection is acquired before the first statement, and none is
    held while the response, a stream or a background task runs.

    Every dependency of a request gets the same session. For a WebSocket the session lasts as
    long as its endpoint. `get_db()` outside FastAPI is a plain asynchronous generator.

    Raises `PoolExhaustedError`, out of the endpoint, if the pool has no free connection.
    """
    return SessionDependency(session_maker)


def create_db_context(
    session_maker: async_sessionmaker[S],
) -> Callable[[], AbstractAsyncContextManager[S]]:
    """Create a function that opens a session for a block of code.

        db_context = create_db_context(session_maker)

        async with db_context() as session:
            session.add(order)

    The block is one transaction, in which `get_transaction` and `lock_tables` are savepoints.
    It commits if the block succeeds and rolls back on any exception; no connection is acquired
    before the first statement. Raises `PoolExhaustedError`, out of the block, if the pool has no
    free connection, and `AbortedTransactionError` if there is nothing left to commit.
    """
    return partial(open_session, session_maker)


@asynccontextmanager
async def open_session(session_maker: Callable[[], S]) -> AsyncIterator[S]:
    """Open a session; commit it after the block, or roll back on any exception, and end it."""
    session = session_maker()
    make_whole(session)
    try:
        try:
            yield session
        except BaseException:
            # Cancellations as well: a client that leaves must not leave a transaction open.
            await end(session, commit=False)
            raise
        # A session that was never used has nothing to commit, and acquires no connection for it.
        await end(session, commit=session.sync_session.in_transaction())
    except exc.TimeoutError as error:
        # SQLAlchemy's class, which only its pools raise: a TimeoutError of the block passes
        raise pool_exhausted(error) from error


class SessionDependency(Generic[S]):
    """Gives FastAPI one session per request, finished before the response is sent.

    FastAPI runs the code after the `yield` of a plain dependency after the response. The session is
    on the request's *function* stack instead, which FastAPI unwinds once the endpoint has returned,
    whether or not the dependency was declared with `scope="function"`.
    """

    def __init__(self, session_maker: async_sessionmaker[S]) -> None:
        self.session_maker = session_maker
        self.__signature__ = _signature()

    async def __call__(self, connection: "HTTPConnection | None" = None) -> AsyncGenerator[S]:
        """Yield the request's session or, outside a request, a new one."""
        if connection is not None:
            yield await self._session_of(connection)
        else:
            async with open_session(self.session_maker) as session:
                yield session

    async def _session_of(self, connection: "HTTPConnection") -> S:
        sessions: dict[SessionDependency[S], S]
        sessions = connection.scope.setdefault(OPEN_SESSIONS, {})
        if self not in sessions:
            stack = _function_stack(connection)
            sessions[self] = await stack.enter_async_context(open_session(self.session_maker))
            stack.callback(sessions.pop, self)
        return sessions[self]


def _function_stack(connection: "HTTPConnection") -> AsyncExitStack:
    stack = connection.scope.get(FUNCTION_STACK)
    if not isinstance(stack, AsyncExitStack):
        raise MissingSessionError(
            "This request has no place for a session that ends before its response: "
            "create_db_dependency needs FastAPI 0.121 or newer. Without it, open sessions with "
            "create_db_context."
        )
    return stack


def _signature() -> inspect.Signature | None:
    try:
        # Here, because `import rowsignal` must work where no web framework is installed
        from starlette.requests import HTTPConnection  # noqa: PLC0415
    except ImportError:
        return None
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter("connection", kind, annotation=HTTPConnection)])
