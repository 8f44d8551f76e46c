"""Durations, as numbers, timedeltas or text in PostgreSQL's form."""

import math
import re
from datetime import timedelta

Duration = float | str | timedelta

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min|h|d)?\s*", re.ASCII)


def seconds(duration: Duration) -> float:
    """Return a duration in seconds.

    >>> seconds("500ms"), seconds("1.5 min"), seconds(2)
    (0.5, 90.0, 2.0)

    Numbers are seconds. Text is read as PostgreSQL reads `lock_timeout` (manual, 20.1.1): one
    number and one of the units us, ms, s, min, h, d; without a unit it is milliseconds. Raises
    `ValueError` for anything else and for what is negative or not finite.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        value = _parse(duration)
    else:
        value = float(duration)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{duration!r} is not a length of time: it is negative or has no end.")
    return value


def _parse(text: str) -> float:
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a length of time: write a number and one of {', '.join(UNITS)}, "
            "such as '5s' or '500ms'."
        )
    return float(match[1]) * UNITS[match[2] or "ms"]
