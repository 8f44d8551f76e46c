"""The comparison of declared triggers with the database, for autogenerate."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import MetaData, Table

from rowsignal.alembic_plugin.operations import (
    VERSION,
    InstallRowTriggersOp,
    UninstallRowTriggersOp,
)
from rowsignal.exceptions import MigrationError
from rowsignal.postgres.schema import problems
from rowsignal.triggers.catalog import TableFacts, read_facts
from rowsignal.triggers.health import TriggerState, judge
from rowsignal.triggers.settings import INFO, TableName, TriggerSettings, targets_of

OURS = "rowsignal"
Value = TypeVar("Value")


def hide_own_schema(
    _context: AutogenContext, _upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Exclude the tables of schema rowsignal from autogenerate: no model declares them."""
    schemas.discard(OURS)
    return PriorityDispatchResult.CONTINUE


def compare(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Add operations for triggers that are missing, different, or orphaned."""
    comparison = Comparison(context, upgrade_ops, schemas)
    comparison.run()
    return PriorityDispatchResult.CONTINUE


@dataclass(frozen=True)
class Wanted:
    """A declared table."""

    table: Table
    settings: TriggerSettings

    @property
    def name(self) -> TableName:
        """Return schema and name as the model has them."""
        return self.table.schema, self.table.name


@dataclass(frozen=True)
class InstalledTriggers:
    """The triggers that a table has, with the data to install them again."""

    settings: TriggerSettings
    version: int

    @classmethod
    def of(cls, facts: TableFacts, otherwise: TriggerSettings | None = None) -> Self | None:
        """Read settings and version from the triggers; triggers edited by hand may lack them."""
        if not facts.triggers:
            return None
        trigger = facts.triggers[0]
        version = re.search(r"_v(\d+)", trigger.function)
        try:
            settings = _settings(trigger.settings)
        except (IndexError, TypeError, ValueError):
            settings = otherwise or TriggerSettings()
        return cls(settings, int(version[1]) if version else VERSION)


class Comparison:
    """One run of autogenerate: compares the models with the catalogue.

    In a revision installs come last and uninstalls first, so that the columns that they name exist;
    the same holds for the downgrade, which is the reverse.
    """

    def __init__(
        self, context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
    ) -> None:
        self.context = context
        self.upgrade_ops = upgrade_ops
        self.schemas = schemas
        self.problems: list[str] = []

    def run(self) -> None:
        """Compare every declared table, then every other table with triggers."""
        wanted = list(self._wanted())
        names = [each.name for each in wanted]
        connection = _required(self.context.connection)
        self.problems = problems(connection)
        facts = read_facts(connection, names, with_orphans=True)
        for each, there in zip(wanted, facts, strict=False):
            if self.context.run_object_filters(each.table, each.table.name, "table", False, None):
                self._compare(each, there)
        for orphan in facts[len(wanted) :]:
            self._compare_orphan(orphan)

    def _wanted(self) -> Iterator[Wanted]:
        metadata = self.context.metadata
        for each in [metadata] if isinstance(metadata, MetaData) else metadata or ():
            if not each.info.get(INFO):
                continue
            for target in targets_of(each):
                schema, name = target.name
                table = each.tables[f"{schema}.{name}" if schema else name]
                if target.settings is not None:
                    yield Wanted(table, target.settings)

    def _compare(self, wanted: Wanted, facts: TableFacts) -> None:
        found = InstalledTriggers.of(facts, wanted.settings)
        status = judge(facts, wanted.settings, is_orphan=False, schema_problems=self.problems)
        is_right = status.state is TriggerState.INSTALLED
        if found is None:
            self._install(wanted)
        elif self._changes_columns(wanted.name) and (wanted.settings.log or not is_right):
            self._take_away(wanted.name, found)
            self._install(wanted)
        elif not is_right:
            self._install(wanted, replacing=found)

    def _compare_orphan(self, facts: TableFacts) -> None:
        is_default = facts.schema == _required(self.context.dialect).default_schema_name
        schema = None if is_default else facts.schema
        reflected = Table(facts.name, MetaData(), schema=schema)
        found = InstalledTriggers.of(facts)
        if (
            found is not None
            and schema in self.schemas
            and self.context.run_name_filters(facts.name, "table", {"schema_name": schema})
            and self.context.run_object_filters(reflected, facts.name, "table", True, None)
        ):
            self._take_away((schema, facts.name), found)

    def _install(self, wanted: Wanted, replacing: InstalledTriggers | None = None) -> None:
        schema, name = wanted.name
        operation = InstallRowTriggersOp(name, schema, wanted.settings, VERSION)
        if replacing is not None:
            operation.previous = InstallRowTriggersOp(
                name, schema, replacing.settings, replacing.version
            )
        self.upgrade_ops.ops.append(operation)

    def _take_away(self, table: TableName, found: InstalledTriggers) -> None:
        schema, name = table
        operation = UninstallRowTriggersOp(name, schema, found.settings, found.version)
        self.upgrade_ops.ops.insert(0, operation)

    def _changes_columns(self, table: TableName) -> bool:
        columns = (ops.AddColumnOp, ops.DropColumnOp, ops.AlterColumnOp)
        return any(
            isinstance(operation, columns)
            for modified in self.upgrade_ops.ops
            if isinstance(modified, ops.ModifyTableOps)
            and (modified.schema, modified.table_name) == table
            for operation in modified.ops
        )


def _settings(carried: Mapping[str, Any]) -> TriggerSettings:
    """Return the settings from a trigger's JSON."""
    known = {field.name for field in fields(TriggerSettings)}
    names = {"filter": "filter_columns", **{name: name for name in known}}
    given: dict[str, Any] = {
        names[key]: tuple(value) if isinstance(value, list) else value
        for key, value in carried.items()
        if key in names
    }
    return TriggerSettings(**given)


def _required(value: Value | None) -> Value:
    if value is None:
        raise MigrationError("Autogenerate compares with a database: it cannot run offline.")
    return value
