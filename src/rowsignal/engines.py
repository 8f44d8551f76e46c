"""A second engine beside the application's: same server, own connections."""

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def beside(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine that connects exactly as `engine` does, from a pool of its own.

    Everything that decides how a connection is made (arguments, `creator`, pool events such as
    those that fetch a token) is kept; the application's pool is neither used nor counted against.
    """
    ours = engine.sync_engine
    if ours.dialect.driver == "asyncpg":
        pool = ours.pool.recreate()
        return AsyncEngine(
            Engine(pool, ours.dialect, ours.url, hide_parameters=ours.hide_parameters)
        )
    return create_async_engine(ours.url.set(drivername="postgresql+asyncpg"))
