"""Checks of the arguments of waits."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rowsignal.mapping import PrimaryKey, RowShape, hashable, primary_key_of

SHORTEST_INTERVAL = 0.01


def deadline_of(timeout: float | None) -> float | None:
    """Return the event loop's time at which a wait times out; None for never."""
    if timeout is None:
        return None
    _demand_seconds("timeout", timeout, "or None to wait for ever")
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: pass seconds from 0 on, or None to wait for ever.")
    return None if timeout == math.inf else asyncio.get_running_loop().time() + timeout


def checked_interval(interval: float) -> float:
    """Return the polling interval in seconds; raise `ValueError` for a bad one."""
    _demand_seconds("interval", interval, "between two reads")
    if not 0 <= interval < math.inf:
        raise ValueError(f"interval={interval!r}: pass the seconds between two reads.")
    return max(interval, SHORTEST_INTERVAL)


def _demand_seconds(name: str, value: Any, rest: str) -> None:
    if isinstance(value, timedelta):
        raise TypeError(f"{name} is a timedelta: pass {name}.total_seconds().")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: pass a number of seconds, {rest}.")


def keys_of(shape: RowShape, values: Iterable[Any]) -> dict[Any, tuple[Any, PrimaryKey]]:
    """Return (key as given, primary key) by row, each row once, in their order."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError("pk_values is a list of primary keys, such as [1, 2, 3].")
    given: dict[Any, tuple[Any, PrimaryKey]] = {}
    for value in values:
        key = primary_key_of(shape.mapper, value)
        given.setdefault(hashable(key), (value, key))
    if not given:
        raise ValueError("pk_values is empty: no row could ever change.")
    return given


def shown(key: PrimaryKey) -> Any:
    """Return a primary key as messages show it."""
    return key if len(key) > 1 else key[0]
