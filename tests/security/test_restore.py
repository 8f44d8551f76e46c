"""A database that pg_restore has made without privileges: what is open is told, and closed again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import URL

from rowsignal import trigger_status
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.triggers import TriggerState, install_triggers
from support.roles import Ground


async def run(server: EmbeddedPostgres, program: str, *arguments: object) -> None:
    host = server.dsn.partition("host=")[2]
    there = ("-h", host, "-U", "postgres")
    path = str(server.bin_dir / program)
    process = await asyncio.create_subprocess_exec(path, *there, *map(str, arguments))
    assert await process.wait() == 0


@asynccontextmanager
async def restored(server: EmbeddedPostgres, ground: Ground, folder: Path) -> AsyncIterator[URL]:
    """Dump the database, and restore it beside itself with --no-privileges."""
    url = ground.admin.url
    copy = f"{url.database}_copy"
    await run(server, "pg_dump", "-Fc", "-f", folder / "dump", "-d", url.database)
    await ground.sql.execute(f'create database "{copy}"')
    try:
        await run(server, "pg_restore", "-x", "-d", copy, folder / "dump")
        yield url.set(database=copy)
    finally:
        await ground.sql.execute(f'drop database "{copy}" with (force)')


async def connect(url: URL) -> asyncpg.Connection:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return await asyncpg.connect(plain)


async def test_a_restore_without_privileges_is_told_and_mended(
    server: EmbeddedPostgres, ground: Ground, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    await ground.attacker.execute("create table mallory.t (id int primary key, v text)")
    await ground.install("mallory.t", log=True, row_values=True)
    async with restored(server, ground, tmp_path) as url:
        admin = await connect(url)
        await admin.execute(
            f"""
            grant usage on schema mallory to public;
            grant trigger, select on mallory.t to {ground.installer_role};
            """
        )
        attacker = await connect(url.set(username=ground.attacker_role))
        installer = ground.engine(ground.installer_role, url=url)
        try:
            (status,) = await trigger_status(installer)
            assert status.state is TriggerState.DRIFTED
            await install_triggers(installer, "mallory.t", log=True, row_values=True)
            (status,) = await trigger_status(installer)
            assert (status.state, status.problem) == (TriggerState.INSTALLED, None)
            for statement in (
                "select rowsignal.prune_v2()",
                "select rowsignal.wake_v2()",
                "select * from rowsignal.change",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await attacker.execute(statement)
            await attacker.execute("insert into mallory.t values (1, 'v')")
            assert await admin.fetchval("select count(*) from rowsignal.change") == 1
        finally:
            await installer.dispose()
            await attacker.close()
            await admin.close()
