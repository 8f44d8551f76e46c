"""The input of a check of the doctor, and its findings."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.postgres.parameters import run_query
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import TableFacts


class Severity(StrEnum):
    """The severity of a finding: an error loses changes or fails writes."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined; `fix` is the command or setting that mends it."""

    severity: Severity
    subject: str
    message: str
    fix: str | None = None

    @property
    def cure(self) -> str | None:
        """Return `fix`, under its name of 0.1.0 (deprecated)."""
        return self.fix


@dataclass(frozen=True, slots=True)
class CheckContext:
    """The connection, settings and tables that the checks examine."""

    connection: AsyncConnection
    server: RowMapping
    tables: Sequence[TableFacts]
    what: Any
    has_listen_url: bool
    distrust: str | None  # why the schema is not safe to use for the current role

    @property
    def logged(self) -> list[int]:
        """Return the oids of tables with a log."""
        members = (member for table in self.tables for member in table.members)
        return [member.oid for member in members if any(it.kind == "log" for it in member.triggers)]

    async def ask(self, name: str, *arguments: object) -> Sequence[RowMapping]:
        """Return the rows that a query of the catalogue gives."""
        result = await run_query(self.connection, query(name), arguments)
        return result.mappings().all()


Check = Callable[[CheckContext], AsyncIterator[Finding]]
