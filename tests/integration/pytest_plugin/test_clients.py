"""A client that calls an application without a server."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import Depends, FastAPI, Request

from rowsignal import MissingExtraError
from rowsignal.pytest_plugin import create_async_client


def given() -> str:
    return "given"


def other() -> str:
    return "other"


def third() -> str:
    return "third"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    app.state.is_up = True
    yield {"answer": 42}
    app.state.is_up = False


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def read(request: Request, value: str = Depends(given)) -> list[object]:
        return [value, getattr(request.state, "answer", None), request.headers.get("x-test")]

    return app


async def test_overrides_hold_until_the_client_is_closed(app: FastAPI) -> None:
    app.dependency_overrides[given] = other
    async with create_async_client(app, dependency_overrides={given: third}) as client:
        assert (await client.get("/")).json()[0] == "third"
    assert app.dependency_overrides == {given: other}
    del app.dependency_overrides[given]
    with pytest.raises(LookupError):
        async with create_async_client(app, dependency_overrides={given: third}):
            raise LookupError
    assert app.dependency_overrides == {}


@pytest.mark.parametrize("runs", [True, False])
async def test_lifespan_runs_when_it_is_asked_for(app: FastAPI, runs: bool) -> None:
    async with create_async_client(app, lifespan=runs, headers={"X-Test": "1"}) as client:
        assert (await client.get("/")).json() == ["given", 42 if runs else None, "1"]
        assert getattr(app.state, "is_up", None) is (True if runs else None)
    assert getattr(app.state, "is_up", None) is (False if runs else None)


async def test_without_httpx_it_says_what_to_install(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match="pip install httpx"):
        async with create_async_client(app):
            pytest.fail("there is no httpx")
