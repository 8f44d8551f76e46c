"""Programs for those who work on rowsignal; nothing here is shipped in the wheel."""
