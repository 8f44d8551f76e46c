"""SQL identifiers: quoting, and names that fit into PostgreSQL's 63 bytes."""

import hashlib

MAX_BYTES = 63

QualifiedName = tuple[str, str]  # a table's schema and name


def quote(name: str) -> str:
    """Quote one identifier (PostgreSQL manual, 4.1.1).

    >>> print(quote('a "b" c'))
    "a ""b"" c"

    Raises `ValueError` for an empty name, one with a NUL, and one over 63 bytes, which PostgreSQL
    would truncate without an error.
    """
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is not a PostgreSQL identifier: it is empty or has a NUL.")
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"{name!r} is longer than {MAX_BYTES} bytes: PostgreSQL would cut it.")
    return '"' + name.replace('"', '""') + '"'


def qualify(name: str, schema: str | None = None) -> str:
    """Quote a name, with its schema if it has one.

    >>> qualify("orders", "sales")
    '"sales"."orders"'
    """
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"


def literal(text: str) -> str:
    """Quote a string constant, for statements that take no parameters.

    >>> literal("it's")
    "'it''s'"

    A backslash makes it an `E''` constant, so that the meaning does not depend on
    `standard_conforming_strings` (PostgreSQL manual, 4.1.2).
    """
    if "\0" in text:
        raise ValueError("PostgreSQL text cannot hold a NUL.")
    escaped = text.replace("'", "''")
    if "\\" in escaped:
        return "E'" + escaped.replace("\\", "\\\\") + "'"
    return f"'{escaped}'"


def shorten(name: str) -> str:
    """Shorten a name to 63 bytes; a longer one is cut and ends in a digest of the whole name.

    >>> shorten("orders")
    'orders'
    """
    encoded = name.encode()
    if len(encoded) <= MAX_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    head = encoded[: MAX_BYTES - 9].decode(errors="ignore")
    return f"{head}_{digest}"
