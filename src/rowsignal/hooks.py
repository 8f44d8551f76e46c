"""Hooks: what a listener, a dispatcher, a stream or the service reports as it happens."""


class Hooks:
    """Receives events; every method returns at once and must not raise.

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

    def restarted(self, *, task: str) -> None:
        """Report a task of the service that failed and was started again."""
