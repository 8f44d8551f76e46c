"""The parameters in the query and the headers of a request, as FastAPI collects them."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Query

from rowsignal.sse.delivery.joining import Beginning
from rowsignal.sse.http.requests import Ask

Texts = list[str] | None
Operations = Annotated[Texts, Query(description="insert, update, delete, truncate")]


async def asked(
    pk: Annotated[Texts, Query(description="Rows, by primary key.")] = None,
    operations: Operations = None,
    columns: Annotated[
        Texts, Query(description="Updates that changed one of these columns.")
    ] = None,
    where: Annotated[Texts, Query(description="Conditions: `status.eq.paid`.")] = None,
) -> Ask:
    """Collect the filters of a request."""
    return Ask(pk=pk or (), operations=operations or (), columns=columns or (), where=where or ())


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The options of a stream."""

    beginning: Beginning
    conflate: bool


async def stream_options(
    *,
    snapshot: Annotated[bool, Query(description="The current rows first.")] = False,
    after: Annotated[str | None, Query(description="Resume after this position.")] = None,
    conflate: Annotated[
        bool, Query(description="Only a row's newest event, when there is no time for all.")
    ] = False,
    last_event_id: Annotated[str | None, Header(description="Resume: wins over `after`.")] = None,
) -> StreamOptions:
    """Collect the options of a stream."""
    # A browser that reconnects repeats the address: the header is the newer of the two.
    position = last_event_id or after or None
    return StreamOptions(Beginning(snapshot=snapshot, after=position), conflate)


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """The options of a long poll."""

    ask: Ask
    timeout: float
    if_none_match: Texts


async def wait_options(
    *,
    columns: Annotated[Texts, Query(description="Changes of these columns only.")] = None,
    operations: Operations = None,
    timeout: Annotated[float, Query(gt=0, le=60, description="Seconds.")] = 25.0,
    if_none_match: Annotated[Texts, Header(description="ETags of known states.")] = None,
) -> WaitOptions:
    """Collect the options of a long poll."""
    ask = Ask(columns=columns or (), operations=operations or ())
    return WaitOptions(ask, timeout, if_none_match)
