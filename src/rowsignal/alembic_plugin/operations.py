"""`op.install_row_triggers` and `op.uninstall_row_triggers`."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self, cast
from weakref import WeakSet

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from rowsignal.identifiers import literal, qualify
from rowsignal.postgres import schema as schema_of_ours
from rowsignal.postgres.binds import Statement
from rowsignal.triggers.installation import guarded, turn
from rowsignal.triggers.settings import TriggerOptions, TriggerSettings, settings_of

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

LOCK_TIMEOUT = 3.0
VERSION = 2  # the newest rowsignal.install_vN there is

# migration contexts whose script creates the schema already
_written: "WeakSet[MigrationContext]" = WeakSet()


class RowTriggersOp(MigrateOperation):
    """The triggers of one table in a revision, with all arguments frozen."""

    def __init__(
        self,
        table_name: str,
        schema: str | None,
        settings: TriggerSettings,
        version: int,
        *,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.settings = settings
        self.version = version
        self.lock_timeout = lock_timeout

    @property
    def qualified_name(self) -> str:
        """Return the quoted name, with its schema where there is one."""
        return qualify(self.table_name, self.schema)

    def given(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        values = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        return {
            name: sorted(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != getattr(TriggerSettings(), name)
        }

    def rendered(self, verb: str) -> str:
        """Return the call as Python source."""
        schema = {"schema": self.schema} if self.schema else {}
        arguments = {**schema, **self.given(), "version": self.version}
        words = [repr(self.table_name), *(f"{name}={value!r}" for name, value in arguments.items())]
        return f"op.{verb}({', '.join(words)})"


@Operations.register_operation("install_row_triggers")
class InstallRowTriggersOp(RowTriggersOp):
    """Installs the triggers of a table, in place of present ones."""

    previous: Self | None = None

    @classmethod
    def install_row_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        version: int = VERSION,
        lock_timeout: float = LOCK_TIMEOUT,
        **options: Any,
    ) -> None:
        """Install the triggers that capture a table's changes, in place of present ones.

        `options` are those of `install_triggers`; `version` is the form of the triggers, which
        stays what it was when the revision was written. The schema `rowsignal` is created where
        it is missing. Uninstall in the downgrade.
        """
        frozen = settings_of(None, cast("TriggerOptions", options))
        operations.invoke(cls(table_name, schema, frozen, version, lock_timeout=lock_timeout))

    def reverse(self) -> MigrateOperation:
        """Return the operation that restores the former triggers."""
        if self.previous is None:
            return UninstallRowTriggersOp(self.table_name, self.schema, self.settings, self.version)
        reversed_ = type(self)(
            self.table_name, self.schema, self.previous.settings, self.previous.version
        )
        reversed_.previous = self
        return reversed_

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the tuple that `alembic check` prints."""
        verb = "install_row_triggers" if self.previous is None else "replace_row_triggers"
        return (verb, self.qualified_name, self.given())


@Operations.register_operation("uninstall_row_triggers")
class UninstallRowTriggersOp(RowTriggersOp):
    """Drops the triggers of a table."""

    @classmethod
    def uninstall_row_triggers(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        version: int = VERSION,
        lock_timeout: float = LOCK_TIMEOUT,
        **options: Any,
    ) -> None:
        """Drop the triggers that capture a table's changes; it is no error if there are none.

        `options` say what was installed, for readers and for the reverse operation.
        """
        frozen = settings_of(None, cast("TriggerOptions", options))
        operations.invoke(cls(table_name, schema, frozen, version, lock_timeout=lock_timeout))

    def reverse(self) -> MigrateOperation:
        """Return the operation that installs the triggers again."""
        return InstallRowTriggersOp(self.table_name, self.schema, self.settings, self.version)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the tuple that `alembic check` prints."""
        return ("uninstall_row_triggers", self.qualified_name)


@Operations.implementation_for(InstallRowTriggersOp)
def _install(operations: Operations, operation: InstallRowTriggersOp) -> None:
    _run(operations, operation, "install", literal(operation.settings.to_json()))


@Operations.implementation_for(UninstallRowTriggersOp)
def _uninstall(operations: Operations, operation: UninstallRowTriggersOp) -> None:
    _run(operations, operation, "uninstall")


def _run(operations: Operations, operation: RowTriggersOp, verb: str, *more: str) -> None:
    arguments = ", ".join((literal(operation.qualified_name), *more))
    statement = Statement(f"SELECT rowsignal.{verb}_v{operation.version}({arguments})")
    bind = operations.get_bind()
    if operations.migration_context.as_sql:
        _write_schema(operations)
        operations.execute(statement)
        return
    with guarded(bind, operation.lock_timeout):
        with turn(bind, operation.lock_timeout):
            schema_of_ours.apply(bind)
            if schema_of_ours.problems(bind):
                schema_of_ours.repair(bind)
        bind.execute(statement)


def _write_schema(operations: Operations) -> None:
    """Write the creation of the schema once: a script cannot check whether it exists."""
    context = operations.migration_context
    if context not in _written:
        _written.add(context)
        schema_of_ours.apply(operations.get_bind())


@renderers.dispatch_for(InstallRowTriggersOp)
def _render_install(_context: Any, operation: InstallRowTriggersOp) -> str:
    return operation.rendered("install_row_triggers")


@renderers.dispatch_for(UninstallRowTriggersOp)
def _render_uninstall(_context: Any, operation: UninstallRowTriggersOp) -> str:
    return operation.rendered("uninstall_row_triggers")
