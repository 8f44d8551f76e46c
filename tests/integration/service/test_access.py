"""What a token hides stays hidden, by every way in; what has ended admits to nothing."""

import asyncio
import json
import logging
import time

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from support.event_streams import execute, make_tables, reading
from support.tokens import SECRET, bearer, token
from support.web_server import serving

ROWS = "insert into orders values (1, 'open', 1, 7, 's'), (2, 'open', 1, 8, 's')"
MINE = {"public.orders": {"columns": ["id", "status"], "where": ["customer.eq.7"]}}
ALL = {"*": {}}
ORDERS = "/v1/changes/orders"


def settings_of(database_url, tmp_path):
    return Settings(
        database_url=database_url,
        ticket_dir=tmp_path / "tickets",
        token_secret=SECRET,
        token_leeway=0,
        heartbeat=0.5,
        write_interval=0.005,
        cors_origins=("https://app.example",),
    )


@pytest.fixture
async def site(engine, database_url, tmp_path):
    await make_tables(engine, filter_columns=["customer"])
    await execute(engine, ROWS)
    app = create_app(settings_of(database_url, tmp_path))
    async with serving(app) as found:
        found.service = app.state.service
        yield found


async def test_a_long_poll_ends_with_its_token(site):
    headers = bearer(ALL, exp=int(time.time()) + 2)
    began = time.time()
    answer = await site.client.get("/v1/wait/orders/1?timeout=30", headers=headers)
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]
    assert time.time() - began < 20


async def test_a_ticket_ends_with_its_token(site):
    end = int(time.time()) + 2
    made = await site.client.post("/v1/tickets", headers=bearer(ALL, exp=end))
    path = f"{ORDERS}?ticket={made.json()['ticket']}"
    async with reading(site.port, path) as stream:
        assert (await stream.until("bye")).data["reason"] == "token expired"
    made = await site.client.post("/v1/tickets", headers=bearer(ALL, exp=int(time.time()) + 1))
    await asyncio.sleep(1.1)  # the token has to end, and nothing tells when it has
    late = await site.client.get(f"{ORDERS}?ticket={made.json()['ticket']}")
    assert late.status_code == 401


@pytest.mark.parametrize("path", ["/v1/status", "/metrics", "/v1/tickets"])
async def test_tickets_admit_to_streams_and_long_polls_alone(site, path):
    made = await site.client.post("/v1/tickets", headers=bearer(ALL, status=True))
    answer = await site.client.get(f"{path}?ticket={made.json()['ticket']}")
    assert answer.status_code in {200, 401, 405}
    assert "public.orders" not in answer.text


async def test_a_valid_token_without_the_right_is_forbidden_and_a_bad_one_is_not(site):
    get = site.client.get
    assert (await get("/v1/status", headers=bearer(ALL))).status_code == 403
    assert (await get("/v1/status")).status_code == 401
    broken = {"public.orders": {"where": ["nothing.eq.1"]}}
    refused = await get(ORDERS, headers=bearer(broken))
    assert (refused.status_code, "www-authenticate" in refused.headers) == (403, False)
    inserts = {"public.orders": {"operations": ["insert"]}}
    assert (await get("/v1/wait/orders/1", headers=bearer(inserts))).status_code == 403


async def test_hidden_and_absent_rows_are_asked_for_alike(site):
    statements: list[str] = []
    engine = site.service.engine.sync_engine
    sa.event.listen(
        engine, "before_cursor_execute", lambda *args: statements.append(args[2]), named=False
    )
    answers = []
    for key in (2, 3):
        statements.clear()
        answer = await site.client.get(f"/v1/wait/orders/{key}", headers=bearer(MINE))
        answers.append((answer.status_code, answer.content, dict(answer.headers), [*statements]))
    hidden, absent = answers
    for name in ("date",):
        hidden[2].pop(name, None), absent[2].pop(name, None)
    assert hidden == absent
    assert hidden[0] == 404
    assert sum("orders" in it for it in hidden[3]) == 1


async def test_a_row_that_becomes_hidden_is_as_one_that_is_deleted(site, engine):
    texts = []
    for change in (
        "update orders set customer = 8 where id = 1",
        "delete from orders where id = 1",
    ):
        await execute(engine, "update orders set customer = 7 where id = 1")
        asking = asyncio.create_task(
            site.client.get("/v1/wait/orders/1?timeout=20", headers=bearer(MINE))
        )
        async with asyncio.timeout(20):
            while not site.service.outlet.fanout.readers:
                await asyncio.sleep(0.01)
        await execute(engine, change)
        answer = await asking
        texts.append((answer.status_code, answer.text))
    assert texts[0] == texts[1]
    assert texts[0][0] == 404


async def test_a_long_poll_does_not_tell_changes_of_hidden_columns(site, engine):
    first = await site.client.get(
        "/v1/wait/orders/1?timeout=5", headers={**bearer(MINE), "If-None-Match": '"none"'}
    )
    known = {**bearer(MINE), "If-None-Match": f'W/{first.headers["etag"]}, "other"'}
    asking = asyncio.create_task(site.client.get("/v1/wait/orders/1?timeout=2", headers=known))
    async with asyncio.timeout(20):
        while not asking.done():
            await execute(engine, "update orders set secret = secret || 'x' where id = 1")
            await asyncio.wait([asking], timeout=0.1)
    assert (await asking).status_code == 204
    star = {**bearer(MINE), "If-None-Match": "*"}
    assert (await site.client.get("/v1/wait/orders/1?timeout=0.1", headers=star)).status_code == 204


def statements_on(site, table, number):
    """An event for the time when the service has asked for a table so often."""
    reached, statements = asyncio.Event(), []

    def note(*arguments):
        statements.extend([None] if table in arguments[2] else [])
        if len(statements) >= number:
            reached.set()

    sa.event.listen(site.service.engine.sync_engine, "after_cursor_execute", note)
    return reached


async def test_a_long_poll_tells_the_operations_that_were_granted_and_asked_for(site, engine):
    async def poll(grant, query=""):
        headers = {**bearer({"public.orders": grant}), "If-None-Match": '"none"'}
        return await site.client.get(f"/v1/wait/orders/1?timeout=0.3{query}", headers=headers)

    assert (await poll({})).status_code == 200
    assert (await poll({"operations": ["update"]})).status_code == 200
    assert (await poll({"operations": ["delete"]})).status_code == 204
    assert (await poll({}, "&operations=delete")).status_code == 204
    assert (await poll({}, "&operations=insert")).status_code == 403
    assert (await poll({}, "&operations=nothing")).status_code == 422
    looked = statements_on(site, "orders", 3)
    asking = asyncio.create_task(
        site.client.get(
            "/v1/wait/orders/1?timeout=3&operations=update", headers=bearer({"public.orders": {}})
        )
    )
    async with asyncio.timeout(20):
        await looked.wait()
    await execute(engine, "delete from orders where id = 1")
    assert (await asking).status_code == 204


async def test_a_stream_tells_neither_hidden_changes_nor_hidden_keys(site, engine):
    grant = {"public.orders": {"columns": ["status"], "where": ["customer.eq.7"]}}
    async with reading(site.port, f"{ORDERS}?snapshot=true", headers=bearer(grant)) as stream:
        await stream.until("snapshot-end")
        (row,) = [it for it in stream.events if it.name == "snapshot"]
        assert list(row.data["key"]) == [""]
        await stream.until("heartbeat")
        await execute(engine, "update orders set secret = 'new', total = 5 where id = 1")
        await execute(engine, "update orders set status = 'paid' where id in (1, 2)")
        update = await stream.until("update")
        assert update.data["row"] == {"status": "paid"}
        assert update.data["key"] == row.data["key"]
        await execute(engine, "delete from orders where id = 2")
        await execute(engine, "delete from orders where id = 1")
        assert (await stream.until("delete")).data["key"] == row.data["key"]
        await execute(engine, "truncate orders")
        await execute(engine, "insert into orders values (5, 'new', 1, 7, '')")
        await stream.until("insert")
    names = [it.name for it in stream.events if it.name not in {"heartbeat", "snapshot-end"}]
    assert names == ["snapshot", "update", "delete", "insert"]
    for path in (f"{ORDERS}?pk=1", "/v1/wait/orders/1"):
        assert (await site.client.get(path, headers=bearer(grant))).status_code == 422


async def test_status_and_metrics_name_only_the_tables_of_the_token(site, engine):
    async with reading(
        site.port, "/v1/changes?table=orders&table=items", headers=bearer(ALL)
    ) as it:
        await it.until(lambda event: event.id != "")
        await execute(engine, "insert into items values (1, 'x', 1)")
        await execute(engine, "update orders set status = 'x'")
        await it.until("update")
    mine, everything = bearer(MINE, status=True), bearer(ALL, status=True)
    status = (await site.client.get("/v1/status", headers=mine)).json()
    (orders,) = status["tables"]
    assert set(orders["columns"]) == {"id", "status"}
    assert (orders["changes"], orders["estimated_rows"]) == ({}, None)
    assert len((await site.client.get("/v1/status", headers=everything)).json()["tables"]) == 2
    for headers, named in [
        ({}, set()),
        (mine, {"public.orders"}),
        (everything, {"public.orders", "public.items"}),
    ]:
        text = (await site.client.get("/metrics", headers=headers)).text
        families = list(text_string_to_metric_families(text))
        tables = {it.labels["table"] for f in families for it in f.samples if "table" in it.labels}
        assert tables - {"rowsignal.change"} == named
        assert "rowsignal_readers" in {family.name for family in families}
    nonsense = {"Authorization": "Bearer nonsense"}
    assert (await site.client.get("/metrics", headers=nonsense)).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Sec-Fetch-Site": "same-site"}, 401),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 401),
        ({"Origin": "null"}, 401),
    ],
)
async def test_a_cookie_counts_for_requests_of_our_own_pages(site, headers, status):
    cookie = {"Cookie": f"rowsignal_token={token({'tables': ALL, 'status': True})}"}
    answer = await site.client.get("/v1/status", headers={**cookie, **headers})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/client.js",
        "/v1/status",
        "/nothing",
        ORDERS,
        "/metrics",
        "/health/live",
        "/v1/wait/a/1",
    ],
)
async def test_every_answer_says_nosniff(site, path):
    answer = await site.client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"


BIG = "9" * 19


async def test_what_is_malformed_is_unprocessable_and_never_an_error_of_ours(site, engine):
    async with reading(site.port, f"{ORDERS}?snapshot=true", headers=bearer(ALL)) as stream:
        position = (await stream.until("snapshot-end")).id
    for path in (
        f"{ORDERS}?after={position}.{BIG}",
        f"{ORDERS}?pk=1%00",
        "/v1/changes/items?pk=%5B1%2C%22a%5Cu0000%22%5D",
        "/v1/changes/items?pk=%5B1%2C%22%5Cud800%22%5D",
        "/v1/wait/items/%5B1%2C%22a%5Cu0000%22%5D",
        f"{ORDERS}?where=status.eq.%ED%A0%80",
        f"{ORDERS}?where=status.eq.%FF",
        f"{ORDERS}?where=status.eq.%00",
        "/v1/wait/orders/%FF",
        "/v1/wait/orders/99999999999999999999",
    ):
        answer = await site.client.get(path, headers=bearer(ALL))
        assert answer.status_code == 422, path
        assert answer.json()["status"] == 422


async def test_logs_hold_no_values_of_filters_keys_or_rows(capsys, engine, database_url, tmp_path):
    await make_tables(engine)
    secret = "s3cr3t-filter-value"
    poll = f"/v1/wait/items/%5B1,%22{secret}%22%5D"
    async with serving(create_app(settings_of(database_url, tmp_path))) as site:
        await execute(engine, "alter table orders rename column status to gone")
        path = f"{ORDERS}?snapshot=true&where=status.eq.{secret}"
        async with reading(site.port, path, headers=bearer(ALL)) as stream:
            await stream.until(lambda event: event.name in {"bye", "reset"})
        assert (await site.client.get(poll, headers=bearer(ALL))).status_code == 404
        await execute(engine, "drop table items")
        assert (await site.client.get(poll, headers=bearer(ALL))).status_code == 503
        logging.getLogger("anything").error("it failed", exc_info=ValueError(secret))
        logging.getLogger("anything").error("it failed: %s", ValueError(secret))
    lines = capsys.readouterr().err.splitlines()
    found = [json.loads(it) for it in lines]
    written = "\n".join(str(it) for it in found if it["logger"] != "httpx")
    assert "ValueError" in written
    assert secret not in written
