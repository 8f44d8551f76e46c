"""Several processes that sync one database at once."""

import asyncio
import sys
from pathlib import Path

import asyncpg

from rowsignal.orm.manager.manager import LOCK
from support.migration_projects import Project

PROCESSES = 4

PROGRAM = """
import asyncio, sys
from rowsignal.orm.manager.manager import AsyncDatabaseManager

async def main():
    url, location = sys.argv[1:]
    manager = AsyncDatabaseManager(url, location)
    result = await manager.sync(create="migrations")
    await manager.dispose()
    print(result.name)

asyncio.run(main())
"""

ARRIVED = """
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""


async def sync_in_a_process(url: str, location: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        url,
        str(location),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode().strip()


async def test_of_four_processes_one_works_and_three_say_up_to_date(
    database_url: str, tmp_path: Path
):
    project = Project(tmp_path)
    project.add("a1", None, 'op.create_table("t", sa.Column("id", sa.Integer))')
    project.add("b2", "a1", 'op.execute("insert into t values (1)")')
    gate = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    await gate.execute(f"select pg_advisory_lock({LOCK})")
    processes = [
        asyncio.create_task(sync_in_a_process(database_url, project.location))
        for _ in range(PROCESSES)
    ]
    # all four have arrived before the first may pass
    while await gate.fetchval(ARRIVED) < PROCESSES:
        assert not any(process.done() for process in processes)
        await asyncio.sleep(0.02)
    await gate.execute(f"select pg_advisory_unlock({LOCK})")
    results = await asyncio.gather(*processes)
    assert sorted(results) == ["ALREADY_UP_TO_DATE"] * (PROCESSES - 1) + ["CREATED"]
    assert await gate.fetchval("select count(*) from t") == 1
    await gate.close()
