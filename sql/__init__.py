"""The SQL that runs inside PostgreSQL; `rowsignal.statements` reads it."""
