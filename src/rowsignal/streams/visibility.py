"""Row-level security: the rows that a reader was shown, and may therefore see deleted."""

from collections.abc import Iterable, Mapping
from typing import Any

from rowsignal.changes import Operation, Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.streams.loader import RowChange

MAX_KEYS = 100_000
UNKNOWN = (
    "It is not known which rows this reader has seen of {}, whose rows are subject to row-level"
    " security: begin again with a snapshot."
)


class VisibleKeys:
    """The keys that one reader was shown, by table; their number is limited.

    Beyond the limit, and for a reader that resumes, they are unknown: a missing row may then be one
    that the reader was never allowed to see.
    """

    def __init__(self, *, is_known: bool, limit: int = MAX_KEYS) -> None:
        self._is_known = is_known
        self._limit = limit
        self._keys: dict[QualifiedName, set[str] | None] = {}

    def add(self, table: QualifiedName, keys: Iterable[Mapping[str, Any]]) -> None:
        """Store the keys of rows that are shown."""
        known = self._of(table)
        if known is not None:
            known.update(map(repr, keys))
            if len(known) > self._limit:
                self._keys[table] = None

    def unknown(self, it: RowChange) -> Reset | None:
        """Return a reset if it is unknown whether a missing row was shown; else None.

        From then on the keys are known: there are none.
        """
        if it.row is not None or it.change.key is None or self._of(it.table) is not None:
            return None
        self._keys[it.table] = set()
        return Reset(reason=UNKNOWN.format(".".join(it.table)), position=it.change.position)

    def is_told(self, it: RowChange) -> bool:
        """Tell whether a change concerns a row that the reader sees or was shown."""
        known = self._of(it.table)
        if it.change.key is None:
            # A reader that was shown nothing has nothing to be told of.
            was_seen = known is None or bool(known)
            if it.change.operation is Operation.TRUNCATE:
                self._keys[it.table] = set()
            return was_seen
        if it.row is not None:
            self.add(it.table, [it.change.key])
            return True
        key = repr(it.change.key)
        was_seen = known is not None and key in known
        if known is not None:
            known.discard(key)
        return was_seen

    def _of(self, table: QualifiedName) -> set[str] | None:
        return self._keys.setdefault(table, set() if self._is_known else None)
