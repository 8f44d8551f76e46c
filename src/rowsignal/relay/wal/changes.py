"""From pgoutput's messages to changes with their positions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from rowsignal.changes import Change, Operation
from rowsignal.identifiers import QualifiedName
from rowsignal.relay.positions import WalPosition, prefix_of
from rowsignal.relay.wal.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    Truncate,
    Update,
    Values,
)
from rowsignal.relay.wal.rows import Row, RowReader
from rowsignal.relay.wal.texts import TextReaders
from rowsignal.streams.loader import NO_KEY, RowChange, TableReset

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MESSAGE_PREFIX = "rowsignal"
UNREADABLE = "A change of {} cannot be read from the WAL: {}."
IN_PART = "A part of {} was truncated: its other rows are still there."
HALF = 2**31

Item = RowChange | TableReset


@dataclass(frozen=True, slots=True)
class Family:
    """A table that is carried, with the oids of the relations that hold its rows, and its key."""

    table: QualifiedName
    oid: int
    members: frozenset[int]
    key: tuple[str, ...]


class ChangeReader:
    """Makes changes of messages, and leaves out those that lie before a position.

    Each change of a row counts two: an update that changes the key is a delete and an insert. The
    count includes changes of tables that are not carried, so that it does not depend on settings.
    """

    def __init__(self, start: WalPosition, next_xid: int) -> None:
        self._at = self._told = (start.lsn, start.number)
        self.is_amid = False
        self.commits = 0  # transactions that have been read to their end
        self.wants_checkpoint = False
        self._start = start
        self._xid = next_xid
        self._lsn = self._number = 0
        self._prefix = ""
        self._captured_at = EPOCH
        self._relations: dict[int, Relation] = {}
        self._rows: dict[int, RowReader | None] = {}
        self._families: Mapping[int, Family] = {}
        self._readers = TextReaders(())

    @property
    def position(self) -> WalPosition:
        """The position up to which messages have been read."""
        return self._position(*self._at)

    @property
    def told(self) -> WalPosition:
        """The position of the last change that was returned."""
        return self._position(*self._told)

    def _position(self, lsn: int, number: int) -> WalPosition:
        return replace(self._start, lsn=lsn, number=number)

    def learn(self, families: Mapping[int, Family], readers: TextReaders) -> None:
        """Take what the catalogue says: the family of each relation, and the types."""
        self._families, self._readers = families, readers
        self._rows.clear()

    def knows(self, relation: Relation) -> bool:
        """Tell whether a relation is of a table that is carried."""
        return relation.oid in self._families

    def table_of(self, relation: Relation) -> QualifiedName:
        """Return the table whose rows a relation holds."""
        return self._families[relation.oid].table

    def read(self, message: Message) -> list[Item]:
        """Return the changes that a message tells; none for most that are about no row."""
        if isinstance(message, (Insert, Update, Delete)):
            return self._row_change(message)
        if isinstance(message, Begin):
            self._begin(message)
        elif isinstance(message, Commit):
            self.is_amid = False
            self.commits += 1
            self._advance(message.end_lsn)
        elif isinstance(message, Relation):
            self._relations[message.oid] = message
            self._rows.pop(message.oid, None)
        elif isinstance(message, Truncate):
            return list(self._truncations(message))
        elif isinstance(message, LogicalMessage):
            self._message(message)
        return []

    def reached(self, lsn: int) -> None:
        """Note that the server has sent all transactions that were committed before a place."""
        if not self.is_amid:
            self._advance(lsn)

    def _advance(self, lsn: int, number: int = 0) -> None:
        self._at = max(self._at, (lsn, number))

    def _message(self, message: LogicalMessage) -> None:
        """Store a position that says that this message was passed: a snapshot waits for that."""
        if message.prefix == MESSAGE_PREFIX and not message.is_transactional:
            self.reached(message.lsn)
            self.wants_checkpoint = True

    def _begin(self, message: Begin) -> None:
        self.is_amid = True
        self._number = 0
        self._lsn = message.commit_lsn
        self._prefix = prefix_of(self._start.system, self._start.timeline, message.commit_lsn)
        self._advance(message.commit_lsn)
        self._captured_at = EPOCH + timedelta(microseconds=message.committed_at)
        self._xid = whole_xid(message.xid, self._xid)

    def _is_known(self, number: int) -> bool:
        """Tell whether a message of the current transaction is in the stream already."""
        return (self._lsn, number) <= (self._start.lsn, self._start.number)

    def _row_change(self, message: Insert | Update | Delete) -> list[Item]:
        self._number += 2
        if self._is_known(self._number):
            return []
        rows = self._rows_of(message.relation)
        if rows is None:
            return []
        try:
            items = self._changes(rows, message)
        except (ValueError, RecursionError) as error:
            reason = UNREADABLE.format(".".join(rows.table), error)
            items = [TableReset(reason=reason, position=self._place(0), table=rows.table)]
        self._advance(self._lsn, self._number)
        self._told = self._at if items else self._told
        return items

    def _rows_of(self, oid: int) -> RowReader | None:
        if oid not in self._rows:
            family, relation = self._families.get(oid), self._relations.get(oid)
            if family is None or relation is None:
                self._rows[oid] = None
            else:
                self._rows[oid] = RowReader(relation, family.table, family.key, self._readers)
        return self._rows[oid]

    def _changes(self, rows: RowReader, message: Insert | Update | Delete) -> list[Item]:
        if isinstance(message, Update):
            return self._updated(rows, message)
        if isinstance(message, Insert):
            return [self._inserted(rows, message.new)]
        return [self._deleted(rows, message.old, is_full=message.is_full)]

    def _updated(self, rows: RowReader, message: Update) -> list[Item]:
        _, old, is_full, new = message
        rows.complete(new, old, is_full=is_full)
        if old is not None and rows.is_moved(old, new):
            return self._moved(rows, old, new, is_full=is_full)
        if old is None or not is_full:
            return [self._made(rows, Operation.UPDATE, rows.key(new), rows.row(new))]
        changed = rows.changed(old, new)
        if not changed:  # the log has no such change either
            return []
        key, row = rows.key(new), rows.row(new)
        return [self._made(rows, Operation.UPDATE, key, row, rows.row(old), changed)]

    def _moved(self, rows: RowReader, old: Values, new: Values, *, is_full: bool) -> list[Item]:
        """Return the changes of a row whose key has changed."""
        deleted = self._deleted(rows, old, is_full=is_full, before=1)
        inserted = self._inserted(rows, new)
        return [inserted] if self._is_known(self._number - 1) else [deleted, inserted]

    def _inserted(self, rows: RowReader, new: Values) -> Item:
        return self._made(rows, Operation.INSERT, rows.key(new), rows.row(new))

    def _deleted(self, rows: RowReader, old: Values, *, is_full: bool, before: int = 0) -> Item:
        row = rows.row(old) if is_full else None
        return self._made(rows, Operation.DELETE, rows.key(old), None, row, before=before)

    def _made(
        self,
        rows: RowReader,
        operation: Operation,
        key: Row | None,
        row: Row | None,
        old: Row | None = None,
        changed: tuple[str, ...] | None = None,
        *,
        before: int = 0,
    ) -> Item:
        place = self._place(before)
        if key is None and operation is not Operation.TRUNCATE:
            reason = NO_KEY.format(f"an {operation}")
            return TableReset(reason=reason, position=place, table=rows.table)
        schema, table = rows.table
        change = Change(
            operation=operation,
            schema=schema,
            table=table,
            key=key,
            changed=changed,
            position=place,
            transaction_id=self._xid,
            captured_at=self._captured_at,
            row=row,
        )
        return RowChange(change, row, old)

    def _truncations(self, message: Truncate) -> Iterator[Item]:
        """Return one change for each table that was truncated, with all its parts or some."""
        found = {
            self._families[it].table: self._families[it]
            for it in message.relations
            if it in self._families
        }
        last = self._number + 2 * len(message.relations)
        for family in found.values():
            self._number += 2
            if self._is_known(self._number):
                continue
            self._advance(self._lsn, self._number)
            self._told = self._at
            yield self._truncated(family, frozenset(message.relations))
        self._number = last

    def _truncated(self, family: Family, emptied: frozenset[int]) -> Item:
        place, (schema, table) = self._place(0), family.table
        if family.oid not in emptied and not family.members <= emptied:
            reason = IN_PART.format(".".join(family.table))
            return TableReset(reason=reason, position=place, table=family.table)
        change = Change(
            operation=Operation.TRUNCATE,
            schema=schema,
            table=table,
            position=place,
            transaction_id=self._xid,
            captured_at=self._captured_at,
        )
        return RowChange(change)

    def _place(self, before: int) -> str:
        return f"{self._prefix}{self._number - before}"


def whole_xid(xid: int, near: int) -> int:
    """Return the 64-bit id of a transaction from its lower half and an id near it.

    >>> whole_xid(5, 2**32 - 3) - 2**32, whole_xid(2**32 - 1, 2**32 + 7) - 2**32
    (5, -1)
    """
    return near + (xid - near + HALF) % (2 * HALF) - HALF
