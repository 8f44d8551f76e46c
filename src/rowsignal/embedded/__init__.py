"""An embedded PostgreSQL server, for tests, demos and development."""

from rowsignal.embedded.programs import find_bin_dir
from rowsignal.embedded.server import EmbeddedPostgres, postgres_url

__all__ = ["EmbeddedPostgres", "find_bin_dir", "postgres_url"]
