"""A database manager from an application's settings, and commands that use it."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from sqlalchemy import URL

from rowsignal.orm.manager.manager import AsyncDatabaseManager, SyncResult
from rowsignal.orm.urls import revealed

MESSAGES = {
    SyncResult.CREATED: "Database created.",
    SyncResult.UPGRADED: "Database upgraded.",
    SyncResult.ALREADY_UP_TO_DATE: "Database already up-to-date.",
}


@dataclass(frozen=True)
class _Recipe:
    """The settings of a manager; equal settings make equal managers."""

    url: str | URL
    location: str
    engine_args: Mapping[str, Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, db_settings: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Self:
        """Read settings: a mapping, or a pydantic model."""
        settings = db_settings if isinstance(db_settings, Mapping) else db_settings.model_dump()
        try:
            # A copy: the settings are the caller's.
            engine_args = dict(settings["sqlalchemy"])
            url = revealed(engine_args.pop("url"))
            location = str(settings["alembic"]["migrations_path"])
        except KeyError as error:
            raise ValueError(
                f"The settings lack {error}: sqlalchemy.url and alembic.migrations_path are needed."
            ) from error
        return cls(url, location, engine_args, args, kwargs or {})

    def make(self) -> AsyncDatabaseManager:
        """Make a manager."""
        return AsyncDatabaseManager(
            self.url, self.location, *self.args, engine_args=dict(self.engine_args), **self.kwargs
        )


@dataclass(frozen=True)
class _Made:
    """A manager, and what it was made from."""

    recipe: _Recipe
    manager: AsyncDatabaseManager


_made: dict[asyncio.AbstractEventLoop, list[_Made]] = {}


def manager_from_config(
    db_settings: Mapping[str, Any] | Any, *args: Any, **kwargs: Any
) -> AsyncDatabaseManager:
    """Return the manager that settings describe; the same one for equal settings.

    `db_settings` is a mapping or a pydantic model: `sqlalchemy.url` and
    `alembic.migrations_path` are needed, whatever else stands in `sqlalchemy` goes to the
    engine. It is left as it is. Further arguments go to `AsyncDatabaseManager`.

    Within an event loop the manager is kept as long as the loop, so that a call per request does
    not create an engine per request: at the end of the application call
    `await manager_from_config(settings).dispose()`. Outside a loop each call creates a new one.
    """
    recipe = _Recipe.of(db_settings, args, kwargs)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return recipe.make()
    _forget_closed_loops()
    managers = _made.setdefault(loop, [])
    for made in managers:
        if made.recipe == recipe:
            return made.manager
    managers.append(_Made(recipe, recipe.make()))
    return managers[-1].manager


async def syncdb(
    db_settings: Mapping[str, Any] | Any, *, create: Literal["metadata", "migrations"] = "metadata"
) -> None:
    """Create or upgrade the database that settings describe, and print what was done."""
    manager = _Recipe.of(db_settings).make()
    try:
        result = await manager.sync(create)
    finally:
        await manager.dispose()
    sys.stdout.write(f"{MESSAGES[result]}\n")


def create_sync_command(
    get_settings: Callable[[], Any], *, create: Literal["metadata", "migrations"] = "metadata"
) -> Callable[[], None]:
    """Return a function without parameters that runs `syncdb`, for a command line.

    Both `typer_app.command("syncdb")(it)` and `click_group.command("syncdb")(it)` accept it; the
    settings are read when the command runs.
    """

    def sync() -> None:
        """Create or upgrade the database."""
        asyncio.run(syncdb(get_settings(), create=create))

    return sync


def _forget_closed_loops() -> None:
    for loop in [loop for loop in _made if loop.is_closed()]:
        del _made[loop]
