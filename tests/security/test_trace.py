"""The trace that a writer names fails no write and stops no reader, whatever bytes it has."""

from urllib.parse import quote

import asyncpg
import pytest
from psycopg import pq

from rowsignal.change_log import ChangeLog
from support.roles import Ground

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

# What is no text in UTF-8: incomplete, overlong, a surrogate, a lone continuation, bytes of latin1.
BYTES = (
    b"abc\xc3",
    b"abc\xf0\x9f",
    b"\xc1\xa1",
    b"\xe0\x81\xa1bc",
    b"\xed\xa0\x80",
    b"\x80abc",
    b"caf\xe9",
    b"\xff" * 512,
    b"a\xc3" * 256,
)


async def logged(ground: Ground) -> None:
    await ground.attacker.execute("create table mallory.t (id int primary key, v text)")
    await ground.install("mallory.t", log=True, row_values=True)


def write_as(ground: Ground, role: str, setting: bytes) -> list[bytes]:
    """Connect with a setting in the startup packet, which PostgreSQL does not check, and write."""
    url = ground.admin.url.set(drivername="postgresql", username=role)
    address = url.update_query_dict({"options": "SETTING"}).render_as_string(hide_password=False)
    option = f"{quote('-c rowsignal.trace=')}{quote(setting)}"
    connection = pq.PGconn.connect(address.replace("SETTING", option).encode())
    assert connection.status == pq.ConnStatus.OK, connection.error_message
    statements = (
        b"insert into mallory.t values (1, 'a')",
        b"insert into mallory.t values (2, 'b'), (3, 'c')",
        b"update mallory.t set v = 'd'",
        b"delete from mallory.t where id = 1",
        b"truncate mallory.t",
    )
    results = [connection.exec_(statement) for statement in statements]
    connection.finish()
    return [it.error_message for it in results if it.status != pq.ExecStatus.COMMAND_OK]


@pytest.mark.parametrize("setting", BYTES, ids=ascii)
async def test_bytes_that_are_no_text_fail_no_write_and_stop_no_reader(
    ground: Ground, setting: bytes
) -> None:
    await logged(ground)
    async with ChangeLog(ground.installer) as log:
        start = await log.position()
        assert write_as(ground, ground.attacker_role, setting) == []
        found = await log.read(start)
        assert [change.trace for change in found.changes] == [None] * 8  # type: ignore[union-attr]


async def test_a_setting_of_a_role_from_a_database_of_another_encoding(ground: Ground) -> None:
    """ALTER ROLE stores the bytes of the database in which it runs."""
    role = await ground.role("latin")
    name = f"latin_{ground.admin.url.database}"
    await ground.sql.execute(
        f"create database \"{name}\" template template0 encoding latin1 lc_collate 'C' lc_ctype 'C'"
    )
    try:
        elsewhere = await asyncpg.connect(
            ground.admin.url.set(drivername="postgresql", database=name).render_as_string(
                hide_password=False
            )
        )
        await elsewhere.execute(f"alter role {role} set rowsignal.trace = 'caf\u00e9'")
        await elsewhere.close()
        await logged(ground)
        await ground.attacker.execute(f"grant usage on schema mallory to {role}")
        await ground.attacker.execute(f"grant all on mallory.t to {role}")
        async with ChangeLog(ground.installer) as log:
            start = await log.position()
            writer = await ground.connect(role)
            await writer.execute("insert into mallory.t values (1, 'a')")
            found = await log.read(start)
            assert [change.trace for change in found.changes] == [None]  # type: ignore[union-attr]
    finally:
        await ground.sql.execute(f'drop database "{name}" with (force)')


async def test_only_the_setting_says_what_the_trace_is(ground: Ground) -> None:
    await logged(ground)
    await ground.attacker.execute(f"set rowsignal.trace = '{TRACE}'")
    await ground.attacker.execute("insert into mallory.t values (1, 'a')")
    assert await ground.sql.fetchval("select trace from rowsignal.change") == TRACE
    for statement in (
        "select trace from rowsignal.change",
        "update rowsignal.change set trace = 'x'",
        "insert into rowsignal.change (relation, operation, trace) values (1, 'i', 'x')",
        "alter table rowsignal.change alter column trace drop default",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ground.attacker.execute(statement)
