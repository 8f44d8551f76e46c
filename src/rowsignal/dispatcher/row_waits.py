"""The waits for rows of one model, indexed by primary key and by the key that triggers send."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from rowsignal.dispatcher.comparison import is_same
from rowsignal.dispatcher.conditions import Condition, Criterion, Matches
from rowsignal.dispatcher.row_query import RowState, Values
from rowsignal.exceptions import NotFoundError
from rowsignal.mapping import PrimaryKey, RowShape, hashable
from rowsignal.payload import Hint, Key

UNKNOWN: Any = object()  # stands in a baseline for a value that the caller has not seen


class Subscription:
    """One wait: the values of a row that were seen last, and a future for the result.

    `future` returns the `RowState`, or None for a missing row, or raises `NotFoundError`. `needs`
    are the attributes to read, `names` the database's names of the columns whose changes concern
    the wait (None: all).
    """

    __slots__ = (
        "baseline",
        "columns",
        "condition",
        "failure",
        "future",
        "interval",
        "is_read",
        "names",
        "needs",
        "primary_key",
        "row_id",
        "was_found",
        "watch",
    )

    def __init__(
        self,
        watch: "RowWatch",
        primary_key: PrimaryKey,
        condition: Condition,
        attributes: Sequence[str] | None,
        seen: Mapping[str, Any] | None,
        needs: Iterable[str],
        interval: float,
    ) -> None:
        wanted = watch.selection(attributes)
        self.watch = watch
        self.primary_key = primary_key
        self.row_id = hashable(primary_key)
        self.condition = condition
        self.columns, self.names = wanted.places, wanted.names
        self.needs = watch.shared(needs, wanted.attributes if condition.is_comparing else ())
        self.baseline: tuple[Any, ...] | None = None
        if seen is not None and not seen.keys().isdisjoint(wanted.attributes):
            self.baseline = tuple(seen.get(name, UNKNOWN) for name in wanted.attributes)
        self.interval = interval
        self.is_read = False
        self.was_found = False
        self.failure: BaseException | None = None
        self.future: asyncio.Future[RowState | None] = asyncio.get_running_loop().create_future()

    @property
    def criterion(self) -> Criterion | None:
        """Return the SQL criterion of the wait, if it has one."""
        return self.condition.criterion if isinstance(self.condition, Matches) else None

    def reopen(self) -> None:
        """Create a new future if the old one was cancelled with the task that awaited it."""
        if self.future.cancelled():
            self.future = asyncio.get_running_loop().create_future()

    def offer(self, found: RowState | None) -> bool:
        """Check a row that was just read; tell whether it ended the wait."""
        if self.future.done():
            return False
        self.is_read = True
        try:
            is_over = self._is_over(found)
        except Exception as error:  # noqa: BLE001 -- a comparison or `until` ends this wait alone
            self.fail(error)
            return True
        self.was_found = found is not None
        if is_over:
            self.future.set_result(found)
        return is_over

    def fail(self, error: BaseException) -> None:
        """End the wait with an error."""
        if not self.future.done():
            self.future.set_exception(error)

    def concerns(self, hint: Hint) -> bool:
        """Tell whether a hint may be about a column that the wait concerns."""
        return self.names is None or hint.changed is None or not self.names.isdisjoint(hint.changed)

    def differs(self, values: Mapping[str, Any]) -> bool:
        """Tell whether values by attribute name differ from the values seen last."""
        if self.baseline is None:
            return False
        names = tuple(self.watch.shape.columns)
        return any(
            seen is not UNKNOWN
            and names[place] in values
            and not self.watch.equal(place, seen, values[names[place]])
            for place, seen in zip(self.columns, self.baseline, strict=True)
        )

    def _is_over(self, found: RowState | None) -> bool:
        if found is None:
            if self.condition.needs_row:
                raise NotFoundError(self._absence())
            return self.condition.is_met(None)
        is_changed = self._is_changed(found)
        return is_changed if self.condition.is_comparing else self.condition.is_met(found)

    def _absence(self) -> str:
        model = self.watch.shape.mapper.class_.__name__
        key = self.primary_key if len(self.primary_key) > 1 else self.primary_key[0]
        if self.was_found:
            return f"{model} {key!r} was deleted while it was waited for."
        if self.baseline is None:
            return f"{model} {key!r} does not exist, or its insert is not committed."
        return f"{model} {key!r} does not exist any more: it was deleted before the wait began."

    def _is_changed(self, found: RowState) -> bool:
        current = found.values
        if len(self.columns) < len(current):
            current = tuple(map(current.__getitem__, self.columns))
        if self.baseline is None:
            self.baseline = current
            return False
        equal = self.watch.equal
        for place, seen, value in zip(self.columns, self.baseline, current, strict=True):
            if seen is not UNKNOWN and not equal(place, seen, value):
                return True
        if UNKNOWN in map(_or_none, self.baseline):
            self.baseline = tuple(
                value if seen is UNKNOWN else seen
                for seen, value in zip(self.baseline, current, strict=True)
            )
        return False


def _or_none(value: Any) -> Any:
    return UNKNOWN if value is UNKNOWN else None


@dataclass(frozen=True, slots=True)
class Selection:
    """Attributes, their places in a row that was read, and their names in the database."""

    attributes: tuple[str, ...]
    places: tuple[int, ...]
    names: frozenset[str] | None


@dataclass(slots=True)
class Question:
    """Waits whose rows are read in one query: `waits[n]` are the waits for `keys[n]`."""

    criterion: Criterion | None
    keys: list[PrimaryKey]
    parameters: list[Values]
    waits: list[tuple[Subscription, ...]]

    def __len__(self) -> int:
        return len(self.keys)

    def halves(self) -> "tuple[Question, Question]":
        """Split the query in two, to find the row that cannot be read."""
        first, second = self.parts(-(-len(self) // 2))
        return first, second

    def parts(self, most: int) -> "list[Question]":
        """Split the query into queries of at most so many rows."""
        return [self._part(start, start + most) for start in range(0, len(self), most)]

    def _part(self, start: int, end: int) -> "Question":
        part = slice(start, end)
        return Question(self.criterion, self.keys[part], self.parameters[part], self.waits[part])

    def each(self) -> Iterator[Subscription]:
        """Return all waits."""
        return (wait for waits in self.waits for wait in waits)


class RowWatch:
    """All waits for rows of one shape; a row's id is its primary key, made hashable."""

    def __init__(self, shape: RowShape) -> None:
        self.shape = shape
        self.places = {name: place for place, name in enumerate(shape.columns)}
        self.intervals: Counter[float] = Counter()
        self._needs: Counter[frozenset[str]] = Counter()
        self._criteria = 0
        self._selections: dict[tuple[str, ...] | None, Selection] = {}
        self._shared: dict[frozenset[str], frozenset[str]] = {}
        self._types = tuple(column.type for column in shape.columns.values())
        self._waits: dict[Any, list[Subscription]] = {}
        self._unknown_keys = (None,) * len(shape.tables)
        self._keys: dict[Any, tuple[Key | None, ...]] = {}
        self._by_key: dict[tuple[int, Key | None], set[Any]] = {}

    def __len__(self) -> int:
        return sum(self.intervals.values())

    def __iter__(self) -> Iterator[Subscription]:
        return (wait for waits in self._waits.values() for wait in waits)

    @property
    def row_ids(self) -> frozenset[Any]:
        """Return the ids of all waited-for rows."""
        return frozenset(self._waits)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Return the attributes to read for all waits, in the order of the shape."""
        needed = frozenset[str]().union(*self._needs)
        return tuple(name for name in self.shape.columns if name in needed)

    def selection(self, attributes: Sequence[str] | None) -> Selection:
        """Return the selection of attributes (None: all), one object for thousands of waits."""
        key = None if attributes is None else tuple(attributes)
        if key not in self._selections:
            # In the shape's order: with all columns, a row's values are the baseline as they are.
            wanted = tuple(name for name in self.shape.columns if key is None or name in key)
            places = tuple(map(self.places.__getitem__, wanted))
            names = None if key is None else self.shape.names_in_database(key)
            self._selections[key] = Selection(wanted, places, names)
        return self._selections[key]

    def shared(self, *attributes: Iterable[str]) -> frozenset[str]:
        """Return equal sets of attributes as one shared object."""
        union = frozenset[str]().union(*attributes)
        return self._shared.setdefault(union, union)

    def needs_only(self, columns: tuple[str, ...]) -> bool:
        """Tell whether these columns (the database's names) cover the columns of every wait."""
        return all(wait.names is not None and wait.names <= set(columns) for wait in self)

    def equal(self, place: int, seen: object, value: object) -> bool:
        """Compare two values of a column."""
        return is_same(self._types[place], seen, value)

    def add(self, subscription: Subscription) -> None:
        """Add a wait."""
        self._waits.setdefault(subscription.row_id, []).append(subscription)
        self.intervals[subscription.interval] += 1
        self._needs[subscription.needs] += 1
        self._criteria += subscription.criterion is not None

    def remove(self, subscription: Subscription) -> None:
        """Remove a wait."""
        waits = self._waits[subscription.row_id]
        waits.remove(subscription)
        if not waits:
            del self._waits[subscription.row_id]
            self._index(subscription.row_id, ())
        _decrease(self.intervals, subscription.interval)
        _decrease(self._needs, subscription.needs)
        self._criteria -= subscription.criterion is not None

    def questions(self, row_ids: Iterable[Any]) -> list[Question]:
        """Return the queries for rows: one for all plain waits, one for each criterion."""
        found: dict[Criterion | None, Question] = {}
        for row_id in row_ids:
            waits = tuple(self._waits.get(row_id, ()))
            plain = waits if not self._criteria else tuple(w for w in waits if not w.criterion)
            if plain:
                self._ask(found, None, plain)
            for wait in waits if len(plain) < len(waits) else ():
                if wait.criterion is not None:
                    self._ask(found, wait.criterion, (wait,))
        return list(found.values())

    def _ask(
        self,
        found: dict[Criterion | None, Question],
        criterion: Criterion | None,
        waits: tuple[Subscription, ...],
    ) -> None:
        question = found.get(criterion)
        if question is None:
            question = found[criterion] = Question(criterion, [], [], [])
        question.keys.append(waits[0].primary_key)
        question.waits.append(waits)
        if isinstance(waits[0].condition, Matches):
            question.parameters.append(waits[0].condition.parameters)

    def answer(self, waits: Sequence[Subscription], found: RowState | None) -> int:
        """Pass a row that was read to its waits; return how many of them it ended."""
        row_id = waits[0].row_id
        if row_id in self._waits:
            self._index(row_id, (found.keys or self._unknown_keys) if found else self._unknown_keys)
        return sum([wait.offer(found) for wait in waits])

    def concerned(self, table: Table, hint: Hint) -> set[Any]:
        """Return the ids of the rows that a hint for one of the shape's tables concerns."""
        if hint.key is None:
            return set(self._waits)
        place = self.shape.tables.index(table)
        candidates = self._by_key.get((place, hint.key), set())
        # The key of a row is known after its first read only; until then a hint may be for it.
        candidates = candidates | self._by_key.get((place, None), set())  # may be any of these
        return {
            row_id
            for row_id in candidates
            if any(wait.concerns(hint) for wait in self._waits.get(row_id, ()))
        }

    def _index(self, row_id: Any, keys: tuple[Key | None, ...]) -> None:
        known = self._keys.get(row_id, ())
        if known == keys:
            return
        # The text of a key can change while the key stays equal: 1.0 and 1.00.
        for place in enumerate(known):
            rows = self._by_key[place]
            rows.discard(row_id)
            if not rows:
                del self._by_key[place]
        for place in enumerate(keys):
            self._by_key.setdefault(place, set()).add(row_id)
        if keys:
            self._keys[row_id] = keys
        else:
            self._keys.pop(row_id, None)


def _decrease(counter: Counter[Any], item: Any) -> None:
    counter[item] -= 1
    if not counter[item]:
        del counter[item]
