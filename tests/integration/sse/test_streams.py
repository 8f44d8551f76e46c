"""Streams of a FastAPI application: rows, start, and end."""

import asyncio
import decimal
import json
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, computed_field

from rowsignal.listener import Listener
from rowsignal.sse import Grant, Limits, TableGrant, create_sse_router
from support.event_streams import Base, Item, Order, execute, make_tables, reading
from support.web_server import serving


class OrderOut(BaseModel):
    id: int
    status: str | None
    total: decimal.Decimal

    @computed_field
    @property
    def is_paid(self) -> bool:
        return self.status == "paid"


OFFERED = {Order: ["id", "status", "total", "customer"], Item: None}


def app_of(engine, tables=OFFERED, **options):
    @asynccontextmanager
    async def lifespan(_):
        async with Listener(engine):
            yield

    app = FastAPI(lifespan=lifespan)
    options.setdefault("limits", Limits(heartbeat=0.5, tick=0.005))
    app.include_router(create_sse_router(engine, tables, **options), prefix="/v1")
    return app


@pytest.fixture
async def site(engine):
    await make_tables(engine)
    async with serving(app_of(engine)) as site:
        yield site


@pytest.fixture
async def hint_site(engine):
    await make_tables(engine, log=False)
    async with serving(app_of(engine)) as site:
        yield site


async def test_a_stream_begins_at_once_and_tells_each_change(site, engine):
    async with reading(site.port, "/v1/changes/orders") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        await stream.until("heartbeat")
        assert stream.retries
        await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (9007199254740993, 'open', 1.50, 7, 'x')")
        insert = await stream.until("insert")
        assert insert.data["row"] == {
            "id": "9007199254740993",
            "status": "open",
            "total": "1.50",
            "customer": 7,
        }
        assert insert.data["key"] == {"id": "9007199254740993"}
        assert insert.id
        await execute(engine, "update orders set status = 'paid'")
        update = await stream.until("update")
        assert update.data["changed"] == ["status"]
        assert update.data["row"]["status"] == "paid"
        await execute(engine, "delete from orders")
        assert "row" not in (await stream.until("delete")).data
        await execute(engine, "truncate orders")
        assert (await stream.until("truncate")).data["key"] is None


async def test_a_hidden_column_is_neither_shown_nor_told_to_have_changed(site, engine):
    await execute(engine, "insert into orders values (1, 'open', 1, 7, 'old')")
    async with reading(site.port, "/v1/changes/orders?snapshot=true") as stream:
        snapshot = await stream.until("snapshot")
        await stream.until("snapshot-end")
        await execute(engine, "update orders set secret = 'new'")
        await execute(engine, "update orders set secret = 'newer', status = 'paid'")
        update = await stream.until("update")
        assert update.data["changed"] == ["status"]
        assert "secret" not in json.dumps([update.data, snapshot.data])
        assert [event.name for event in stream.events].count("update") == 1


async def test_a_pydantic_schema_makes_what_leaves(engine):
    await make_tables(engine)
    async with (
        serving(app_of(engine, {Order: OrderOut})) as site,
        reading(site.port, "/v1/changes/public.orders") as stream,
    ):
        await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (1, 'paid', 2.50, 7, 'x')")
        row = (await stream.until("insert")).data["row"]
        assert row == {"id": 1, "status": "paid", "total": "2.50", "is_paid": True}


async def test_several_tables_come_in_one_stream_in_order_of_commit(site, engine):
    query = "table=orders&table=public.items&where=public.items:amount.gt.1"
    async with reading(site.port, f"/v1/changes?{query}") as stream:
        await stream.until(lambda event: event.id != "")
        await execute(
            engine, "insert into orders (id, total, customer, secret) values (1, 0, 1, '')"
        )
        await execute(engine, "insert into items values (1, 'few', 1), (1, 'many', 5)")
        await execute(engine, "update orders set status = 'done'")
        assert (await stream.until("insert")).data["table"] == "orders"
        assert (await stream.until("insert")).data["key"] == {"order_id": 1, "name": "many"}
        assert (await stream.until("update")).data["table"] == "orders"


async def test_a_row_that_enters_and_leaves_a_filter_is_told_and_deleted(site, engine):
    await execute(engine, "insert into orders values (1, 'open', 1, 7, ''), (2, 'paid', 1, 7, '')")
    path = "/v1/changes/orders?where=status.eq.paid&snapshot=true"
    async with reading(site.port, path) as stream:
        await stream.until("snapshot-end")
        assert [event.key for event in stream.events if event.name == "snapshot"] == [2]
        await execute(engine, "update orders set status = 'paid' where id = 1")
        entered = await stream.until("update")
        assert entered.key == 1
        await execute(engine, "update orders set status = 'open' where id = 2")
        assert (await stream.until("delete")).key == 2
        await execute(engine, "delete from orders where id = 2")
        await execute(engine, "delete from orders where id = 1")
        assert (await stream.until("delete")).key == 1


async def test_keys_operations_and_columns_narrow_a_stream(site, engine):
    path = "/v1/changes/orders?pk=2&pk=3&operations=update,delete&columns=status"
    async with reading(site.port, path) as stream:
        await stream.until(lambda event: event.id != "")
        await execute(
            engine, "insert into orders select g, 'open', 1, 7, '' from generate_series(1, 3) g"
        )
        await execute(engine, "update orders set total = 5")
        await execute(engine, "update orders set status = 'paid' where id < 3")
        await execute(engine, "delete from orders where id = 3")
        assert (await stream.until("delete")).key == 3
        told = [(it.name, it.key) for it in stream.events if it.name != "heartbeat"]
        assert told == [("update", 2), ("delete", 3)]


async def test_a_composite_key_is_asked_for_as_json(site, engine):
    async with reading(site.port, '/v1/changes/items?pk=[1,"b"]') as stream:
        await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into items values (1, 'a', 1), (1, 'b', 1)")
        assert (await stream.until("insert")).key == (1, "b")


async def test_a_reader_that_comes_back_gets_what_it_missed_once(site, engine):
    async with reading(site.port, "/v1/changes/orders") as stream:
        await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (1, 'a', 1, 7, ''), (2, 'a', 1, 7, '')")
        await stream.until("insert")
        stream.cut()
    place = stream.events[-1].id
    missed = [it.key for it in stream.events if it.name == "insert"]
    await execute(engine, "insert into orders values (3, 'a', 1, 7, '')")
    async with reading(site.port, "/v1/changes/orders", headers={"Last-Event-ID": place}) as stream:
        await stream.until(lambda event: event.key == 3)
        await execute(engine, "insert into orders values (4, 'a', 1, 7, '')")
        await stream.until(lambda event: event.key == 4)
        again = [it.key for it in stream.events if it.name == "insert"]
    assert missed + again == [1, 2, 3, 4]


async def test_heartbeats_carry_narrow_filters_forward(site, engine):
    async with reading(site.port, "/v1/changes/orders?pk=1") as stream:
        first = await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (2, 'a', 1, 7, '')")
        moved = await stream.until(lambda event: event.id != first.id)
        assert moved.name == "heartbeat"
    path = f"/v1/changes/orders?after={moved.id}"
    async with reading(site.port, path) as stream:
        await execute(engine, "insert into orders values (3, 'a', 1, 7, '')")
        assert (await stream.until("insert")).key == 3


@pytest.mark.parametrize("header", [{}, {"Last-Event-ID": "nonsense"}])
async def test_a_position_that_is_none_is_refused(site, header):
    async with reading(site.port, "/v1/changes/orders?after=nonsense", headers=header) as stream:
        assert stream.status == 422
        assert stream.headers["content-type"] == "application/problem+json"


async def test_a_position_of_another_log_is_a_reset_that_makes_browsers_forget(site, engine):
    async with reading(site.port, "/v1/changes/orders") as stream:
        place = (await stream.until(lambda event: event.id != "")).id
    await execute(engine, "delete from rowsignal.incarnation")
    async with reading(site.port, f"/v1/changes/orders?after={place}") as stream:
        reset = await stream.until("reset")
        assert reset.data["reason"]
        assert stream.last_id == ""
        assert await stream.rest() == []


async def test_hint_tables_stream_live_without_places(hint_site, engine):
    await execute(engine, "insert into orders values (1, 'open', 1.50, 7, '')")
    async with reading(hint_site.port, "/v1/changes/orders?snapshot=true") as stream:
        end = await stream.until("snapshot-end")
        assert end.id == ""
        await execute(engine, "update orders set status = 'paid'")
        update = await stream.until("update")
        assert update.data["row"]["status"] == "paid"
        assert update.id == ""


async def test_a_hint_table_without_earlier_readers_is_streamed_without_a_reset(hint_site, engine):
    async with reading(hint_site.port, "/v1/changes/orders") as stream:
        await stream.until("heartbeat")
        await execute(engine, "insert into orders values (1, 'open', 1.50, 7, '')")
        await stream.until("insert")
        assert "reset" not in [event.name for event in stream.events]


async def test_a_gap_in_the_hints_is_a_reset_when_it_begins_and_when_it_is_over(hint_site, engine):
    async with reading(hint_site.port, "/v1/changes/orders") as stream:
        await stream.until("heartbeat")
        await execute(
            engine,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'rowsignal listener' and datname = current_database()",
        )
        lost = await stream.until("reset")
        assert lost.data["continues"]
        await stream.until(lambda it: it.name == "reset" and "for a while" in it.data["reason"])
        await execute(engine, "insert into orders values (1, 'open', 1.50, 7, '')")
        await stream.until("insert")
        assert stream.events[-1].name == "insert"


async def test_hint_tables_can_not_be_resumed(hint_site, site_position):
    path = f"/v1/changes/orders?after={site_position}"
    async with reading(hint_site.port, path) as stream:
        assert "change log" in (await stream.until("reset")).data["reason"]


@pytest.fixture
def site_position():
    from uuid import UUID

    from rowsignal.change_log.positions import Position, Snapshot

    return Position(UUID(int=1), Snapshot(1000)).encode()


async def test_a_table_without_triggers_names_the_fix(engine):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with serving(app_of(engine)) as site:
        answer = await site.client.get("/v1/changes/orders")
        assert answer.status_code == 503
        assert "rowsignal install public.orders" in answer.json()["detail"]


async def test_authorize_denies_narrows_and_filters(engine):
    await make_tables(engine)
    await execute(engine, "insert into orders values (1, 'a', 1, 7, ''), (2, 'a', 1, 8, '')")

    def authorize(user: int = 0) -> Grant:
        if not user:
            raise HTTPException(403, "Who are you?")
        only = TableGrant(columns=frozenset({"id", "status"}), where=(f"customer.eq.{user}",))
        return Grant(tables={"public.orders": only}, principal=str(user))

    async with serving(app_of(engine, authorize=authorize)) as site:
        denied = await site.client.get("/v1/changes/orders")
        assert (denied.status_code, denied.json()["detail"]) == (403, "Who are you?")
        assert (await site.client.get("/v1/changes/items?user=7")).status_code == 404
        guess = await site.client.get("/v1/changes/orders?user=7&where=customer.eq.8")
        assert guess.status_code == 422
        async with reading(site.port, "/v1/changes/orders?user=7&snapshot=true") as stream:
            await stream.until("snapshot-end")
            await execute(engine, "update orders set customer = 8 where id = 1")
            await execute(engine, "update orders set status = 'b' where id = 2")
            await execute(engine, "delete from orders where id = 2")
            await execute(engine, "insert into orders values (3, 'a', 1, 7, '')")
            assert (await stream.until("insert")).data["row"] == {"id": 3, "status": "a"}
        told = [(it.name, it.key) for it in stream.events if it.data.get("key")]
        assert told == [("snapshot", 1), ("delete", 1), ("insert", 3)]


async def test_a_resumed_reader_whose_permission_hides_rows_learns_no_foreign_key(engine):
    await make_tables(engine)

    def authorize() -> Grant:
        return Grant(tables={"public.orders": TableGrant(where=("customer.eq.7",))})

    async with serving(app_of(engine, authorize=authorize)) as site:
        async with reading(site.port, "/v1/changes/orders") as stream:
            place = (await stream.until(lambda event: event.id != "")).id
        await execute(engine, "insert into orders values (2, 'a', 1, 8, '')")
        await execute(engine, "delete from orders")
        async with reading(site.port, f"/v1/changes/orders?after={place}") as stream:
            events = await stream.rest()
        assert [event.name for event in events] == ["heartbeat", "reset"]


async def test_a_stream_ends_when_its_grant_does(engine):
    await make_tables(engine)
    loop_time = asyncio.get_running_loop().time

    def authorize() -> Grant:
        import time

        return Grant(tables={"*": TableGrant()}, expires_at=time.time() + 0.3)

    async with serving(app_of(engine, authorize=authorize)) as site:
        began = loop_time()
        async with reading(site.port, "/v1/changes/orders") as stream:
            assert (await stream.until("bye")).data["reason"] == "token expired"
            assert await stream.rest() == []
        assert loop_time() - began >= 0.25


async def test_shutdown_says_goodbye_and_does_not_hang(engine):
    await make_tables(engine)
    async with (
        serving(app_of(engine)) as site,
        reading(site.port, "/v1/changes/orders") as stream,
    ):
        await stream.until(lambda event: event.id != "")
        stop = asyncio.create_task(site.stop())
        bye = await stream.until("bye")
        assert bye.data["reason"] == "shutdown"
        assert 1000 <= stream.retries[-1] == bye.data["retry"] <= 3000
        await stop
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others


async def test_errors_are_problem_documents(site):
    for path, status in [
        ("/v1/changes/nowhere", 404),
        ("/v1/changes", 422),
        ("/v1/changes/orders?where=total.eq.much", 422),
        ("/v1/changes/orders?columns=secret", 422),
        ("/v1/changes/orders?operations=upsert", 422),
        ("/v1/changes/orders?pk=one", 422),
        ("/v1/changes/items?pk=1", 422),
        ("/v1/changes/orders?snapshot=perhaps", 422),
        ("/v1/changes?table=orders&table=items&where=id.eq.1", 422),
        ("/v1/wait/orders/77", 404),
        ("/v1/wait/orders/1?timeout=1000", 422),
    ]:
        answer = await site.client.get(path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"type", "title", "status", "detail"}


async def test_openapi_documents_every_event(site):
    document = (await site.client.get("/openapi.json")).json()
    answer = document["paths"]["/v1/changes/{table}"]["get"]["responses"]["200"]
    events = answer["content"]["text/event-stream"]["schema"]["oneOf"]
    titles = {event["title"] for event in events}
    assert titles >= {"snapshot", "snapshot-end", "insert", "heartbeat", "reset", "bye"}


async def test_a_long_poll_returns_the_row_when_it_changes(site, engine):
    await execute(engine, "insert into orders values (1, 'open', 1.50, 7, '')")
    quiet = await site.client.get("/v1/wait/orders/1?timeout=0.05")
    assert quiet.status_code == 204
    waiting = asyncio.create_task(
        site.client.get("/v1/wait/orders/1?timeout=9&columns=status", headers={"If-None-Match": ""})
    )
    first = await waiting
    known = {"If-None-Match": first.headers["etag"]}
    assert first.json()["row"]["status"] == "open"
    waiting = asyncio.create_task(site.client.get("/v1/wait/orders/1?timeout=9", headers=known))
    await execute(engine, "update orders set status = 'paid'")
    second = await waiting
    assert second.json()["row"] == {"id": 1, "status": "paid", "total": "1.50", "customer": 7}
    assert second.headers["etag"] != first.headers["etag"]


async def test_logged_filter_columns_make_narrow_streams_resumable(engine):
    await make_tables(engine, filter_columns=["customer"])

    def authorize() -> Grant:
        return Grant(tables={"public.orders": TableGrant(where=("customer.eq.7",))})

    async with serving(app_of(engine, authorize=authorize)) as site:
        async with reading(site.port, "/v1/changes/orders") as stream:
            place = (await stream.until(lambda event: event.id != "")).id
        await execute(engine, "insert into orders values (1, 'a', 1, 7, ''), (2, 'a', 1, 8, '')")
        await execute(engine, "update orders set customer = 15 - customer")
        await execute(engine, "delete from orders")
        await execute(engine, "insert into orders values (3, 'end', 1, 7, '')")
        async with reading(site.port, f"/v1/changes/orders?after={place}") as stream:
            await stream.until(lambda event: event.key == 3)
        told = {it.key for it in stream.events if "operation" in it.data}
        assert told <= {1, 2, 3}
        ends = {it.key: it.name for it in stream.events if "operation" in it.data}
        assert ends[3] == "insert"
        assert ends.get(1, "delete") == ends.get(2, "delete") == "delete"


async def test_logged_values_show_each_row_as_its_change_left_it(engine):
    await make_tables(engine, row_values=True, exclude=["secret"])
    async with (
        serving(app_of(engine)) as site,
        reading(site.port, "/v1/changes/orders") as stream,
    ):
        await stream.until(lambda event: event.id != "")
        await execute(
            engine,
            "insert into orders values (1, 'a', 1.50, 7, '')",
            "update orders set status = 'b'",
            "update orders set status = 'c'",
            "delete from orders",
        )
        await stream.until("delete")
        told = [it.data for it in stream.events if "operation" in it.data]
    assert [data.get("row", {}).get("status") for data in told] == ["a", "b", "c", None]
    assert [data.get("old", {}).get("status") for data in told] == [None, "a", "b", "c"]
    assert told[0]["row"]["total"] == "1.50"


async def test_a_row_that_a_schema_refuses_resets_its_readers_and_no_others(engine):
    class Strict(BaseModel):
        id: int
        status: str

    await make_tables(engine)
    async with (
        serving(app_of(engine, {Order: Strict, Item: None})) as site,
        reading(site.port, "/v1/changes/orders") as strict,
        reading(site.port, "/v1/changes/items") as other,
    ):
        await strict.until(lambda event: event.id != "")
        await other.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (1, null, 1, 7, '')")
        assert "could not be shown" in (await strict.until("reset")).data["reason"]
        await execute(engine, "insert into items values (1, 'a', 1)")
        assert (await other.until("insert")).key == (1, "a")


async def test_a_grant_that_does_not_fit_its_table_tells_nothing_of_it(engine):
    await make_tables(engine)

    def authorize() -> Grant:
        return Grant(tables={"*": TableGrant(where=("secret_column.eq.1",))})

    async with serving(app_of(engine, authorize=authorize)) as site:
        answer = await site.client.get("/v1/changes/orders")
        assert answer.status_code == 403
        assert "secret" not in answer.text
