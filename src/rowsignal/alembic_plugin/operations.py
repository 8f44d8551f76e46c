"""`op.install_row_triggers` and `op.uninstall_row_triggers`."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from rowsignal import schema as database_schema
from rowsignal import sql
from rowsignal.binds import Statement
from rowsignal.identifiers import literal, qualify

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

Settings = Mapping[str, Any]

VERSION = max(map(int, re.findall(r"FUNCTION rowsignal\.install_v(\d+)", sql.read("triggers.sql"))))

_prepared: "WeakSet[MigrationContext]" = WeakSet()


class RowTriggersOp(MigrateOperation):
    """The triggers of one table, as some revision wants them; every argument is frozen there."""

    def __init__(
        self, table_name: str, schema: str | None, settings: Settings, version: int
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.version = version

    @property
    def qualified_name(self) -> str:
        """Return the quoted name, with its schema where there is one."""
        return qualify(self.table_name, self.schema)

    def rendered(self, verb: str) -> str:
        """Return the call as Python source."""
        given = {"schema": self.schema} if self.schema else {}
        arguments = {**given, **self.settings, "version": self.version}
        words = [repr(self.table_name), *(f"{name}={value!r}" for name, value in arguments.items())]
        return f"op.{verb}({', '.join(words)})"


@Operations.register_operation("install_row_triggers")
class InstallRowTriggersOp(RowTriggersOp):
    """Give a table its triggers, in place of those it has."""

    previous: Self | None = None

    @classmethod
    def install_row_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        version: int = VERSION,
        **settings: Any,
    ) -> None:
        """Give a table the triggers that tell of its row changes, in place of those it has.

        `settings` are those of `install_triggers`; `version` is the form of the triggers, which
        stays what it was when the revision was written. The schema `rowsignal` is created where
        it is missing. Uninstall in the downgrade.
        """
        operations.invoke(cls(table_name, schema, settings, version))

    def reverse(self) -> MigrateOperation:
        """Return what restores the triggers of before."""
        if self.previous is None:
            return UninstallRowTriggersOp(self.table_name, self.schema, self.settings, self.version)
        reversed_ = type(self)(
            self.table_name, self.schema, self.previous.settings, self.previous.version
        )
        reversed_.previous = self
        return reversed_

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what `alembic check` prints."""
        verb = "install_row_triggers" if self.previous is None else "replace_row_triggers"
        return (verb, self.qualified_name, self.settings)


@Operations.register_operation("uninstall_row_triggers")
class UninstallRowTriggersOp(RowTriggersOp):
    """Take a table's triggers away."""

    @classmethod
    def uninstall_row_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        version: int = VERSION,
        **settings: Any,
    ) -> None:
        """Take away the triggers that tell of a table's row changes; none is no error.

        `settings` say what was installed, for readers and for the reverse operation.
        """
        operations.invoke(cls(table_name, schema, settings, version))

    def reverse(self) -> MigrateOperation:
        """Return what installs the triggers again."""
        return InstallRowTriggersOp(self.table_name, self.schema, self.settings, self.version)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what `alembic check` prints."""
        return ("uninstall_row_triggers", self.qualified_name)


@Operations.implementation_for(InstallRowTriggersOp)
def _install(operations: Operations, operation: InstallRowTriggersOp) -> None:
    _prepare(operations)
    settings = literal(json.dumps(operation.settings, sort_keys=True))
    _select(operations, f"install_v{operation.version}", operation, settings)


@Operations.implementation_for(UninstallRowTriggersOp)
def _uninstall(operations: Operations, operation: UninstallRowTriggersOp) -> None:
    _prepare(operations)
    _select(operations, f"uninstall_v{operation.version}", operation)


def _prepare(operations: Operations) -> None:
    """Bring the schema up to date; in a script once, since a script can not look."""
    context = operations.migration_context
    if context.as_sql and context in _prepared:
        return
    _prepared.add(context)
    database_schema.apply(operations.get_bind())


def _select(operations: Operations, function: str, operation: RowTriggersOp, *more: str) -> None:
    arguments = ", ".join((literal(operation.qualified_name), *more))
    operations.execute(Statement(f"SELECT rowsignal.{function}({arguments})"))


@renderers.dispatch_for(InstallRowTriggersOp)
def _render_install(_context: Any, operation: InstallRowTriggersOp) -> str:
    return operation.rendered("install_row_triggers")


@renderers.dispatch_for(UninstallRowTriggersOp)
def _render_uninstall(_context: Any, operation: UninstallRowTriggersOp) -> str:
    return operation.rendered("uninstall_row_triggers")
