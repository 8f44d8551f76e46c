"""What a type checker sees of request sessions."""

from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.orm import (
    SessionProxy,
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
    db,
)
from rowsignal.orm.request_sessions import SessionBlock

app = FastAPI()
app.add_middleware(SQLAlchemyMiddleware, db_url="postgresql+asyncpg://", commit_on_exit="always")
app.add_middleware(SQLAlchemyMiddleware, exclude_paths=["/health"], commit_statuses={200, 201})
app.add_middleware(SQLAlchemyMiddleware, pool_warn_threshold=0.9, max_concurrent_requests=50)

OtherMiddleware, other_db = create_middleware_and_session_proxy()
app.add_middleware(OtherMiddleware, db_url="postgresql+asyncpg://")
assert_type(OtherMiddleware, type[SQLAlchemyMiddleware])
assert_type(other_db, SessionProxy)


async def program() -> None:
    """Use everything that `db` offers."""
    assert_type(db.session, AsyncSession)
    assert_type(db(commit_on_exit=True), SessionBlock)
    assert_type(db.connection(), AbstractAsyncContextManager[AsyncSession])
    assert_type(await db.gather(program(), return_exceptions=True), list[Any])
    assert_type(db.pool_status(), dict[str, Any])
    async with db(multi_sessions=True, max_concurrent=2) as same:
        assert_type(same, SessionProxy)
    async with db.connection(timeout=1) as session:
        assert_type(session, AsyncSession)
