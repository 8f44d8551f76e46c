"""Statements with parameters `$1`, `$2`, on a connection of whichever driver."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection

PARAMETER = re.compile(r"\$(\d+)")


async def run_query(
    connection: AsyncConnection, statement: str, arguments: Sequence[object] = ()
) -> CursorResult[Any]:
    """Run a statement on a caller's connection; those beside its pool are always asyncpg's."""
    if connection.dialect.driver == "asyncpg":
        return await connection.exec_driver_sql(statement, tuple(arguments))
    values = {f"p{place}": value for place, value in enumerate(arguments, 1)}
    return await connection.execute(_named(statement), values)


@lru_cache(maxsize=100)
def _named(statement: str) -> TextClause:
    escaped = statement.replace(":", r"\:")  # else a name after a colon would be a parameter
    return text(PARAMETER.sub(r":p\1", escaped))
