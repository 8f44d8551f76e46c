"""Texts that PostgreSQL writes for arrays, ranges and intervals, as Python values."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from asyncpg import Range

Parser = Callable[[Any], Any]

DIMENSIONS = re.compile(r"\[[^{]*?\]=(?=\{)")
TOKEN = re.compile(r'\s*(?:([{}(),])|"((?:[^"\\]|\\.)*)"|([^{},"]+))', re.DOTALL)
ESCAPED = re.compile(r"\\(.)", re.DOTALL)
BOUND = r'("(?:[^"\\]|\\.|"")*"|[^,"()\[\]]*)'
RANGE = re.compile(rf"([\[(]){BOUND},{BOUND}([\])])", re.DOTALL)
AMOUNT = re.compile(r"([+-]?\d+) (year|mon|day)s?")
CLOCK = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?$")
DAYS = {"year": 365, "mon": 30, "day": 1}  # as asyncpg and psycopg count them


def parse_array(text: str, parse: Parser) -> list[Any]:
    """Return the items of an array, nested as its dimensions are.

    >>> parse_array('{{1,NULL},{"2",3}}', int)
    [[1, None], [2, 3]]
    """
    tokens = TOKEN.finditer(DIMENSIONS.sub("", text, count=1))
    if next(tokens)[1] != "{":
        raise ValueError("not an array")
    return _array(tokens, parse)


def _array(tokens: Iterator[re.Match[str]], parse: Parser) -> list[Any]:
    items: list[Any] = []
    for token in tokens:
        mark, quoted, plain = token.groups()
        if mark == "}":
            return items
        if mark == "{":
            items.append(_array(tokens, parse))
        elif quoted is not None:
            items.append(parse(ESCAPED.sub(r"\1", quoted)))
        elif plain is not None:
            items.append(None if plain == "NULL" else parse(plain))
    raise ValueError("an array without its end")


def parse_range(text: str, parse: Parser) -> Range:
    """Return a range as asyncpg gives it.

    >>> parse_range("[1,5)", int)
    <Range [1, 5)>
    """
    if text == "empty":
        return Range(empty=True)
    found = RANGE.fullmatch(text)
    if found is None:
        raise ValueError("not a range")
    return _range(found, parse)


def parse_multirange(text: str, parse: Parser) -> list[Range]:
    """Return the ranges of a multirange as asyncpg gives them.

    >>> parse_multirange("{[1,2),[5,)}", int)
    [<Range [1, 2)>, <Range [5, )>]
    """
    return [_range(found, parse) for found in RANGE.finditer(text[1:-1])]


def _range(found: re.Match[str], parse: Parser) -> Range:
    opening, lower, upper, closing = found.groups()
    return Range(
        _bound(lower, parse),
        _bound(upper, parse),
        lower_inc=opening == "[",
        upper_inc=closing == "]",
    )


def _bound(text: str, parse: Parser) -> Any:
    if not text:
        return None
    if text.startswith('"'):
        text = ESCAPED.sub(r"\1", text[1:-1].replace('""', '"'))
    return parse(text)


def parse_interval(text: str) -> timedelta:
    """Return an interval in the style `postgres`; a month counts 30 days, a year 365.

    >>> parse_interval("1 year 2 mons -3 days +04:05:06.5").total_seconds()
    36475506.5
    """
    days = sum(int(number) * DAYS[unit] for number, unit in AMOUNT.findall(text))
    clock = CLOCK.search(text)
    if clock is None:
        if not AMOUNT.search(text):
            raise ValueError("not a finite interval")
        return timedelta(days=days)
    sign, hours, minutes, seconds, fraction = clock.groups()
    time = timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(seconds),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return timedelta(days=days) + (-time if sign == "-" else time)
