"""What a role that writes or reads could do to all others: fill, stop, delete, keep."""

from collections.abc import Iterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal import grant, prune
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.payload import LOCK_CLASS
from rowsignal.triggers import install_triggers
from support.roles import Ground


async def logged(ground: Ground) -> None:
    await ground.attacker.execute("create table mallory.t (id int primary key, v json, w text)")
    await ground.install("mallory.t", log=True, row_values=True)


async def test_rolled_back_inserts_do_not_prune_the_log(ground: Ground) -> None:
    await logged(ground)
    await prune(ground.installer)
    await ground.attacker.execute(
        "insert into mallory.t select g, null, 'kept' from generate_series(1, 500) as g"
    )
    await prune(ground.installer)
    owner = await ground.connect(ground.installer_role)
    for _ in range(5):
        await ground.attacker.execute(
            "begin; insert into mallory.t select g, null, 'x'"
            " from generate_series(1000, 20000) as g; rollback"
        )
        await owner.execute("select rowsignal.prune_v3(max_bytes => 1000000)")
    assert await ground.sql.fetchval("select count(*) from rowsignal.change") == 500


async def test_locks_of_a_stranger_stop_neither_pruning_nor_installing(ground: Ground) -> None:
    await logged(ground)
    await ground.attacker.execute("insert into mallory.t select g from generate_series(1, 9) as g")
    await ground.attacker.execute("create table mallory.u (id int primary key)")
    stranger = await ground.connect(ground.bystander_role)
    await stranger.execute(
        f"select pg_advisory_lock({LOCK_CLASS}, n) from generate_series(0, 2000) n"
    )
    await stranger.execute("begin; select * from rowsignal.migration")
    owner = await ground.connect(ground.installer_role)
    await owner.execute("select rowsignal.prune_v3(max_age => '0')")
    ours = await owner.fetchrow("select is_ours, deleted from rowsignal.prune_v3(max_age => '0')")
    assert ours["is_ours"]
    await ground.install("mallory.u")


async def test_an_open_transaction_of_a_reader_does_not_stop_pruning(ground: Ground) -> None:
    await logged(ground)
    await prune(ground.installer)  # begins the log
    await ground.attacker.execute("insert into mallory.t select g from generate_series(1, 9) as g")
    await grant(ground.installer, ground.bystander_role, watch=True)
    reader = await ground.connect(ground.bystander_role)
    await reader.execute(
        "begin isolation level repeatable read; select rowsignal.start_incarnation_v2()"
    )
    for table in ("change", "incarnation", "horizon", "stored_position", "retention"):
        await reader.execute(f"select * from rowsignal.{table}")
    owner = await ground.connect(ground.installer_role)
    for _ in range(2):
        done = await owner.fetchrow("select is_ours from rowsignal.prune_v3(max_age => '0')")
        assert done["is_ours"]
    assert await ground.sql.fetchval("select count(*) from rowsignal.change") == 0


async def test_a_position_is_kept_once_and_must_be_of_the_past(ground: Ground) -> None:
    await logged(ground)
    await grant(ground.installer, ground.bystander_role, watch=True)
    reader = await ground.connect(ground.bystander_role)
    keep = "select rowsignal.store_position_v2($1::text::pg_snapshot, null)"
    ids = {await reader.fetchval(keep, "10:20:12,15") for _ in range(50)}
    assert len(ids) == 1
    assert await reader.fetchval(keep, "10:99999999:12,15") is None
    assert await ground.sql.fetchval("select count(*) from rowsignal.stored_position") == 1
    long = f"10:700:{','.join(map(str, range(10, 700)))}"
    assert await reader.fetchval(keep, long) is None


async def test_positions_that_are_made_up_are_kept_in_bounded_number(ground: Ground) -> None:
    await logged(ground)
    await grant(ground.installer, ground.bystander_role, watch=True)
    reader = await ground.connect(ground.bystander_role)
    await reader.execute(
        "select rowsignal.store_position_v2(format('%s:%s:', 3 + g % 200, 300 + g / 200)::pg_snapshot, null)"
        " from generate_series(1, 15000) as g"
    )
    kept = await ground.sql.fetchval("select count(*) from rowsignal.stored_position")
    assert 10_000 <= kept < 11_500, "each insertion prunes with a probability of 1 %"


VALUES = (
    r"""'"\u0000"'""",
    r"""'"\ud800"'""",
    "'1e999999'",
    "('[' || repeat('[', 5000) || repeat(']', 5000) || ']')::json",
)


@pytest.mark.parametrize("value", VALUES)
async def test_a_value_that_the_log_cannot_hold_fails_no_write(ground: Ground, value: str) -> None:
    await logged(ground)
    for statement in (
        f"insert into mallory.t values (1, {value}, 'a')",
        f"insert into mallory.t select g, {value}, 'a' from generate_series(2, 3) as g",
        "update mallory.t set w = 'b' where id = 1",
        "update mallory.t set w = 'c'",
        "delete from mallory.t where id = 1",
        "delete from mallory.t",
    ):
        await ground.attacker.execute(statement)
    rows = await ground.sql.fetch("select operation, key from rowsignal.change order by id")
    assert "".join(row["operation"].decode() for row in rows) == "iiiuuuuddd"
    assert all(row["key"] for row in rows)


async def test_hints_of_two_tables_in_one_bucket_keep_the_bound(ground: Ground) -> None:
    """An audit trigger writes two tables by turns: each tells 100 rows, then of the whole."""
    # some two of 100 tables share one of 128 buckets
    names = [f"mallory.t{n}" for n in range(100)]
    await ground.attacker.execute("".join(f"create table {n} (id int primary key);" for n in names))
    await ground.install(*names)
    rows = await ground.sql.fetch(
        "select min(tgrelid::regclass::text) as one, max(tgrelid::regclass::text) as two,"
        " split_part(encode(tgargs, 'escape'), '\\000', 2) as bucket from pg_trigger"
        " where tgname = 'rowsignal_hint' group by 3 having count(*) > 1 limit 1"
    )
    one, two = rows[0]["one"], rows[0]["two"]
    listener = await ground.connect(ground.bystander_role)
    heard: list[str] = []
    await listener.add_listener("rowsignal", lambda *args: heard.append(args[-1]))
    await listener.execute(f"select pg_advisory_lock_shared({LOCK_CLASS}, {rows[0]['bucket']})")
    await ground.attacker.execute(
        f"do $$ begin for n in 1..400 loop insert into {one} values (n);"
        f" insert into {two} values (n); end loop; end $$"
    )
    await ground.attacker.execute("notify rowsignal, 'end'")
    while not heard or heard[-1] != "end":
        await listener.execute("select 1")
    assert len(heard) == 2 * 101 + 1


@pytest.fixture(scope="module")
def small_queue() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as probe:
        version = int(probe.version.split(".")[0])
    if version < 17:
        pytest.skip("the queue of this version cannot be made small")
    with EmbeddedPostgres(settings={"max_notify_queue_pages": "64"}) as server:
        yield server


async def test_a_small_queue_with_a_stopped_listener_fails_no_write(
    small_queue: EmbeddedPostgres,
) -> None:
    engine = create_async_engine(small_queue.url)
    plain = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    sleeper, writer = await asyncpg.connect(plain), await asyncpg.connect(plain)
    await writer.execute("create table wide (id text primary key, v int)")
    await install_triggers(engine, "wide")
    await sleeper.execute("listen rowsignal")
    await sleeper.execute(
        f"select pg_advisory_lock_shared({LOCK_CLASS}, n) from generate_series(0, 127) as n"
    )
    await sleeper.execute("begin; select 1")  # reads nothing until it ends
    usage = []
    for n in range(60):
        await writer.execute(
            "insert into wide select $1::int || '-' || g || repeat('k', 2500), 1"
            " from generate_series(1, 150) as g",
            n,
        )
        usage.append(await writer.fetchval("select pg_notification_queue_usage()"))
    assert max(usage) < 0.6
    await sleeper.close(timeout=5)
    await writer.close()
    await engine.dispose()
