"""What the service tells of the past, of readers, and of the doctor: to whom, and how much."""

import asyncio

import pytest
from pydantic import BaseModel
from sqlalchemy.engine import make_url

from rowsignal import grant
from rowsignal.service import create_dashboard, grant_everything
from rowsignal.service.app import create_app
from rowsignal.service.history import SETTINGS
from rowsignal.service.settings import Settings
from support import handlers
from support.event_streams import Order, execute, make_tables, reading
from support.tokens import SECRET, bearer
from support.web_server import serving

ALL = {"*": {}}
READER = "past_reader"
ROWS = "insert into orders values (1, 'open', 1, 7, 's1'), (2, 'open', 1, 8, 's2')"


def app_of(database_url, tmp_path):
    settings = Settings(
        database_url=database_url,
        ticket_dir=tmp_path / "tickets",
        token_secret=SECRET,
        log_level="error",
    )
    return create_app(settings)


@pytest.fixture
async def site(engine, database_url, tmp_path):
    await make_tables(engine, row_values=True)
    async with serving(app_of(database_url, tmp_path)) as found:
        yield found


async def ask(site, path, tables=ALL, **claims):
    headers = bearer(tables, **{"status": True, **claims})
    answer = await site.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def told(answer):
    return [(it["operation"], tuple((it["key"] or {}).values())) for it in answer["changes"]]


async def test_the_history_of_a_row_has_its_values_before_and_after(site, engine):
    await execute(engine, ROWS)
    await execute(engine, "update orders set status = 'paid', total = 9.50 where id = 1")
    await execute(engine, "delete from orders where id = 2")
    found = await ask(site, "/v1/history/orders/1")
    assert found["row"]["status"] == "paid"
    assert found["is_complete"] is True
    assert told(found) == [("update", (1,)), ("insert", (1,))]
    newest, first = found["changes"]
    assert (newest["old"]["status"], newest["row"]["status"]) == ("open", "paid")
    assert (newest["old"]["total"], newest["row"]["total"]) == ("1", "9.50")
    assert sorted(newest["changed"]) == ["status", "total"]
    assert "old" not in first
    gone = await ask(site, "/v1/history/orders/2")
    assert gone["row"] is None
    assert told(gone) == [("delete", (2,)), ("insert", (2,))]
    assert gone["changes"][0]["old"]["secret"] == "s2"


async def test_keys_of_several_columns_and_truncates_belong_to_a_row(site, engine):
    await execute(engine, """insert into items values (1, 'a/b "c"', 2), (1, 'other', 2)""")
    await execute(engine, "update items set amount = 3 where name like 'a%'")
    await execute(engine, "truncate items")
    found = await ask(site, '/v1/history/items/[1,"a%2Fb \\"c\\""]')
    key = (1, 'a/b "c"')
    assert told(found) == [("truncate", ()), ("update", key), ("insert", key)]


async def test_a_transaction_is_told_in_its_order_over_all_its_tables(site, engine):
    await execute(engine, ROWS, "insert into items values (1, 'cup', 1)")
    recent = await ask(site, "/v1/history")
    number = recent["changes"][0]["transaction_id"]
    found = await ask(site, f"/v1/transactions/{number}")
    assert told(found) == [("insert", (1,)), ("insert", (2,)), ("insert", (1, "cup"))]
    assert found["is_complete"] is True
    assert told(await ask(site, "/v1/transactions/1")) == []
    mine = await ask(site, f"/v1/transactions/{number}", {"public.items": {}})
    assert told(mine) == [("insert", (1, "cup"))]


async def test_what_a_writer_calls_itself_is_shown_nowhere(site, engine):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = bearer(ALL, status=True)
    async with reading(site.port, "/v1/changes/orders", headers=headers) as stream:
        beginning = (await stream.until(lambda event: event.id != "")).id
        await execute(engine, f"set local rowsignal.trace = '{trace}'", ROWS)
        seen = [await stream.until("insert"), await stream.until("insert")]
    path = f"/v1/changes/orders?after={beginning}"
    async with reading(site.port, path, headers=headers) as stream:
        seen += [await stream.until("insert"), await stream.until("insert")]
    async with engine.connect() as connection:
        logged = await connection.exec_driver_sql("select distinct trace from rowsignal.change")
        assert logged.scalar_one() == trace
    answers = [str(event) for event in seen]
    number = seen[0].data["transaction_id"]
    for path in ("history", "history/orders/1", f"transactions/{number}", "timeline", "status"):
        answer = await site.client.get(f"/v1/{path}", headers=headers)
        assert answer.status_code == 200
        answers.append(answer.text)
    assert [answer for answer in answers if trace in answer] == []


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "18446744073709551616", "%C2%B2", "'"])
async def test_what_is_no_transaction_id_is_refused_in_a_sentence(site, number):
    headers = bearer(ALL, status=True)
    answer = await site.client.get(f"/v1/transactions/{number}", headers=headers)
    assert answer.status_code == 422
    assert "transaction id" in answer.json()["detail"]


async def test_recent_changes_come_newest_first_and_bounded(site, engine):
    await execute(
        engine, "insert into orders select n, 'open', n, 7, 's' from generate_series(1, 30) n"
    )
    found = await ask(site, "/v1/history?limit=5")
    assert told(found) == [("insert", (number,)) for number in range(30, 25, -1)]
    only = await ask(site, "/v1/history?table=items")
    assert only["changes"] == []
    refused = await site.client.get("/v1/history?limit=100000", headers=bearer(ALL, status=True))
    assert refused.status_code == 422


async def test_no_answer_reads_more_of_the_log_than_its_bound(site, engine, monkeypatch):
    monkeypatch.setattr("rowsignal.service.history.SEARCHED", 10)
    await execute(engine, ROWS)
    await execute(engine, "insert into items select n, 'n', n from generate_series(1, 50) n")
    found = await ask(site, "/v1/history/orders/1")
    assert found["changes"] == []
    assert found["is_complete"] is False
    assert found["row"]["status"] == "open"


async def test_a_grant_hides_in_the_past_what_it_hides_now(site, engine):
    await execute(engine, ROWS)
    await execute(engine, "update orders set customer = 8 where id = 1")
    await execute(engine, "update orders set secret = 'x' where id = 2")
    await execute(engine, "update orders set customer = 7 where id = 2")
    narrow = {"public.orders": {"columns": ["id", "status"], "where": ["customer.eq.7"]}}
    first = await ask(site, "/v1/history/orders/1", narrow)
    assert first["row"] is None
    assert told(first) == [("delete", (1,)), ("insert", (1,))]
    assert first["changes"][1]["row"] == {"id": 1, "status": "open"}
    second = await ask(site, "/v1/history/orders/2", narrow)
    assert told(second) == [("insert", (2,))]
    assert second["row"] == {"id": 2, "status": "open"}
    for path in ("/v1/history", "/v1/history/orders/2"):
        answer = await site.client.get(path, headers=bearer(narrow, status=True))
        assert "secret" not in answer.text
        assert "customer" not in answer.text
    assert (await ask(site, "/v1/timeline", narrow))["tables"] == {}


async def test_operations_and_hidden_keys_are_those_of_the_grant(site, engine):
    await execute(engine, ROWS, "delete from orders where id = 2")
    inserts = {"public.orders": {"operations": ["insert"]}}
    assert told(await ask(site, "/v1/history", inserts)) == [("insert", (2,)), ("insert", (1,))]
    keyless = {"public.orders": {"columns": ["status"]}}
    (change, *_) = (await ask(site, "/v1/history", keyless))["changes"]
    assert list(change["key"]) == [""]
    headers = bearer(keyless, status=True)
    refused = await site.client.get("/v1/history/orders/1", headers=headers)
    assert refused.status_code == 422


async def test_rows_under_row_level_security_have_no_past_here(engine, database_url, tmp_path):
    await make_tables(engine, row_values=True)
    await execute(engine, ROWS)
    await execute(
        engine,
        "alter table orders enable row level security",
        "create policy mine on orders using (customer = 7)",
        f"create role {READER} login",
        f"grant select on orders, items to {READER}",
    )
    await grant(engine, READER, serve=True)
    url = make_url(database_url).set(username=READER).render_as_string(hide_password=False)
    async with serving(app_of(url, tmp_path)) as site:
        found = await ask(site, "/v1/history")
        assert found["changes"] == []
        assert (await ask(site, "/v1/history/orders/1"))["row"]["customer"] == 7
        assert (await ask(site, "/v1/history/orders/2"))["row"] is None
        assert (await ask(site, "/v1/timeline"))["tables"] == {}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/history",
        "/v1/history/orders/1",
        "/v1/transactions/1",
        "/v1/timeline",
        "/v1/readers",
        "/v1/doctor",
    ],
)
async def test_nothing_of_it_is_for_tokens_without_the_right(site, path):
    get = site.client.get
    assert (await get(path)).status_code == 401
    assert (await get(path, headers=bearer(ALL))).status_code == 403
    made = await site.client.post("/v1/tickets", headers=bearer(ALL, status=True))
    assert (await get(f"{path}?ticket={made.json()['ticket']}")).status_code == 401


async def test_a_table_that_is_not_granted_is_not_there(site):
    headers = bearer({"public.items": {}}, status=True)
    for path in ("/v1/history/orders/1", "/v1/history?table=orders", "/v1/history/nothing/1"):
        answer = await site.client.get(path, headers=headers)
        assert answer.status_code == 404
        assert "not yours to see" in answer.json()["detail"]


async def test_the_timeline_counts_changes_that_no_stream_has_seen(site, engine):
    await execute(engine, ROWS)
    await execute(engine, "update orders set total = 2")
    marks = (await ask(site, "/v1/timeline"))["tables"]["public.orders"]
    counts = {kind: 0 for _, kind, _ in marks}
    for _, kind, number in marks:
        counts[kind] += number
    assert counts == {"insert": 2, "update": 2}


async def test_readers_are_told_with_tables_buffer_and_resets(site, engine):
    await execute(engine, ROWS)
    headers = bearer(ALL, sub="ada")
    async with reading(site.port, "/v1/changes/orders", headers=headers) as stream:
        await stream.until("heartbeat")
        found = await ask(site, "/v1/readers")
        (reader,) = found["readers"]
        assert (reader["principal"], reader["tables"]) == ("ada", ["public.orders"])
        assert reader["resets"] == 0
        assert reader["lag"] == 0
        assert found["total"] == 1
        other = await ask(site, "/v1/readers", {"public.orders": {}}, sub="bela")
        assert other["readers"] == []
    assert found["consumers"] == []


async def test_the_doctor_is_asked_once_for_all(site, engine):
    answers = await asyncio.gather(*(ask(site, "/v1/doctor") for _ in range(5)))
    assert len({answer["examined_at"] for answer in answers}) == 1
    subjects = {finding["subject"] for finding in answers[0]["findings"]}
    assert {"server", "schema", "listening"} <= subjects
    partly = await site.client.get("/v1/doctor", headers=bearer({"public.orders": {}}, status=True))
    assert partly.status_code == 403


async def test_consumers_are_told_with_lag_and_worker(engine, database_url, tmp_path):
    await handlers.make_tables(engine)
    await handlers.write(engine, 1, 2)
    async with handlers.recording(engine):
        await handlers.until_handled(engine, 2)
        async with serving(app_of(database_url, tmp_path)) as site:
            (consumer,) = (await ask(site, "/v1/readers"))["consumers"]
            assert (consumer["name"], consumer["lag_changes"]) == ("recorder", 0)
            assert consumer["tables"] == ["public.tasks"]
            assert consumer["worker"]
            narrow = await ask(site, "/v1/readers", {"public.tasks": {}})
            assert narrow["consumers"] == []


async def test_without_a_log_the_row_is_there_and_its_past_is_empty(engine, database_url, tmp_path):
    await make_tables(engine, log=False)
    await execute(engine, ROWS)
    async with serving(app_of(database_url, tmp_path)) as site:
        found = await ask(site, "/v1/history/orders/1")
        assert (found["row"]["status"], found["changes"]) == ("open", [])
        assert found["is_complete"] is True
        assert (await ask(site, "/v1/history"))["changes"] == []
        assert (await ask(site, "/v1/timeline"))["tables"] == {}


async def test_a_question_that_takes_too_long_is_given_up_in_a_sentence(site, engine, monkeypatch):
    monkeypatch.setitem(SETTINGS, "statement_timeout", "1ms")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("lock table rowsignal.change in access exclusive mode")
        answer = await site.client.get("/v1/history", headers=bearer(ALL, status=True))
    assert answer.status_code == 503
    assert "to look this up in time" in answer.json()["detail"]


async def test_a_role_that_may_not_read_the_log_is_told_the_way_out(engine, database_url, tmp_path):
    await make_tables(engine)
    await execute(
        engine,
        f"create role {READER}_2 login",
        f"grant select on orders, items to {READER}_2",
        f"grant usage on schema rowsignal to {READER}_2",
    )
    url = make_url(database_url).set(username=f"{READER}_2")
    app = app_of(url.render_as_string(hide_password=False), tmp_path)
    async with serving(app) as site:
        answer = await site.client.get("/v1/history", headers=bearer(ALL, status=True))
        assert answer.status_code == 503
        assert "rowsignal grant" in answer.json()["detail"]


@pytest.mark.parametrize(
    "pk", ["x", "1.5", "99999999999999999999999999", "%00", "[1,2]", "[]", "null", "1'--"]
)
async def test_keys_that_no_row_can_have_are_refused_or_absent(site, pk):
    answer = await site.client.get(f"/v1/history/orders/{pk}", headers=bearer(ALL, status=True))
    assert answer.status_code == 422, answer.text


async def test_a_schema_of_the_application_shapes_the_past(engine):
    class Shown(BaseModel):
        id: int
        status: str

    await make_tables(engine, row_values=True)
    await execute(engine, ROWS)
    await execute(engine, "update orders set status = null where id = 1")
    dashboard = create_dashboard(engine, {Order: Shown}, authorize=grant_everything)
    async with serving(dashboard) as site:
        changes = (await site.client.get("/v1/history")).json()["changes"]
        assert [it.get("row") for it in changes] == [
            None,
            {"id": 2, "status": "open"},
            {"id": 1, "status": "open"},
        ]
        assert changes[0]["old"] == {"id": 1, "status": "open"}
