"""The OpenAPI description of the endpoints: each event of a stream, and each error."""

from typing import Any

Document = dict[str, Any]


def _object(title: str, description: str, /, **properties: Document) -> Document:
    return {
        "type": "object",
        "title": title,
        "description": description,
        "properties": properties,
        "required": list(properties),
    }


TEXT: Document = {"type": "string"}
COUNT: Document = {"type": "integer"}
NAMES: Document = {"type": "array", "items": TEXT}
VALUES: Document = {
    "type": "object",
    "additionalProperties": True,
    "description": "Values by name; numerics and integers beyond 2**53 - 1 are strings.",
}
KEY: Document = {
    **VALUES,
    "description": (
        "The primary key by column, in key order. Columns that the reader may not see are replaced"
        " by one entry with an empty name, a digest."
    ),
}
TABLE: Document = {"schema": TEXT, "table": TEXT}


def _nullable(document: Document) -> Document:
    return {"anyOf": [document, {"type": "null"}]}


def _event(
    name: str, description: str, optional: Document | None = None, /, **properties: Document
) -> Document:
    """Return the schema of an event, which no other event's data matches."""
    described = _object(name, description, **properties)
    described["properties"] = {**properties, **(optional or {})}
    return {**described, "additionalProperties": False}


def _change(
    operation: str, description: str, optional: Document | None = None, /, **more: Document
) -> Document:
    return _event(
        operation,
        description,
        optional,
        operation={"const": operation},
        **TABLE,
        key=_nullable(KEY),
        changed=_nullable(NAMES),
        transaction_id=_nullable(TEXT),
        captured_at=_nullable({"type": "string", "format": "date-time"}),
        **more,
    )


EVENTS = [
    _event("snapshot", "A row that was there when the stream began.", **TABLE, key=KEY, row=VALUES),
    _event("snapshot-end", "The rows are complete.", tables=NAMES, rows=COUNT),
    _change("insert", "A row that is new, or has come into sight.", row=VALUES),
    _change(
        "update",
        "A row as it is now; `changed` names columns, if known. `old` is the row before, if known.",
        {"row": VALUES, "old": VALUES},
    ),
    _change("delete", "A row that is gone, or out of sight."),
    _change("truncate", "All rows are gone."),
    _event(
        "heartbeat",
        "The stream lives; its id is how far it has come. `interval`: seconds to the next sign.",
        at={"type": "string", "format": "date-time"},
        interval={"type": "number"},
    ),
    _event(
        "reset",
        "Changes may be missing: begin again with snapshot=true.",
        {"continues": {"const": True}},
        reason=TEXT,
    ),
    _event("bye", "The server closes; come back after `retry` ms.", reason=TEXT, retry=COUNT),
]

PROBLEM: Document = _object(
    "Problem", "An error (RFC 9457).", type=TEXT, title=TEXT, status=COUNT, detail=TEXT
)


def _problem(description: str) -> Document:
    content = {"application/problem+json": {"schema": PROBLEM}}
    return {"description": description, "content": content}


PROBLEMS: dict[int | str, Document] = {
    401: _problem("Missing, invalid or expired token or ticket."),
    403: _problem("The token is valid and does not include this right."),
    404: _problem("No such table or row, or none that this token may see."),
    422: _problem("A malformed filter, key, position or address."),
    429: _problem("Too many streams or unused tickets of this principal."),
    503: _problem("Too many streams in all, no triggers, or no database just now."),
}

STREAM: dict[int | str, Document] = {
    200: {
        "description": (
            "Server-sent events (HTML standard, 9.2). The event field is the title of one of these"
            " schemas, its data a JSON object. The id, where there is one, is a position: send it"
            " as `Last-Event-ID` or `after` to continue behind it."
        ),
        "content": {"text/event-stream": {"schema": {"oneOf": EVENTS}}},
    },
    **PROBLEMS,
}

WAIT: dict[int | str, Document] = {
    200: {
        "description": "The row has changed; its ETag tells this state from others.",
        "content": {
            "application/json": {
                "schema": _object("Row", "A row as it is now.", **TABLE, key=KEY, row=VALUES)
            }
        },
    },
    204: {"description": "It has not changed within the timeout."},
    **PROBLEMS,
}

TICKET: dict[int | str, Document] = {
    201: {
        "description": "Admission for one stream; `expires_in` is in seconds.",
        "content": {
            "application/json": {
                "schema": _object(
                    "Ticket", "For `?ticket=`.", ticket=TEXT, expires_in={"type": "number"}
                )
            }
        },
    },
    **{status: PROBLEMS[status] for status in (401, 403, 429)},
}
