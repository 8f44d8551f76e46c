"""The trace that a writer's session names: in the log, in changes, and as links of spans."""

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from opentelemetry.trace import SpanContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.changes import Change
from rowsignal.handlers import ChangeHandlers, dead_letters, retry_dead_letters
from rowsignal.streams import watch
from rowsignal.tracing import TracingHooks, set_trace, trace_changes, trace_transactions
from support.change_log import Shop, open_shop
from support.handlers import AT_ONCE, Task, make_tables, record, until_handled, until_lag
from support.traces import Traces
from support.waits import close_listener

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    async with open_shop(engine) as shop:
        yield shop


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    await make_tables(engine)
    yield
    await close_listener(engine)


async def written(shop: Shop, *statements: str) -> list[str | None]:
    """Run statements; return the traces of the changes that they log."""
    start = await shop.log.position()
    for statement in statements:
        await shop.sql.execute(statement)
    return [change.trace for change in (await shop.read(start)).changes]


async def test_every_kind_of_statement_logs_the_trace_of_its_session(shop: Shop) -> None:
    await shop.sql.execute(f"set rowsignal.trace = '{PARENT}'")
    statements = (
        "insert into item values (1, 0)",
        "insert into item select n, 0 from generate_series(2, 4) as n",
        "update item set v = 1 where id = 1",
        "update item set v = 2",
        "delete from item where id = 1",
        "alter table item add w integer",  # from here on the functions are those of another table
        "insert into item values (9, 0, 0)",
        "truncate item",
    )
    assert await written(shop, *statements) == [PARENT] * (1 + 3 + 1 + 4 + 1 + 1 + 1)


async def test_a_trace_lasts_as_long_as_the_setting(shop: Shop) -> None:
    one = "insert into item values ({}, 0)"
    assert await written(shop, one.format(1)) == [None], "the session has never set it"
    local = "begin; set local rowsignal.trace = 'one'; {}; {}; commit"
    assert await written(shop, local.format(one.format(2), one.format(3))) == ["one", "one"]
    assert await written(shop, one.format(4)) == [None], "now the setting is an empty text"
    nested = f"""begin; set local rowsignal.trace = 'outer'; {one.format(5)};
        savepoint s; set local rowsignal.trace = 'inner'; {one.format(6)}; release s;
        savepoint t; set local rowsignal.trace = 'gone'; rollback to t; {one.format(7)}; commit"""
    assert await written(shop, nested) == ["outer", "inner", "inner"]


LONGEST = "x" * 512
TEXTS = {
    "": None,
    " ": " ",
    PARENT: PARENT,
    "a]b[c^d-e~": "a]b[c^d-e~",
    LONGEST: LONGEST,
    f"{LONGEST}x": None,
    "x" * 1_000_000: None,
    "back\\slash": None,
    "\\x41": None,
    "line\nfeed": None,
    "car\rriage": None,
    "de\x7fl": None,
    "caf\u00e9": None,
    "\U0001f600": None,
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda it: ascii(it)[:20])
async def test_the_log_takes_printable_ascii_and_leaves_out_the_rest(shop: Shop, text: str) -> None:
    await shop.sql.execute("select set_config('rowsignal.trace', $1, false)", text)
    assert await written(shop, "insert into item values (1, 0)") == [TEXTS[text]]


async def test_every_way_to_read_the_log_brings_the_trace(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.sql.execute(f"set rowsignal.trace = '{PARENT}'")
    await shop.insert(1, 2, 3)
    end = await shop.log.position()
    first = await shop.read(start, limit=1)
    rest = await shop.read(first.position, limit=10)
    changes = [*first.changes, *rest.changes, *(await shop.read(start, until=end)).changes]
    async for page in shop.log.pages(start, size=2):
        changes += page.changes
    assert [change.trace for change in changes] == [PARENT] * 9
    assert "trace" not in changes[0].to_dict()
    assert PARENT not in changes[0].to_json()


async def in_span(engine: AsyncEngine, traces: Traces, *keys: int) -> SpanContext:
    """Insert tasks in a span that the transaction names; return the span's context."""
    with traces.tracer.start_as_current_span("write") as span:
        async with AsyncSession(engine) as session, session.begin():
            await set_trace(session)
            await session.execute(sa.insert(Task), [{"id": key} for key in keys])
        return span.get_span_context()


@pytest.mark.usefixtures("tables")
async def test_spans_of_a_stream_link_to_the_writers(engine: AsyncEngine, traces: Traces) -> None:
    async with watch(engine, Task, rows=True) as stream:
        writers = [await in_span(engine, traces, 1), await in_span(engine, traces, 2)]
        async for change in trace_changes(stream, traces.tracer):
            assert isinstance(change, Change)
            assert change.trace is not None
            if change.key == {"id": 2}:
                break
    spans = traces.named("rowsignal.change")
    assert [span.links[0].context.span_id for span in spans] == [writers[0].span_id]
    assert [span.links[0].context.trace_id for span in spans] == [writers[0].trace_id]


@pytest.mark.usefixtures("tables")
async def test_a_batch_links_to_each_writer_once(engine: AsyncEngine, traces: Traces) -> None:
    changes = ChangeHandlers(engine, hooks=TracingHooks(traces.tracer))

    @changes.on(Task, name="recorder", start="beginning", batch=10, retry=AT_ONCE)
    async def handler(session: AsyncSession, found: list[Change]) -> None:
        for change in found:
            await record(session, change)

    writers = [await in_span(engine, traces, 1, 2), await in_span(engine, traces, 3)]
    async with changes:
        await until_handled(engine, 3)
    (span,) = traces.named("rowsignal.handle")
    assert [link.context.span_id for link in span.links] == [one.span_id for one in writers]


@pytest.mark.usefixtures("tables")
async def test_a_dead_letter_keeps_its_trace(engine: AsyncEngine, traces: Traces) -> None:
    changes = ChangeHandlers(engine, hooks=TracingHooks(traces.tracer))
    is_ready = False

    @changes.on(Task, name="recorder", start="beginning", retry=AT_ONCE)
    async def handler(session: AsyncSession, change: Change) -> None:
        if not is_ready:
            raise RuntimeError("not yet")
        await record(session, change)

    writer = await in_span(engine, traces, 1)
    async with changes:
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
        (letter,) = await dead_letters(engine)
        assert letter.change.trace is not None
        is_ready = True
        await retry_dead_letters(engine, "recorder")
        await until_handled(engine, 1)
    spans = traces.named("rowsignal.handle")
    assert len(spans) == AT_ONCE.attempts + 1
    assert {span.links[0].context.span_id for span in spans} == {writer.span_id}


MALFORMED = (
    "request 42",
    PARENT[:-1],
    PARENT.upper(),
    PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
    PARENT.replace("00f067aa0ba902b7", "0" * 16),
    f"ff{PARENT[2:]}",
    "-" * 512,
)


@pytest.mark.usefixtures("tables")
async def test_a_trace_that_is_no_traceparent_links_to_nothing(
    engine: AsyncEngine, traces: Traces
) -> None:
    async with watch(engine, Task) as stream:
        for key, text in enumerate((*MALFORMED, PARENT)):
            async with engine.begin() as connection:
                await set_trace(connection, text)
                await connection.execute(sa.insert(Task).values(id=key))
        seen: list[str | None] = []
        async for change in trace_changes(stream, traces.tracer):
            assert isinstance(change, Change)
            seen.append(change.trace)
            if change.trace == PARENT:
                break
    assert seen == [*MALFORMED, PARENT]
    assert [span.links for span in traces.named("rowsignal.change")] == [()] * len(MALFORMED)


async def logged_traces(engine: AsyncEngine) -> list[str | None]:
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("select trace from rowsignal.change order by id")
        return [row.trace for row in found]


@pytest.mark.usefixtures("tables")
async def test_every_transaction_of_an_engine_names_its_span(
    engine: AsyncEngine, traces: Traces
) -> None:
    trace_transactions(engine)
    trace_transactions(engine)
    statements: list[str] = []
    sa.event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *it: statements.append(it[2])
    )
    contexts = []
    async with AsyncSession(engine) as session:
        for key in (1, 2):
            with traces.tracer.start_as_current_span("write") as span:
                session.add(Task(id=key))
                await session.commit()
                contexts.append(span.get_span_context())
        session.add(Task(id=3))
        await session.commit()
    assert sum("set_config" in statement for statement in statements) == 2
    *named, last = await logged_traces(engine)
    assert [(trace or "").split("-")[2] for trace in named] == [
        format(context.span_id, "016x") for context in contexts
    ]
    assert last is None


@pytest.mark.usefixtures("tables")
async def test_a_handler_can_name_its_span_in_what_it_writes(
    engine: AsyncEngine, traces: Traces
) -> None:
    changes = ChangeHandlers(engine, hooks=TracingHooks(traces.tracer))

    @changes.on(Task, name="recorder", start="beginning", retry=AT_ONCE)
    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        if change.key == {"id": 1}:
            await set_trace(session)
            session.add(Task(id=2))

    await in_span(engine, traces, 1)
    async with changes:
        await until_handled(engine, 2)
    first, second = traces.named("rowsignal.handle")
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


async def test_without_a_span_nothing_is_sent(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await set_trace(connection)
        assert not connection.in_transaction()
        await set_trace(connection, "request 42")
        setting = "select current_setting('rowsignal.trace')"
        assert (await connection.exec_driver_sql(setting)).scalar() == "request 42"
