"""The waits for rows of one model, found by primary key and by the key that triggers send."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Table

from rowsignal.dispatcher.row_reader import Found
from rowsignal.exceptions import NotFoundError
from rowsignal.mapping import PrimaryKey, RowShape
from rowsignal.payload import Hint, Key

UNKNOWN: Any = object()  # stands in a baseline for a value that the caller has not seen


class Subscription:
    """One wait: what was last seen of a row, and a future for the first that differs from it.

    `future` gives the `Found` row, or raises `NotFoundError`.
    """

    __slots__ = ("baseline", "columns", "future", "interval", "names", "primary_key", "watch")

    def __init__(
        self,
        watch: "RowWatch",
        primary_key: PrimaryKey,
        attributes: Sequence[str] | None,
        seen: Mapping[str, Any] | None,
        interval: float,
    ) -> None:
        shape = watch.shape
        wanted = tuple(shape.columns) if attributes is None else tuple(attributes)
        self.watch = watch
        self.primary_key = primary_key
        self.columns = tuple(map(watch.places.__getitem__, wanted))
        self.names = None if attributes is None else shape.names_in_database(attributes)
        self.baseline: tuple[Any, ...] | None = None
        if seen is not None and not seen.keys().isdisjoint(wanted):
            self.baseline = tuple(seen.get(name, UNKNOWN) for name in wanted)
        self.interval = interval
        self.future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

    def offer(self, found: Found | None) -> bool:
        """Compare a row just read with what was last seen; tell whether that ended the wait."""
        if self.future.done():
            return False
        if found is None:
            self._fail()
        elif self._is_changed(found):
            self.future.set_result(found)
        else:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """End the wait with an error."""
        if not self.future.done():
            self.future.set_exception(error)

    def concerns(self, hint: Hint) -> bool:
        """Tell whether a hint may be of a column that is waited for."""
        return self.names is None or hint.changed is None or not self.names.isdisjoint(hint.changed)

    def _fail(self) -> None:
        model = self.watch.shape.mapper.class_.__name__
        key = self.primary_key if len(self.primary_key) > 1 else self.primary_key[0]
        if self.baseline is None:
            message = f"{model} {key!r} does not exist, or its insert is not committed."
        else:
            message = f"{model} {key!r} was deleted while it was waited for."
        self.fail(NotFoundError(message))

    def differs(self, values: Mapping[str, Any]) -> bool:
        """Tell whether values by attribute name differ from what was last seen."""
        if self.baseline is None:
            return False
        names = tuple(self.watch.shape.columns)
        return any(
            seen is not UNKNOWN
            and names[place] in values
            and not self.watch.equal(place, seen, values[names[place]])
            for place, seen in zip(self.columns, self.baseline, strict=True)
        )

    def _is_changed(self, found: Found) -> bool:
        current = tuple(map(found.values.__getitem__, self.columns))
        if self.baseline is None:
            self.baseline = current
            return False
        equal = self.watch.equal
        for place, seen, value in zip(self.columns, self.baseline, current, strict=True):
            if seen is not UNKNOWN and not equal(place, seen, value):
                return True
        self.baseline = tuple(
            value if seen is UNKNOWN else seen
            for seen, value in zip(self.baseline, current, strict=True)
        )
        return False


class RowWatch:
    """All waits for rows of one shape."""

    def __init__(self, shape: RowShape) -> None:
        self.shape = shape
        self.places = {name: place for place, name in enumerate(shape.columns)}
        self.intervals: Counter[float] = Counter()
        self._types = tuple(column.type for column in shape.columns.values())
        self._waits: dict[PrimaryKey, list[Subscription]] = {}
        self._unknown_keys = (None,) * len(shape.tables)
        self._keys: dict[PrimaryKey, tuple[Key | None, ...]] = {}
        self._by_key: dict[tuple[int, Key | None], set[PrimaryKey]] = {}

    def __len__(self) -> int:
        return sum(self.intervals.values())

    def __iter__(self) -> Iterator[Subscription]:
        return (wait for waits in self._waits.values() for wait in waits)

    @property
    def primary_keys(self) -> frozenset[PrimaryKey]:
        """Return the keys of all rows that are waited for."""
        return frozenset(self._waits)

    def needs_only(self, columns: tuple[str, ...]) -> bool:
        """Tell whether every wait is for some of these columns (of the database's names)."""
        return all(wait.names is not None and wait.names <= set(columns) for wait in self)

    def equal(self, place: int, seen: object, value: object) -> bool:
        """Compare two values of a column as SQLAlchemy does; a NaN equals itself."""
        if seen is value or self._types[place].compare_values(seen, value):
            return True
        return seen != seen and value != value  # only a NaN differs from itself

    def add(self, subscription: Subscription) -> None:
        """Take a wait in."""
        self._waits.setdefault(subscription.primary_key, []).append(subscription)
        self.intervals[subscription.interval] += 1

    def remove(self, subscription: Subscription) -> None:
        """Let a wait go."""
        waits = self._waits[subscription.primary_key]
        waits.remove(subscription)
        if not waits:
            del self._waits[subscription.primary_key]
            self._index(subscription.primary_key, ())
        self.intervals[subscription.interval] -= 1
        self.intervals += Counter()  # drops intervals that nobody has any more

    def offer(self, primary_key: PrimaryKey, found: Found | None) -> int:
        """Hand a row that was read to its waits; return how many that ended."""
        if primary_key not in self._waits:
            return 0
        self._index(primary_key, (found.keys or self._unknown_keys) if found else ())
        return sum([wait.offer(found) for wait in self._waits[primary_key]])

    def fail(self, primary_keys: Iterable[PrimaryKey], error: BaseException) -> None:
        """End waits with an error."""
        for primary_key in primary_keys:
            for wait in self._waits.get(primary_key, ()):
                wait.fail(error)

    def unseen(self, primary_keys: Iterable[PrimaryKey]) -> list[Subscription]:
        """Return the waits among these that have never had a look."""
        waits = (wait for key in primary_keys for wait in self._waits.get(key, ()))
        return [wait for wait in waits if wait.baseline is None]

    def concerned(self, table: Table, hint: Hint) -> set[PrimaryKey]:
        """Return the keys of the rows that a hint for one of the shape's tables is about."""
        if hint.key is None:
            return set(self._waits)
        place = self.shape.tables.index(table)
        candidates = self._by_key.get((place, hint.key), set())
        candidates = candidates | self._by_key.get((place, None), set())  # may be any of these
        return {
            primary_key
            for primary_key in candidates
            if any(wait.concerns(hint) for wait in self._waits[primary_key])
        }

    def _index(self, primary_key: PrimaryKey, keys: tuple[Key | None, ...]) -> None:
        known = self._keys.get(primary_key, ())
        if known == keys:
            return
        for place in enumerate(known):
            rows = self._by_key[place]
            rows.discard(primary_key)
            if not rows:
                del self._by_key[place]
        for place in enumerate(keys):
            self._by_key.setdefault(place, set()).add(primary_key)
        if keys:
            self._keys[primary_key] = keys
        else:
            self._keys.pop(primary_key, None)
