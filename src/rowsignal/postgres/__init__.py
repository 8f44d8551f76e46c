"""Access to PostgreSQL: connections, schema, statements, rows and errors."""
