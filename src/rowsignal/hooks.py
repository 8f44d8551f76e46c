"""Hooks: callbacks for events of a listener, a dispatcher, a stream or the service."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from rowsignal.changes import Change

logger = logging.getLogger("rowsignal.hooks")

Mode = Literal["starting", "settling", "armed", "busy", "polling", "stopped"]
ListenerMode = Literal["stopped", "connecting", "listening", "polling"]
Failed = Callable[[BaseException], None]


def _ignore(_error: BaseException) -> None:
    """Ignore an error that is reported to a span."""


class Hooks:
    """Receives events. Methods must return at once; an exception in one is only logged.

    `table` is `schema.name`. Inherit from it and override the events of interest.
    """

    def connected(self, *, epoch: int) -> None:
        """Report that the listener is ready; `epoch` counts its connections from 1."""

    def degraded(self, *, reason: str) -> None:
        """Report that notifications no longer arrive, so that tables are polled."""

    def notified(self, *, accepted: bool) -> None:
        """Report one notification; `accepted` is false if it is malformed or forged."""

    def rows_read(self, *, table: str, rows: int, seconds: float) -> None:
        """Report one query that read the rows of several waits."""
        self.looked(table=table, rows=rows, seconds=seconds)

    def looked(self, *, table: str, rows: int, seconds: float) -> None:
        """Do the same under the name of 0.1 (deprecated): override `rows_read` instead."""

    def mode_changed(self, *, table: str, mode: Mode) -> None:
        """Report the new mode of a table."""

    def delivered(self, *, table: str, count: int) -> None:
        """Report changes delivered to readers, or waits that ended."""

    def reset(self, *, table: str, reason: str) -> None:
        """Report that a reader got a reset."""

    def task_restarted(self, *, task: str, reason: str) -> None:
        """Report that a task failed unexpectedly and was started again; `task` is its name."""

    def handled(self, *, consumer: str, count: int, seconds: float) -> None:
        """Report that a handler's transaction for some changes was committed."""

    def handler_failed(self, *, consumer: str, attempts: int) -> None:
        """Report that a handler failed, for the `attempts`-th time with this change."""

    def dead_lettered(self, *, consumer: str) -> None:
        """Report that a change failed in every attempt and became a dead letter."""

    def consumer_lagged(
        self, *, consumer: str, partition: int, changes: int, seconds: float, retention_used: float
    ) -> None:
        """Report the lag of a consumer in intervals; from `retention_used` 1 on some are lost."""

    def span(
        self,
        name: str,  # noqa: ARG002 -- for overrides
        attributes: Mapping[str, str | int],  # noqa: ARG002 -- as above
        changes: Sequence[Change] = (),  # noqa: ARG002 -- as above
    ) -> AbstractContextManager[Failed]:
        """Return the context manager around a wait, or around the handling of some changes.

        An error raised in the block reaches the context manager; for an error caught inside, the
        function that `__enter__` returns is called. `attributes` have OpenTelemetry's names.
        """
        return nullcontext(_ignore)


class HookGroup(Hooks):
    """Several hooks as one: each gets every event, and spans are entered in order.

    >>> HookGroup(Hooks(), Hooks()).connected(epoch=1)
    """

    def __init__(self, *hooks: Hooks) -> None:
        self._hooks = hooks

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, str | int], changes: Sequence[Change] = ()
    ) -> Iterator[Failed]:
        """Enter the spans of all."""
        with ExitStack() as stack:
            told = [
                stack.enter_context(hooks.span(name, attributes, changes)) for hooks in self._hooks
            ]

            def failed(error: BaseException) -> None:
                for tell in told:
                    tell(error)

            yield failed


def _forwarding(name: str) -> Callable[..., None]:
    def forward(group: HookGroup, **event: object) -> None:
        for hooks in group._hooks:
            getattr(hooks, name)(**event)

    return forward


for _name in [name for name in vars(Hooks) if not name.startswith("_") and name != "span"]:
    setattr(HookGroup, _name, _forwarding(_name))


class GuardedHooks(Hooks):
    """Passes every event on, and logs the exceptions of hooks."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._broken: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        """Return the guarded method of an event, also of events added to `Hooks` later."""
        if name.startswith("_") or name == "span":
            return super().__getattribute__(name)
        return partial(self._tell, name)

    def span(
        self, name: str, attributes: Mapping[str, str | int], changes: Sequence[Change] = ()
    ) -> AbstractContextManager[Failed]:
        """Return the span of the hooks; an empty one if they fail."""
        try:
            return self._hooks.span(name, attributes, changes)
        except Exception:
            if "span" not in self._broken:
                logger.exception("the hook span has failed")
            self._broken.add("span")
            return nullcontext(_ignore)

    def _tell(self, event: str, **facts: object) -> None:
        try:
            getattr(self._hooks, event)(**facts)
        except Exception:
            if (
                event not in self._broken
            ):  # log each hook once: it may be called for every notification
                logger.exception("the hook %s has failed", event)
            self._broken.add(event)


def guarded(hooks: Hooks) -> Hooks:
    """Return hooks whose exceptions do not reach the caller."""
    return hooks if type(hooks) is Hooks or isinstance(hooks, GuardedHooks) else GuardedHooks(hooks)
