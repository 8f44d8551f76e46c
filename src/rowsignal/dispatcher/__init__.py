"""Waits for rows: one dispatcher a listener matches hints and reads rows for all of them."""

from rowsignal.dispatcher.dispatcher import HOPELESS, Dispatcher

__all__ = ["HOPELESS", "Dispatcher"]
