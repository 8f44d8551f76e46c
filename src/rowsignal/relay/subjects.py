"""Subjects and stream names: one for each table of each database."""

from functools import lru_cache

from rowsignal.identifiers import QualifiedName

PREFIX = "rowsignal"
PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@lru_cache(maxsize=4096)
def token(name: str) -> str:
    """Return a name as one token of a subject; two names never become the same.

    Letters and digits of ASCII, `_` and `-` stay; each byte of another character is written as `=`
    and two hexadecimal digits.

    >>> token("orders"), token("my.table"), token("größe")
    ('orders', 'my=2Etable', 'gr=C3=B6=C3=9Fe')
    """
    return "".join(chr(byte) if byte in PLAIN else f"={byte:02X}" for byte in name.encode())


def stream_name(database: str) -> str:
    """Return the name of a database's stream.

    >>> stream_name("shop")
    'rowsignal-shop'
    """
    return f"{PREFIX}-{token(database)}"


def subject_of(database: str, table: QualifiedName | None = None) -> str:
    """Return the subject of a table's changes; without a table, that of what concerns all.

    >>> subject_of("shop", ("public", "orders"))
    'rowsignal.shop.public.orders'
    """
    return ".".join([PREFIX, token(database), *map(token, table or ())])


def all_subjects(database: str) -> list[str]:
    """Return the subjects that a database's stream takes."""
    one = subject_of(database)
    return [one, f"{one}.>"]


def presence_subject(database: str) -> str:
    """Return the subject on which relays of one database say that they are at work."""
    return f"{PREFIX}-relay.{token(database)}"
