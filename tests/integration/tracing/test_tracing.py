"""Spans and links, as an exporter gets them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.changes import Change
from rowsignal.exceptions import WaitTimeoutError
from rowsignal.handlers import ChangeHandlers
from rowsignal.hooks import HookGroup, Hooks
from rowsignal.listener import Listener
from rowsignal.metrics import PrometheusHooks
from rowsignal.streams import watch
from rowsignal.tracing import TracingHooks, trace_changes
from rowsignal.waiting import wait_for_row_change
from support.handlers import AT_ONCE, Task, make_tables, record, until_handled, until_lag
from support.traces import Traces
from support.waits import close_listener


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture(autouse=True)
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    await make_tables(engine)
    yield
    await close_listener(engine)


def context_of(change: Change) -> str | None:
    """The `traceparent` in the logged row."""
    return (change.row or {}).get("note")


async def write(engine: AsyncEngine, traces: Traces, key: int) -> int:
    """Insert a task in a span that it names; return the span's id."""
    with traces.tracer.start_as_current_span("write") as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        async with engine.begin() as connection:
            await connection.execute(sa.insert(Task).values(id=key, note=carrier["traceparent"]))
        return span.get_span_context().span_id


async def test_a_handler_runs_in_a_span_that_links_to_the_writer(
    engine: AsyncEngine, traces: Traces
) -> None:
    changes = ChangeHandlers(engine, hooks=TracingHooks(traces.tracer, context_of=context_of))

    @changes.on(Task, name="recorder", start="beginning", retry=AT_ONCE)
    async def handler(session: AsyncSession, change: Change) -> None:
        with traces.tracer.start_as_current_span("inner"):
            await record(session, change)
        if change.key == {"id": 2}:
            raise RuntimeError("two")

    writer = await write(engine, traces, 1)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Task).values(id=2, note="no trace"))
    async with changes:
        await until_handled(engine, 1)
        await until_lag(engine, lambda lag: lag.dead_letters == 1)
    good, *bad = traces.named("rowsignal.handle")
    assert good.kind is SpanKind.CONSUMER
    assert [link.context.span_id for link in good.links] == [writer]
    assert good.attributes is not None
    assert good.attributes["rowsignal.consumer"] == "recorder"
    assert good.attributes["db.collection.name"] == "public.tasks"
    assert good.attributes["db.operation.name"] == "insert"
    inner = traces.named("inner")[0]
    assert inner.parent is not None
    assert inner.parent.span_id == good.context.span_id
    assert [span.status.status_code for span in bad] == [StatusCode.ERROR] * 3
    assert bad[0].links == ()
    assert bad[0].events[0].name == "exception"


async def test_each_change_of_a_stream_has_its_span(engine: AsyncEngine, traces: Traces) -> None:
    async with watch(engine, Task) as stream:
        writers = [await write(engine, traces, key) for key in (1, 2)]
        current: list[int] = []
        async for change in trace_changes(stream, traces.tracer, context_of=context_of):
            assert isinstance(change, Change)
            current.append(trace.get_current_span().get_span_context().span_id)
            if change.key == {"id": 2}:
                break
    spans = traces.named("rowsignal.change")
    assert [span.context.span_id for span in spans] == current[:1]
    assert [link.context.span_id for link in spans[0].links] == writers[:1]


async def test_a_wait_is_a_span_of_its_caller(engine: AsyncEngine, traces: Traces) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Task).values(id=1))
    hooks = HookGroup(Hooks(), TracingHooks(traces.tracer))
    async with Listener(engine, hooks=hooks):
        with traces.tracer.start_as_current_span("request") as request:
            waiting = asyncio.create_task(wait_for_row_change(engine, Task, 1))
            while not waiting.done():
                async with engine.begin() as connection:
                    await connection.execute(sa.update(Task).values(step=Task.step + 1))
                await asyncio.wait({waiting}, timeout=0.2)
            with pytest.raises(WaitTimeoutError):
                await wait_for_row_change(engine, Task, 1, timeout=0.01)
    done, late = traces.named("rowsignal.wait")
    assert done.parent is not None
    assert done.parent.span_id == request.get_span_context().span_id
    assert done.attributes == {"db.collection.name": "tasks"}
    assert done.status.status_code is StatusCode.UNSET
    assert late.status.status_code is StatusCode.ERROR


async def test_hooks_in_a_group_hear_everything() -> None:
    heard: list[int] = []

    class Noting(Hooks):
        def connected(self, *, epoch: int) -> None:
            heard.append(epoch)

    HookGroup(Noting(), Noting()).connected(epoch=7)
    assert heard == [7, 7]
    events = {name for name in vars(Hooks) if not name.startswith("_")}
    assert events <= vars(HookGroup).keys(), "each event is forwarded"
    assert vars(PrometheusHooks).keys() >= {"handled", "dead_lettered", "consumer_lagged"}
