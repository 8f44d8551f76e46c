"""Hooks: what a listener, a dispatcher, a stream or the service reports as it happens."""

import logging
from functools import partial
from typing import Any

logger = logging.getLogger("rowsignal.hooks")


class Hooks:
    """Receives events. Methods return at once; what one raises is logged, and the rest goes on.

    `table` is `schema.name`. Inherit from it and override what is of interest.
    """

    def connected(self, *, epoch: int) -> None:
        """Report that the listener is ready; `epoch` counts its connections from 1."""

    def degraded(self, *, reason: str) -> None:
        """Report that notifications no longer arrive and polling has taken over."""

    def notified(self, *, accepted: bool) -> None:
        """Report one notification; one that is malformed or forged is not accepted."""

    def looked(self, *, table: str, rows: int, seconds: float) -> None:
        """Report one batched read of waited-for rows."""

    def mode_changed(self, *, table: str, mode: str) -> None:
        """Report how a table is watched from now on."""

    def delivered(self, *, table: str, count: int) -> None:
        """Report changes handed to readers, or waits resolved."""

    def reset(self, *, table: str, reason: str) -> None:
        """Report that a reader was told to start again."""

    def task_restarted(self, *, task: str, reason: str) -> None:
        """Report that a task failed in a way nobody foresaw, and goes on; `task` names it."""


class GuardedHooks(Hooks):
    """Passes every event on; an exception of a hook ends nothing but itself."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._broken: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        """Return an event's guarded method: of those, too, that are added to `Hooks`."""
        if name.startswith("_"):
            return super().__getattribute__(name)
        return partial(self._tell, name)

    def _tell(self, event: str, **facts: object) -> None:
        try:
            getattr(self._hooks, event)(**facts)
        except Exception:
            if event not in self._broken:  # once: it may be called for every notification
                logger.exception("the hook %s has failed", event)
            self._broken.add(event)


def guarded(hooks: Hooks) -> Hooks:
    """Return hooks that cannot harm their caller."""
    return hooks if type(hooks) is Hooks or isinstance(hooks, GuardedHooks) else GuardedHooks(hooks)
