"""What leaves of a mapped class is what the ORM loads, in its JSON form, then through a schema."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.changes import Change
from rowsignal.json_forms import json_form
from rowsignal.listener import Listener
from rowsignal.sse import Limits, create_sse_router
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers
from support.event_streams import reading
from support.typed_rows import ATTRIBUTES, VALUES, Base, Cents, Item, Other, Status
from support.web_server import Site, serving

TABLE: Any = Item.__table__
OTHER_STATE = {"If-None-Match": '"x"'}


class ItemOut(BaseModel):
    model_config = ConfigDict(from_attributes=True, strict=True)

    id: int
    status: Status
    price: Decimal | None
    at: Any
    ratio: float | None


@asynccontextmanager
async def site_of(engine: AsyncEngine, tables: Any, **capture: Any) -> AsyncIterator[Site]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base, **{"log": True, **capture})
    app = FastAPI()
    limits = Limits(heartbeat=0.5, write_interval=0.005)
    app.include_router(create_sse_router(engine, tables, limits=limits), prefix="/v1")
    async with Listener(engine), serving(app) as site:
        yield site


async def write(engine: AsyncEngine, *items: Any) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add_all(items)


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))


def is_placed(event: Any) -> bool:
    return bool(event.id)


@pytest.mark.parametrize("row_values", [False, True])
async def test_rows_of_a_class_have_its_names_and_values(
    engine: AsyncEngine, row_values: bool
) -> None:
    async with site_of(engine, [Item], row_values=row_values) as site:
        async with (
            reading(site.port, "/v1/changes/items?where=state.eq.PAID") as stream,
            watch(engine, Item, rows=True) as changes,
        ):
            await stream.until(is_placed)
            await write(engine, Item(id=1, **VALUES))
            told = await stream.until("insert")
            change = await anext(changes)
        answer = await site.client.get("/v1/wait/items/1?timeout=0.1", headers=OTHER_STATE)
        async with reading(site.port, "/v1/changes/items?snapshot=true") as stream:
            shown = await stream.until("snapshot")
    async with AsyncSession(engine) as session:
        loaded = await session.get_one(Item, 1)
        expected = {name: json_form(getattr(loaded, name)) for name in ATTRIBUTES}
    assert told.data["row"] == expected
    assert shown.data["row"] == answer.json()["row"] == expected
    assert isinstance(change, Change)
    assert json.loads(change.to_json())["row"] == expected
    assert told.data["key"] == {"item_id": 1}
    assert expected["price"] == "9.9"
    assert expected["cost"] == {"amount": "9.90", "currency": "EUR"}


async def test_a_schema_gets_what_the_application_gives_it(engine: AsyncEngine) -> None:
    """The same schema makes the same row of an object and of a change."""
    async with (
        site_of(engine, {Item: ItemOut}) as site,
        reading(site.port, "/v1/changes/items") as stream,
    ):
        await stream.until(is_placed)
        await write(engine, Item(id=1, **VALUES))
        told = await stream.until("insert")
    async with AsyncSession(engine) as session:
        loaded = await session.get_one(Item, 1)
    assert told.data["row"] == ItemOut.model_validate(loaded).model_dump(mode="json")
    assert told.data["row"]["status"] == "paid"
    assert told.data["row"]["price"] == "9.9"


async def test_rows_of_a_table_are_as_json_of_postgresql(engine: AsyncEngine) -> None:
    async with (
        site_of(engine, [TABLE]) as site,
        reading(site.port, "/v1/changes/items") as stream,
    ):
        await stream.until(is_placed)
        await write(engine, Item(id=1, **VALUES))
        row = (await stream.until("insert")).data["row"]
    assert (row["state"], row["price_in_cents"], row["lasts"]) == (
        "PAID",
        990,
        "399 days 19:00:00.000007",
    )


class Broken(BaseModel):
    id: int
    price: Decimal | None
    small: int


BAD = {
    "types": ([Item, Other], "update items set at = '20000-01-01' where item_id = 2"),
    "schema": ({Item: Broken, Other: None}, "update items set small = null where item_id = 2"),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("row_values", [False, True])
async def test_a_row_that_cannot_be_taken_resets_the_readers_of_its_table(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, reason: str, row_values: bool
) -> None:
    tables, statement = BAD[reason]
    async with site_of(engine, tables, row_values=row_values) as site:
        await write(engine, *(Item(id=n, status=Status.NEW, small=n) for n in (1, 2, 3)))
        async with (
            reading(site.port, "/v1/changes/items") as stream,
            reading(site.port, "/v1/changes/items?conflate=true") as same,
            reading(site.port, "/v1/changes/others") as other,
        ):
            for reader in (stream, same, other):
                start = await reader.until(is_placed)
            await execute(engine, statement, "insert into others values (1)")
            for reader in (stream, same):
                reset = await reader.until("reset")
                assert reset.data["continues"] is True
                assert "public.items" in reset.data["reason"]
                assert (reset.data["table"], reset.data["key"]) == ("items", {"item_id": 2})
                assert reset.id != start.id, "a browser would not resume after the row"
            await execute(engine, "update items set small = 7 where item_id = 3")
            for reader in (stream, same):
                assert (await reader.until("update")).data["row"]["small"] == 7
            await other.until("insert")
            assert "reset" not in {event.name for event in other.events}
        lines = [it.getMessage() for it in caplog.records if it.levelno == logging.ERROR]
        assert [line for line in lines if "{'item_id': 2} of public.items" in line] == lines
        assert len(lines) == 1  # not once for each reader
        await resumed_and_shown(site, start.id)
        async with reading(site.port, f"/v1/changes/items?after={reset.id}") as stream:
            assert (await stream.until("update")).key == 3
        assert "reset" not in {event.name for event in stream.events}
        answer = await site.client.get("/v1/wait/items/2?timeout=0.1", headers=OTHER_STATE)
        assert answer.status_code == 500
        assert "public.items" in answer.json()["detail"]
        assert (await site.client.get("/v1/wait/items/3?timeout=0.1")).status_code == 204


async def resumed_and_shown(site: Site, position: str) -> None:
    """Readers that catch up, or begin with the rows, are told of the row and go on."""
    async with reading(site.port, f"/v1/changes/items?after={position}") as stream:
        await stream.until("reset")
        assert (await stream.until("update")).data["row"]["small"] == 7
    async with reading(site.port, "/v1/changes/items?snapshot=true") as stream:
        await stream.until("snapshot-end")
        names = [event.name for event in stream.events]
    assert names.count("snapshot") == 2
    assert names.count("reset") == 1


async def test_columns_that_a_reader_does_not_see_refuse_nothing(engine: AsyncEngine) -> None:
    async with site_of(engine, {Item: ["id", "small"]}) as site:
        await write(engine, Item(id=1, status=Status.NEW))
        await execute(engine, "update items set at = '20000-01-01'")
        async with reading(site.port, "/v1/changes/items") as stream:
            await stream.until(is_placed)
            await execute(engine, "update items set small = 7")
            assert (await stream.until("update")).data["row"] == {"id": 1, "small": 7}
        answer = await site.client.get("/v1/wait/items/1?timeout=0.1", headers=OTHER_STATE)
        assert answer.json()["row"] == {"id": 1, "small": 7}


async def test_a_value_is_read_once_for_all_readers(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    process = Cents.process_result_value

    def counting(self: Cents, value: Any, dialect: sa.Dialect) -> Decimal | None:
        read.append(value)
        return process(self, value, dialect)

    monkeypatch.setattr(Cents, "process_result_value", counting)
    async with site_of(engine, {Item: ["id", "price", "state", "small"]}) as site:
        queries = (
            "",
            "?where=small.gt.1",
            "?where=state.eq.NEW",
            "?conflate=true",
            "?columns=small",
        )
        paths = [f"/v1/changes/items{query}" for query in queries]
        async with (
            reading(site.port, paths[0]) as one,
            reading(site.port, paths[1]) as two,
            reading(site.port, paths[2]) as three,
            reading(site.port, paths[3]) as four,
            reading(site.port, paths[4]) as five,
        ):
            readers = (one, two, three, four, five)
            for reader in readers:
                await reader.until(is_placed)
            await write(engine, Item(id=1, status=Status.NEW, small=7, price=Decimal("1.25")))
            rows = [(await reader.until("insert")).data["row"] for reader in readers]
    assert {row["price"] for row in rows} == {"1.25"}
    assert read == [125]
