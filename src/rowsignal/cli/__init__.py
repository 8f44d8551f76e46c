"""The command line: one command, one call of the library."""

from rowsignal.cli.app import main

__all__ = ["main"]
