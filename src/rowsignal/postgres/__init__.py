"""Connections, schema and statements: what every other part asks PostgreSQL with."""
