"""What tests of the page share: a service set up as from the environment, and its open page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
    page.on("request", lambda it: None if it.url.startswith(url) else elsewhere.append(it.url))
    await page.goto(url)
    yield
    assert (wrong, elsewhere) == ([], [])


async def run(shop: AsyncEngine, *statements: str) -> None:
    async with shop.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def is_live(page: Page) -> None:
    await expect(page.locator("#reach")).to_have_attribute("data-status", "live")
