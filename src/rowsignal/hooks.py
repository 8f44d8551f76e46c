"""Hooks: what a listener, a dispatcher, a stream or the service reports as it happens."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from rowsignal.changes import Change

logger = logging.getLogger("rowsignal.hooks")

Failed = Callable[[BaseException], None]


def _ignore(_error: BaseException) -> None:
    """Do nothing about an error that is told to a span."""


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
        """Report that a task failed unforeseen, and goes on; `task` names it."""

    def handled(self, *, consumer: str, count: int, seconds: float) -> None:
        """Report that a handler's transaction for some changes was committed."""

    def handler_failed(self, *, consumer: str, attempts: int) -> None:
        """Report that a handler failed, for the `attempts`-th time with this change."""

    def dead_lettered(self, *, consumer: str) -> None:
        """Report that a change was handled as often as may be, and became a dead letter."""

    def consumer_lagged(
        self, *, consumer: str, partition: int, changes: int, seconds: float, retention_used: float
    ) -> None:
        """Report, now and then, how far behind a consumer is; at 1 `retention_used` is too far."""

    def relayed(self, *, database: str, count: int, lag: float) -> None:
        """Report messages that NATS has stored, and how many seconds the last one took."""

    def relay_active(self, *, database: str, active: bool) -> None:
        """Report that a relay is at work, or stands by."""

    def span(
        self,
        name: str,  # noqa: ARG002 -- for those that override it
        attributes: Mapping[str, str | int],  # noqa: ARG002 -- as above
        changes: Sequence[Change] = (),  # noqa: ARG002 -- as above
    ) -> AbstractContextManager[Failed]:
        """Return what is entered around a wait, or around the handling of some changes.

        An error that is raised in it has been seen; one that is caught inside is told to the
        function that entering returns. `attributes` are named as OpenTelemetry names them.
        """
        return nullcontext(_ignore)


class HookGroup(Hooks):
    """Several hooks as one: each hears everything, and spans are entered in order.

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
    """Passes every event on; an exception of a hook ends nothing but itself."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._broken: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        """Return an event's guarded method: of those, too, that are added to `Hooks`."""
        if name.startswith("_") or name == "span":
            return super().__getattribute__(name)
        return partial(self._tell, name)

    def span(
        self, name: str, attributes: Mapping[str, str | int], changes: Sequence[Change] = ()
    ) -> AbstractContextManager[Failed]:
        """Return the span of the hooks; none where they fail to make one."""
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
            if event not in self._broken:  # once: it may be called for every notification
                logger.exception("the hook %s has failed", event)
            self._broken.add(event)


def guarded(hooks: Hooks) -> Hooks:
    """Return hooks that cannot harm their caller."""
    return hooks if type(hooks) is Hooks or isinstance(hooks, GuardedHooks) else GuardedHooks(hooks)
