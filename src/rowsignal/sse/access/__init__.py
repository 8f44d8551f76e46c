"""The rights of a client: tables, columns, filters, grants."""
