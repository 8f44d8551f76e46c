"""Row-level security: which rows a reader has been shown, and so may be told to be gone."""

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
    """The keys that one reader has been shown, by table; bounded.

    Beyond the bound, and for a reader that resumes, they are not known: then a row that is absent
    may be one that was never to be seen.
    """

    def __init__(self, *, is_known: bool, limit: int = MAX_KEYS) -> None:
        self._is_known = is_known
        self._limit = limit
        self._keys: dict[QualifiedName, set[str] | None] = {}

    def add(self, table: QualifiedName, keys: Iterable[Mapping[str, Any]]) -> None:
        """Note rows that are shown."""
        known = self._of(table)
        if known is not None:
            known.update(map(repr, keys))
            if len(known) > self._limit:
                self._keys[table] = None

    def unknown(self, it: RowChange) -> Reset | None:
        """Return the reset to tell where it is not known whether an absent row was seen.

        From then on it is known: nothing was.
        """
        if it.row is not None or it.change.key is None or self._of(it.table) is not None:
            return None
        self._keys[it.table] = set()
        return Reset(reason=UNKNOWN.format(".".join(it.table)), position=it.change.position)

    def is_told(self, it: RowChange) -> bool:
        """Tell whether a change concerns a row that is seen or was."""
        known = self._of(it.table)
        if it.change.key is None:
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
