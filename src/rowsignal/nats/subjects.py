"""Subjects and stream names: one for each table of each database."""

from functools import lru_cache

from rowsignal.identifiers import QualifiedName

PREFIX = "rowsignal"
TABLES_BUCKET = "rowsignal-tables"  # of descriptions: which tables the relay at work carries
SCHEMES = frozenset({"nats", "tls", "ws", "wss"})  # those of nats-py
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


def tokens(*names: str) -> str:
    """Return names as so many tokens.

    >>> tokens("public", "my.table")
    'public.my=2Etable'
    """
    return ".".join(map(token, names))


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
    return f"{PREFIX}.{tokens(database, *(table or ()))}"


def all_subjects(database: str) -> list[str]:
    """Return the subjects that a database's stream takes."""
    one = subject_of(database)
    return [one, f"{one}.>"]


def presence_subject(database: str) -> str:
    """Return the subject on which relays of one database say that they are at work."""
    return f"{PREFIX}-relay.{token(database)}"


def description_key(database: str, table: QualifiedName | None = None) -> str:
    """Return the key of a table's description; without a table, what stands before all of them.

    >>> description_key("shop", ("public", "orders"))
    'shop.public.orders'
    """
    return tokens(database, *(table or ()))


def is_nats(url: str) -> bool:
    """Tell whether an address is one of NATS, or several of it with commas between them.

    >>> is_nats("nats://n1:4222,nats://n2:4222"), is_nats("postgresql://localhost/shop")
    (True, False)
    """
    return url.partition("://")[0].strip().lower() in SCHEMES
