"""Capture from the WAL: a publication and a logical replication slot instead of triggers."""
