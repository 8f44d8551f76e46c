"""Batches of changes, made of the records of the log that were read."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from rowsignal.change_log.reader import Window
from rowsignal.change_log.records import (
    ID,
    OLD_ROW,
    RELATION,
    Record,
    decode_changes,
    decode_values,
)
from rowsignal.changes import Change
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_values import Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some changes, in order, and the position to resume after all of them.

    `before` holds the values before each change if the table logs any, else it is None.
    `is_complete` is false if there are more changes: read on from `position` at once.
    """

    changes: list[Change]
    position: str
    before: Sequence[Values | None] | None = None
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a window's positions: the prefix of the inner ones, and the one at the end."""

    prefix: str
    whole: str


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """Makes the batches of a window."""

    window: Window
    texts: Texts
    names: Mapping[int, QualifiedName]
    parts: Container[int]

    def make(self, records: Sequence[Record], *, is_rest: bool) -> Batch:
        """Return the batch of some records; `is_rest` if the window ends with them."""
        last = self.texts.whole if is_rest else f"{self.texts.prefix}{records[-1][ID]}"
        # A table that was dropped since has no name by which to tell its changes.
        known = records
        if not self.names.keys() >= set(map(itemgetter(RELATION), records)):
            known = [record for record in records if record[RELATION] in self.names]
        return Batch(
            changes=decode_changes(known, self.names, self.parts, self.texts.prefix, last),
            position=last,
            before=decode_values([record[OLD_ROW] for record in known]),
            is_complete=is_rest and self.window.is_last,
        )
