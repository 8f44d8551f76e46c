"""Alembic's commands, run on a connection of the caller's. Importing this needs alembic."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect, text

from rowsignal.exceptions import MigrationError

Heads = frozenset[str]
T = TypeVar("T")


class Migrations:
    """The migration scripts in one directory.

    Methods with a connection run `env.py`, which Alembic supports only once at a time in a process:
    the caller must ensure that.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._version_table: dict[str, Any] | None = None

    @classmethod
    def at(cls, location: Path, url: str) -> "Migrations":
        """Read the scripts at `location`, and the `alembic.ini` in it if there is one."""
        ini = location / "alembic.ini"
        config = Config(str(ini)) if ini.exists() else Config()
        config.set_main_option("script_location", _escaped(str(location)))
        config.set_main_option("sqlalchemy.url", _escaped(url))
        return cls(config)

    def latest(self) -> Heads:
        """Return the head revisions."""
        return frozenset(self._scripts().get_heads())

    def prepare(self, connection: Connection) -> None:
        """Run `env.py` once to learn its options for `current`."""
        if self._version_table is None:
            self._version_table = self._ask_environment(connection)

    @property
    def is_prepared(self) -> bool:
        """Tell whether the options of `env.py` are known."""
        return self._version_table is not None

    def current(self, connection: Connection) -> Heads | None:
        """Return the database's revisions, or None when it has no version table.

        Raises `MigrationError` if the database has a revision that the scripts do not have.
        """
        context = self._context(connection)
        _check_schema(connection, context.version_table_schema)
        table, schema = context.version_table, context.version_table_schema
        if not inspect(connection).has_table(table, schema=schema):
            return None
        heads = frozenset(context.get_current_heads())
        self._check_known(heads)
        return heads

    def upgrade(self, connection: Connection, target: str) -> None:
        """Run upgrades up to `target`; `head` means every head there is."""
        self.run_on(connection, lambda: command.upgrade(self.config, self._heads(target)))

    def downgrade(self, connection: Connection, target: str) -> None:
        """Run downgrades down to `target`."""
        self.run_on(connection, lambda: command.downgrade(self.config, target))

    def stamp(self, connection: Connection, target: str) -> None:
        """Record `target` as the revision of the database, without running scripts."""
        self.run_on(connection, lambda: command.stamp(self.config, self._heads(target)))

    def create(self, connection: Connection, metadata: MetaData) -> None:
        """Create the tables of `metadata` and record the latest revision, without scripts."""
        if self.current(connection) != self.latest():
            refuse_existing(connection, metadata)
        metadata.create_all(connection)
        self.stamp(connection, "head")

    def fill(self, connection: Connection, metadata: MetaData) -> None:
        """Run every migration on a database that holds none of the tables."""
        refuse_existing(connection, metadata)
        # Alembic begins and commits itself, but only on a connection without a transaction
        connection.rollback()
        self.upgrade(connection, "head")

    def drop(self, connection: Connection, metadata: MetaData) -> None:
        """Drop the existing tables of `metadata`, and the version table."""
        context = self._context(connection)
        metadata.drop_all(connection)
        versions = Table(context.version_table, MetaData(), schema=context.version_table_schema)
        versions.drop(connection, checkfirst=True)

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory.from_config(self.config)

    def _heads(self, target: str) -> str:
        return "heads" if target == "head" else target

    def _check_known(self, heads: Heads) -> None:
        scripts = self._scripts()
        known = {script.revision for script in scripts.walk_revisions()}
        if unknown := sorted(heads - known):
            raise MigrationError(
                f"The database is at revision {', '.join(unknown)}, which is not among the scripts"
                f" in {scripts.dir}: it was migrated by a newer or another program."
            )

    def _context(self, connection: Connection) -> MigrationContext:
        self.prepare(connection)
        return MigrationContext.configure(connection, opts=self._version_table)

    def _ask_environment(self, connection: Connection) -> dict[str, Any]:
        """Run env.py to learn the name of the version table."""
        found: dict[str, Any] = {}

        def read_options(_revision: object, context: MigrationContext) -> Iterable[Any]:
            found["version_table"] = context.version_table
            found["version_table_schema"] = context.version_table_schema
            return ()

        def run() -> None:
            scripts = self._scripts()
            with EnvironmentContext(self.config, scripts, fn=read_options, dont_mutate=True):
                scripts.run_env()

        self.run_on(connection, run)
        return found

    def run_on(self, connection: Connection, run: Callable[[], T]) -> T:
        """Run a function that calls Alembic, with the connection in Alembic's configuration."""
        self.config.attributes["connection"] = connection
        try:
            return run()
        except RuntimeError as error:
            # asyncio.run of env.py: this code runs inside an event loop already.
            if "running event loop" not in str(error):
                raise
            raise MigrationError(
                f"env.py in {self._scripts().dir} starts an event loop although it is given a"
                ' connection: let it use config.attributes["connection"] when that is there, as'
                " the one written by `rowsignal db init` does."
            ) from error
        finally:
            del self.config.attributes["connection"]


def refuse_existing(connection: Connection, metadata: MetaData) -> None:
    """Raise `MigrationError` if some of the tables exist already.

    Their columns may then differ from the models.
    """
    inspector = inspect(connection)
    schemas = {table.schema for table in metadata.tables.values()}
    present = {
        (schema, name) for schema in schemas for name in inspector.get_table_names(schema=schema)
    }
    found = sorted(t.fullname for t in metadata.tables.values() if (t.schema, t.name) in present)
    if found:
        raise MigrationError(
            f"The database holds {', '.join(found)} already, but is not at the latest revision,"
            " so creating the tables might leave columns out. Upgrade it; or, where it has no"
            ' version table but fits the models, say so once with `await manager.stamp("head")`.'
        )


def _check_schema(connection: Connection, schema: str | None) -> None:
    """Raise if the role cannot see the schema, so that the database only looks empty."""
    if connection.dialect.name != "postgresql" or schema is not None:
        return
    if connection.scalar(text("select current_schema() is null")):
        role = connection.scalar(text("select current_user"))
        raise MigrationError(
            f"Role {role} may use no schema of its search_path, so it cannot tell which revision"
            " the database is at: grant usage on the schema, or set the search_path."
        )


def _escaped(value: str) -> str:
    return value.replace("%", "%%")
