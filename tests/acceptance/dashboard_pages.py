"""What tests of the page share: a service set up as from the environment, and its open page."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from playwright.async_api import Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings

SECRET = "a secret of more than thirty-two bytes"


def app_of(url: str, **settings: object) -> FastAPI:
    return create_app(Settings(database_url=url, log_level="error", heartbeat=1, **settings))  # type: ignore[arg-type]  # as from the environment


@asynccontextmanager
async def shown(page: Page, url: str) -> AsyncIterator[None]:
    """Have the page open, and let nothing be wrong on it when it is closed."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    elsewhere: list[str] = []
    own = url.partition("#")[0]
    page.on("request", lambda it: None if it.url.startswith(own) else elsewhere.append(it.url))
    await page.goto(url)
    yield
    assert not wrong + elsewhere, (wrong, elsewhere)


async def run(shop: AsyncEngine, *statements: str) -> None:
    async with shop.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def is_live(page: Page) -> None:
    await expect(page.locator("#reach")).to_have_attribute("data-status", "live")


async def first_rows(address: str, number: int) -> list[dict[str, Any]]:
    """Return the first rows that an address brings to any client."""
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient() as client, client.stream("GET", address) as answer:
        async for line in answer.aiter_lines():
            data = json.loads(line[5:]) if line.startswith("data:") else {}
            rows += [data["row"]] if "row" in data else []
            if len(rows) == number:
                break
    return rows
