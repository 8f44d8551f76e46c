"""Handlers: a named consumer handles each change of a logged table once."""

from rowsignal.handlers.administration import (
    ConsumerLag,
    DeadLetter,
    consumer_lag,
    dead_letters,
    drop_consumer,
    drop_dead_letters,
    reset_consumer,
    retry_dead_letters,
    skip_failing,
)
from rowsignal.handlers.consumer import ConsumerReset, Retry
from rowsignal.handlers.handlers import ChangeHandlers

__all__ = [
    "ChangeHandlers",
    "ConsumerLag",
    "ConsumerReset",
    "DeadLetter",
    "Retry",
    "consumer_lag",
    "dead_letters",
    "drop_consumer",
    "drop_dead_letters",
    "reset_consumer",
    "retry_dead_letters",
    "skip_failing",
]
