"""What the client receives, and what the table holds: never a 2xx without its row."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from support.session_apps import Ledger, create_tables, entries, is_free
from support.web_server import served

FAILED = {"works": None, "deferred": 409, "lost": 503}
ENDINGS = list(FAILED)


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=2, max_overflow=0, pool_timeout=2)
    yield engine
    await engine.dispose()


@pytest.fixture
async def ledger(engine: AsyncEngine, pooled: AsyncEngine) -> Ledger:
    await create_tables(engine)
    return Ledger(pooled, engine)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("route", ["plain", "streaming", "background"])
async def test_success_leaves_only_after_its_commit(
    ledger: Ledger, route: str, ending: str
) -> None:
    async with served(ledger.app) as client:
        response = await client.get(f"/{route}/{ending}")
    if ending == "works":
        assert response.status_code == 200
        assert await entries(ledger.other) == [1]
    else:
        assert response.status_code == FAILED[ending]
        assert await entries(ledger.other) == []
    assert ledger.ran == ([ending] if (route, ending) == ("background", "works") else [])
    assert is_free(ledger.engine)


async def test_streaming_body_begins_after_the_session_has_ended(ledger: Ledger) -> None:
    async with served(ledger.app) as client:
        response = await client.get("/streaming/works")
    assert response.text == "1 out: 0"


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("route", "status"), [("http", 404), ("mapped", 418), ("unhandled", 500), ("returned", 422)]
)
async def test_failure_keeps_its_status_and_leaves_no_row(
    ledger: Ledger, route: str, status: int, ending: str
) -> None:
    async with served(ledger.app) as client:
        response = await client.get(f"/{route}/{ending}")
    assert response.status_code == status
    assert await entries(ledger.other) == []
    assert is_free(ledger.engine)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_disconnected_client_changes_nothing_about_the_commit(
    ledger: Ledger, ending: str
) -> None:
    async with served(ledger.app) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(f"GET /disconnect/{ending} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await ledger.entered.wait()
        writer.close()
        await writer.wait_closed()
        await ledger.finished.wait()
        assert reader.at_eof() or not await reader.read()
    assert await entries(ledger.other) == ([1] if ending == "works" else [])
    assert is_free(ledger.engine)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_cancelled_request_rolls_back(ledger: Ledger, ending: str) -> None:
    async with served(ledger.app) as client:
        answer = asyncio.create_task(client.get(f"/cancelled/{ending}"))
        await ledger.entered.wait()
        assert ledger.request is not None
        ledger.request.cancel()
        assert (await answer).status_code == 500
    assert await entries(ledger.other) == []
    assert is_free(ledger.engine)
