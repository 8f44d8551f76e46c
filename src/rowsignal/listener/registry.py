"""The listeners of all event loops: one for each engine."""

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine


class Registered(Protocol):
    """A listener, as far as it is kept here."""

    engine: AsyncEngine


Item = TypeVar("Item", bound=Registered)


class Registry(Generic[Item]):
    """The listeners of all event loops, of any thread.

    Not a dictionary with weak keys: a listener refers to its event loop, and a value that refers to
    its key keeps it.
    """

    def __init__(self, make: Callable[[AsyncEngine], Item]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._listeners: dict[tuple[asyncio.AbstractEventLoop, object], Item] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def get(self, engine: AsyncEngine) -> Item:
        """Return the running event loop's listener for an engine; make one where there is none."""
        key = asyncio.get_running_loop(), _identity(engine)
        with self._lock:
            if key not in self._listeners:
                self._drop_closed()
                self._listeners[key] = self._make(engine)
            return self._listeners[key]

    def put(self, listener: Item) -> None:
        """Make a listener the running event loop's for its engine."""
        with self._lock:
            self._drop_closed()
            self._listeners[asyncio.get_running_loop(), _identity(listener.engine)] = listener

    def drop(self, listener: Item) -> None:
        """Forget a listener, if it has not been replaced."""
        key = asyncio.get_running_loop(), _identity(listener.engine)
        with self._lock:
            if self._listeners.get(key) is listener:
                del self._listeners[key]

    def _drop_closed(self) -> None:
        for key in [key for key in self._listeners if key[0].is_closed()]:
            del self._listeners[key]


def _identity(engine: AsyncEngine) -> object:
    return engine.sync_engine.dialect  # shared with engines derived by execution_options()
