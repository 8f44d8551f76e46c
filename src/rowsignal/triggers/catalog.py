"""The triggers of tables in PostgreSQL's catalogue, read in one query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.postgres.statements import query
from rowsignal.triggers.settings import TableName

CaptureKind = Literal["hint", "log"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """One of our triggers; a clone is a partition's copy of its root's row trigger."""

    name: str
    function: str
    digest: str
    is_definer: bool
    is_pinned: bool
    type: int
    is_enabled: bool
    is_clone: bool
    definition: str
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Trigger":
        """Read the query's JSON; the last piece of the arguments is what follows the last zero."""
        return cls(**{**facts, "arguments": tuple((facts["arguments"] or [""])[:-1])})

    @property
    def is_whole(self) -> bool:
        """Tell whether it has the installer's arguments; a trigger created by hand may not."""
        if len(self.arguments) < 4 or not self.arguments[1].isdecimal():
            return False
        try:
            return isinstance(json.loads(self.arguments[2]), dict)
        except ValueError:
            return False

    @property
    def kind(self) -> CaptureKind:
        """Return "hint" or "log"."""
        return "log" if self.function.startswith("capture_log") else "hint"

    @property
    def channel(self) -> tuple[str, int]:
        """Return the token and the bucket."""
        return self.arguments[0], int(self.arguments[1])

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that the installer stored in the trigger."""
        settings: dict[str, Any] = json.loads(self.arguments[2])
        return settings

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Return the columns that the trigger uses as the primary key."""
        return self.arguments[3:]

    @property
    def is_row_level(self) -> bool:
        """Tell whether it fires for each row (bit 0 of pg_trigger.tgtype)."""
        return self.type % 2 == 1


@dataclass(frozen=True, slots=True)
class Member:
    """A table, or one of its partitions or inheritance children."""

    oid: int
    kind: str
    is_partition: bool
    shape: str
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table with its partitions and children; `oid` is None if there is no such table."""

    schema: str | None
    name: str
    oid: int | None
    kind: str | None
    is_orphan: bool
    key_columns: tuple[str, ...]
    has_plain_key: bool
    has_row_security: bool
    columns: tuple[str, ...]
    members: tuple[Member, ...]

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """Return our triggers on the table, its partitions and children."""
        return tuple(trigger for member in self.members for trigger in member.triggers)


@dataclass(frozen=True, slots=True)
class Capture:
    """The capture of a table, as its triggers say.

    `kind` is "hint", "log" or None; `is_complete` tells whether no trigger is missing or disabled
    on the table and all that belongs to it, `is_notifying` whether they notify, too. `channels` are
    the (token, bucket) pairs of the hints of the table and of its inheritance children, `relations`
    the oids of everything that a writer may lock to write its rows. `key_columns` is the key that
    hints carry, in order; `has_plain_key` tells whether readers can write it as triggers do;
    `columns` names the columns whose changes are captured, None for all. `has_row_security` tells
    that row-level security is enabled on the table.
    """

    schema: str | None
    table: str
    oid: int | None
    kind: CaptureKind | None
    is_notifying: bool
    channels: tuple[tuple[str, int], ...]
    relations: tuple[int, ...]
    key_columns: tuple[str, ...]
    columns: tuple[str, ...] | None
    is_complete: bool = True
    has_plain_key: bool = True
    has_row_security: bool = False

    @classmethod
    def of(cls, facts: TableFacts) -> "Capture":
        """Tell how a table is captured, from its triggers."""
        ours = [trigger for trigger in facts.triggers if trigger.is_whole]
        rows = [trigger for trigger in ours if trigger.is_row_level]
        kinds = {trigger.kind for trigger in ours}
        # With both kinds of triggers the log is the one that is exact.
        kind: CaptureKind | None = "log" if "log" in kinds else "hint" if kinds else None
        tells = _is_logged if kind == "log" else _has_row_trigger
        is_complete = bool(ours) and all(map(tells, facts.members))
        return cls(
            schema=facts.schema,
            table=facts.name,
            oid=facts.oid,
            kind=kind,
            is_notifying=is_complete and _may_notify(ours),
            channels=tuple(sorted({trigger.channel for trigger in rows})),
            relations=tuple(member.oid for member in facts.members),
            key_columns=rows[0].key_columns if rows else facts.key_columns,
            columns=_counted(facts, ours[0].settings) if ours else None,
            is_complete=is_complete,
            has_plain_key=facts.has_plain_key,
            has_row_security=facts.has_row_security,
        )


def _may_notify(triggers: Sequence[Trigger]) -> bool:
    return all(trigger.settings.get("notify", True) for trigger in triggers)


def _has_row_trigger(member: Member) -> bool:
    return any(trigger.is_row_level and trigger.is_enabled for trigger in _whole(member))


def _is_logged(member: Member) -> bool:
    """Tell whether INSERT, UPDATE, DELETE and TRUNCATE are all logged."""
    # Statement triggers with transition tables have one event each, TRUNCATE another.
    return sum(trigger.kind == "log" and trigger.is_enabled for trigger in _whole(member)) >= 4


def _whole(member: Member) -> list[Trigger]:
    return [trigger for trigger in member.triggers if trigger.is_whole]


def _counted(facts: TableFacts, settings: dict[str, Any]) -> tuple[str, ...] | None:
    if "columns" in settings:
        return tuple(settings["columns"])
    if "exclude" in settings:
        # Columns that were added since count: only the excluded ones were named.
        return tuple(name for name in facts.columns if name not in settings["exclude"])
    return None


def read_facts(
    connection: Connection, names: Sequence[TableName], *, with_orphans: bool = False
) -> list[TableFacts]:
    """Return the facts of tables in their order, then of other tables with our triggers.

    A name without schema is resolved by the `search_path` of this connection.
    """
    asked = json.dumps({"tables": names, "with_strays": with_orphans})
    rows = connection.execute(text(query("captures")), {"asked": asked})
    return [_facts(row) for row in rows.mappings()]


def _facts(row: Any) -> TableFacts:
    members = json.loads(row["members"] or "[]")
    return TableFacts(
        schema=row["schema"],
        name=row["name"],
        oid=row["oid"],
        kind=row["kind"],
        is_orphan=row["is_stray"],
        key_columns=tuple(row["key_columns"]),
        has_plain_key=row["has_plain_key"],
        has_row_security=bool(row["has_row_security"]),
        columns=tuple(row["columns"]),
        members=tuple(
            Member(**{**m, "triggers": tuple(map(Trigger.of, m["triggers"]))}) for m in members
        ),
    )


async def captures(connection: AsyncConnection, tables: Sequence[TableName]) -> list[Capture]:
    """Return how changes of each table are captured, in one query.

    Works without the schema `rowsignal` and for tables that do not exist.
    """
    facts = await connection.run_sync(read_facts, tables)
    return [Capture.of(table) for table in facts]
