"""Frames: the bytes of server-sent events (HTML standard, 9.2)."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from rowsignal.json_forms import json_form

JITTER = random.SystemRandom()


def compact(data: object) -> bytes:
    """Return `data` as one line of JSON.

    NaN and infinities, which JSON does not have, become strings; half a surrogate pair, which
    UTF-8 does not have, is escaped.
    """
    try:
        return to_json(data, inf_nan_mode="strings")
    except PydanticSerializationError:  # a surrogate, or more levels than this encoder takes
        return json.dumps(json_form(data), separators=(",", ":")).encode()


def frame(event: str, data: object, position: str | None = None) -> bytes:
    """Encode one event; a `position` becomes its id, so that a reader can resume after it.

    >>> print(frame("bye", {"reason": "shutdown"}).decode().strip())
    event: bye
    data: {"reason":"shutdown"}
    """
    return encoded(event, compact(data), position)


def encoded(event: str, data: bytes, position: str | None = None) -> bytes:
    """Return the frame of one event whose data is JSON already."""
    place = "" if position is None else f"id: {position}\n"
    return b"%bevent: %b\ndata: %b\n\n" % (place.encode(), event.encode(), data)


def retry(delay: float) -> bytes:
    """Tell a browser how many seconds to wait before it reconnects."""
    return f"retry: {int(delay * 1000)}\n\n".encode()


def jittered(delay: float) -> float:
    """Add jitter to a delay, so that a thousand readers do not reconnect at the same time."""
    return delay * JITTER.uniform(0.5, 1.5)


def heartbeat(interval: float, position: str | None = None) -> bytes:
    """Return a heartbeat with the position; `interval` is the longest time without a frame."""
    return frame("heartbeat", {"at": datetime.now(UTC).isoformat(), "interval": interval}, position)


def reset(reason: str, *, continues: bool = False) -> bytes:
    """Report that changes may be missing; the empty id makes a browser forget its position."""
    data = {"reason": reason, **({"continues": True} if continues else {})}
    return frame("reset", data, "")


def passed_by(reason: str, row: Mapping[str, Any], position: str | None) -> bytes:
    """Say that one row cannot be shown: `row` names its table and key. The place is kept."""
    return frame("reset", {"reason": reason, "continues": True, **row}, position)


def bye(reason: str, delay: float) -> bytes:
    """Report that the server closes this stream, and when to reconnect."""
    delay = jittered(delay)
    milliseconds = int(delay * 1000)
    return b"retry: %d\n" % milliseconds + frame("bye", {"reason": reason, "retry": milliseconds})


def snapshot_end(tables: Iterable[str], rows: int, position: str | None) -> bytes:
    """Report that the current rows are complete."""
    return frame("snapshot-end", {"tables": list(tables), "rows": rows}, position)


class FrameParser:
    """Parses a stream of frames from pieces that may end anywhere, also inside a character.

    For tests, tools and servers that read a stream; browsers have their own. Lines end in LF or
    CRLF; `last_id` is what to send as `Last-Event-ID`. Only what an empty line has finished
    counts: an event that was cut off is not reported and its id not kept.
    """

    def __init__(self, on_retry: Callable[[int], None] | None = None) -> None:
        self.last_id = ""
        self._rest = b""
        self._lines: list[str] = []
        self._on_retry = on_retry

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Parse the next bytes; return the events that they complete, as (name, data)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for raw in lines:
            line = raw.rstrip(b"\r").decode()
            if line:
                self._lines.append(line)
            elif (event := self._finish()) is not None:
                events.append(event)
        return events

    def _finish(self) -> tuple[str, str] | None:
        fields, self._lines = _fields(self._lines), []
        if "id" in fields:
            self.last_id = fields["id"][-1]
        if "retry" in fields and self._on_retry is not None:
            self._on_retry(int(fields["retry"][-1]))
        if "data" not in fields:
            return None
        return fields.get("event", ["message"])[-1], "\n".join(fields["data"])


def _fields(lines: Iterable[str]) -> Mapping[str, list[Any]]:
    fields: dict[str, list[Any]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name, []).append(value.removeprefix(" "))
    return fields
