"""What a client may read: tables, columns, filters, grants."""
