"""OpenTelemetry spans of waits, handlers and streams; needs only the API package.

A writer names its span in the setting `rowsignal.trace` of its session, the log keeps it with each
change, and the spans of readers link to it.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Generic, Self, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from rowsignal.changes import Change, Reset
from rowsignal.hooks import Failed, Hooks

__all__ = ["TracingHooks", "set_trace", "trace_changes", "trace_transactions"]

Item = TypeVar("Item")
ContextOf = Callable[[Change], str | None]

KINDS = {"rowsignal.wait": SpanKind.INTERNAL}
MAX_LINKS = 128  # what OpenTelemetry keeps by default

_propagator = TraceContextTextMapPropagator()
_written = attrgetter("trace")
_set = text("select pg_catalog.set_config('rowsignal.trace', :trace, true)")


async def set_trace(session: AsyncSession | AsyncConnection, trace: str | None = None) -> None:
    """Log the current span, or a text, with the changes that this transaction makes from now on.

        async with AsyncSession(engine) as session, session.begin():
            await set_trace(session)
            session.add(Order())

    One statement, whose effect ends with the transaction. Without a current span it does nothing.
    A text has up to 512 printable ASCII characters and no backslash; the log leaves out others.
    """
    trace = current_trace() if trace is None else trace
    if trace is not None:
        await session.execute(_set, {"trace": trace})


def trace_transactions(engine: AsyncEngine) -> None:
    """Do as `set_trace` does at the beginning of every transaction of an engine.

    Costs each transaction that begins inside a span one statement, also one that only reads.
    """
    event.listen(engine.sync_engine, "begin", _transaction_began)


def _transaction_began(connection: Connection) -> None:
    trace = current_trace()
    if trace is not None:
        connection.execute(_set, {"trace": trace})


def current_trace() -> str | None:
    """Return the `traceparent` of the current span; None outside of spans."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


class TracingHooks(Hooks):
    """Hooks that make spans: `rowsignal.wait`, and `rowsignal.handle` for each call of a handler.

        changes = ChangeHandlers(engine, hooks=TracingHooks())
        Listener(engine, hooks=HookGroup(TracingHooks(), PrometheusHooks()))

    A span of a handler links to the spans that wrote the changes, if these were logged with their
    `traceparent` (W3C Trace Context): `set_trace` and `trace_transactions` do that. `context_of`
    returns it from elsewhere, say from a column whose values are logged.
    """

    def __init__(self, tracer: Tracer | None = None, *, context_of: ContextOf = _written) -> None:
        self._tracer = tracer or trace.get_tracer("rowsignal")
        self._context_of = context_of

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, str | int], changes: Sequence[Change] = ()
    ) -> Iterator[Failed]:
        """Make a span around a block."""
        links = links_to(changes, self._context_of)
        kind = KINDS.get(name, SpanKind.CONSUMER)
        found = {**attributes, **_of(changes)}
        with self._tracer.start_as_current_span(
            name, kind=kind, attributes=found, links=links
        ) as span:
            yield lambda error: _failed(span, error)


def trace_changes(
    stream: AsyncIterator[Item],
    tracer: Tracer | None = None,
    *,
    context_of: ContextOf = _written,
) -> "TracedChanges[Item]":
    """Make a span `rowsignal.change` around the handling of each change of a stream.

        async with watch(engine, Order) as changes:
            async for change in trace_changes(changes):
                ...  # in the span of this change

    It ends when the next change is requested, or the stream ends. As with `TracingHooks`, it links
    to the span that wrote the change.
    """
    return TracedChanges(stream, tracer or trace.get_tracer("rowsignal"), context_of)


class TracedChanges(Generic[Item]):
    """An asynchronous iterator that keeps a span open from one item to the next."""

    def __init__(self, stream: AsyncIterator[Item], tracer: Tracer, context_of: ContextOf) -> None:
        self._stream = stream
        self._tracer = tracer
        self._context_of = context_of
        self._span: Span | None = None
        self._token: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """End the span of the last item, and begin the span of the next."""
        self._end()
        item = await anext(self._stream)
        if isinstance(item, Change | Reset):
            self._begin(item)
        return item

    def _begin(self, item: Change | Reset) -> None:
        changes = [item] if isinstance(item, Change) else []
        self._span = self._tracer.start_span(
            "rowsignal.change" if changes else "rowsignal.reset",
            kind=SpanKind.CONSUMER,
            attributes=_of(changes),
            links=links_to(changes, self._context_of),
        )
        self._token = attach(trace.set_span_in_context(self._span))

    def _end(self) -> None:
        span, self._span = self._span, None
        if span is not None:
            detach(self._token)
            span.end()


def links_to(changes: Sequence[Change], context_of: ContextOf) -> list[Link]:
    """Return links to the spans that wrote changes, if the changes carry them."""
    found = {context_of(change): None for change in changes[:MAX_LINKS]}
    return [Link(context) for it in found if it for context in _span_contexts(it)]


def _span_contexts(traceparent: str) -> Iterator[trace.SpanContext]:
    found: Context = _propagator.extract({"traceparent": traceparent}, Context())
    context = trace.get_current_span(found).get_span_context()
    if context.is_valid:
        yield context


def _of(changes: Sequence[Change]) -> dict[str, str | int]:
    """Return the attributes of a single change."""
    if len(changes) != 1:
        return {}
    (change,) = changes
    found: dict[str, str | int] = {
        "db.collection.name": f"{change.schema}.{change.table}",
        "db.operation.name": str(change.operation),
    }
    if change.transaction_id is not None:
        found["rowsignal.transaction_id"] = str(change.transaction_id)
    return found


def _failed(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
