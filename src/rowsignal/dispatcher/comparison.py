"""Comparison of two values of a column: equal if PostgreSQL stores the same value."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy.types import TypeEngine

PLAIN = (dict, list, tuple, bool, int, float, Decimal)


def is_same(type_: TypeEngine[Any], seen: Any, value: Any) -> bool:
    """Compare two values of a column, by the type's own `compare_values` if it has one.

    Unlike in Python, 1, 1.0 and true differ, and NaN equals itself.
    """
    if seen is value:
        return True
    # SQLAlchemy's own types compare by ==, for which 1 equals True and NaN differs from itself.
    if isinstance(seen, PLAIN) and isinstance(value, PLAIN) and not _compares_itself(type_):
        return alike(seen, value)
    equal: Any = type_.compare_values(seen, value)
    every = getattr(equal, "all", None)  # arrays of numpy compare item by item
    return bool(every() if callable(every) else equal)


def _compares_itself(type_: TypeEngine[Any]) -> bool:
    module: str = type(type_).compare_values.__module__
    return not module.startswith("sqlalchemy.")


def alike(one: Any, other: Any) -> bool:
    """Compare nested plain values.

    >>> alike({"a": [1, math.nan]}, {"a": [1, math.nan]}), alike(1, True), alike([0], [False])
    (True, False, False)
    """
    todo = [(one, other)]  # no recursion: JSON may be nested deeper than Python's stack
    while todo:
        left, right = todo.pop()
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            if left.keys() != right.keys():
                return False
            todo.extend((left[name], right[name]) for name in left)
        elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
            if len(left) != len(right):
                return False
            todo.extend(zip(left, right, strict=True))
        elif not _is_same_scalar(left, right):
            return False
    return True


def _is_same_scalar(one: Any, other: Any) -> bool:
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, float | Decimal) and isinstance(other, float | Decimal):
        return bool(one == other) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)
