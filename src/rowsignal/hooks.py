"""Where other code looks in: what a listener, a dispatcher or a stream tells as it happens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from rowsignal.changes import Change

Failed = Callable[[BaseException], None]


def _ignore(_error: BaseException) -> None:
    """Do nothing about an error that is told to a span."""


class Hooks:
    """Receives events; every method returns at once and must not raise.

    `table` is `schema.name`. Inherit from it and override what you want to hear.
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
