"""What is asked of the change log, by name; the statements are in `sql/log_reading.sql`."""

from rowsignal.sql import section


def query(name: str) -> str:
    """Return a statement."""
    return str(section("log_reading.sql", name)).removesuffix(";")
