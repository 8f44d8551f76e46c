"""Run commands in this process and see what they write."""

from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from rowsignal.cli import main


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands against a database."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def run(self, *arguments: str) -> Ended:
        """Run a command as `rowsignal` would."""
        self._capsys.readouterr()
        code = main(arguments)
        written = self._capsys.readouterr()
        assert "Traceback" not in written.err
        return Ended(code, written.out, written.err)

    def on_database(self, command: str, *arguments: str) -> Ended:
        """Run a command with the test's database as `--url`."""
        return self.run(command, "--url", self.url, *arguments)

    async def execute(self, sql: str) -> list[Any]:
        """Run statements in the test's database; return the rows of the last one."""
        connection = await connect(self.url)
        try:
            if ";" in sql:
                await connection.execute(sql)
                return []
            return await connection.fetch(sql)
        finally:
            await connection.close()


async def connect(url: str) -> asyncpg.Connection:
    """Connect without SQLAlchemy."""
    parts = make_url(url)
    place = parts.query.get("host")
    return await asyncpg.connect(
        user=parts.username, database=parts.database, host=place or parts.host, port=parts.port
    )
