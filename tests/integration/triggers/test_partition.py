"""Tables that are made of tables: partitions and inheritance."""

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.triggers import (
    TriggerState,
    captures,
    install_triggers,
    trigger_status,
    uninstall_triggers,
)
from support.hint_listener import connected, listening

PARTITIONED = """
    CREATE TABLE m (id int, day int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
    CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (day);
    CREATE TABLE m1a PARTITION OF m1 FOR VALUES FROM (0) TO (5);
    CREATE TABLE m2 (v text, day int NOT NULL, id int NOT NULL, gone int, PRIMARY KEY (day, id));
    ALTER TABLE m2 DROP gone;
    ALTER TABLE m ATTACH PARTITION m2 FOR VALUES FROM (10) TO (20);
"""
WRITES = """
    INSERT INTO m VALUES (1, 1, 'a'), (2, 11, 'b');
    INSERT INTO m1a VALUES (3, 2, 'c');
    UPDATE m SET v = 'x' WHERE id = 2;
    UPDATE m2 SET v = 'y';
    UPDATE m SET day = 12 WHERE id = 1;
    DELETE FROM m WHERE id = 3;
"""


async def test_hints_come_from_the_root_and_from_partitions(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(PARTITIONED)
        await install_triggers(engine, "m")
        await writer.execute("CREATE TABLE m3 PARTITION OF m FOR VALUES FROM (20) TO (30)")
        async with listening(engine, "m") as hint_listener:
            await writer.execute(f"{WRITES}; INSERT INTO m VALUES (9, 21)")
            hints = await hint_listener.hints()
            told = [(hint["n"], hint["o"], hint["k"], hint.get("c")) for hint in hints]
            assert told == [
                ("m1a", "insert", [1, 1], None),
                ("m2", "insert", [11, 2], None),
                ("m1a", "insert", [2, 3], None),
                ("m2", "update", [11, 2], ["v"]),
                # the same row twice in one transaction is one notification
                ("m1a", "delete", [1, 1], None),
                ("m2", "insert", [12, 1], None),
                ("m1a", "delete", [2, 3], None),
                ("m3", "insert", [21, 9], None),
            ]
            assert len({hint["t"] for hint in hints}) == 1
            await writer.execute("TRUNCATE m1a")
            assert [hint["n"] for hint in await hint_listener.hints()] == ["m1a"]


async def test_the_log_sees_the_root_and_partitions_once(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(PARTITIONED)
        await install_triggers(engine, "m", log=True)
        for statement in WRITES.strip(" ;\n").split(";"):
            await writer.execute(statement)
        rows = await writer.fetch(
            "SELECT operation::text AS o, key ->> 'id' AS id, key ->> 'day' AS day, changed"
            " FROM rowsignal.change ORDER BY rowsignal.change.id"
        )
        assert [tuple(row) for row in rows] == [
            ("i", "1", "1", None),
            ("i", "2", "11", None),
            ("i", "3", "2", None),
            ("u", "2", "11", ["v"]),
            ("u", "2", "11", ["v"]),
            ("d", "1", "1", None),
            ("i", "1", "12", None),
            ("d", "3", "2", None),
        ]


async def test_a_partition_made_later_is_reported_until_installed(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(PARTITIONED)
        for log in (False, True):
            await install_triggers(engine, "m", log=log)
            (status,) = await trigger_status(engine, "m", log=log)
            assert status.state is TriggerState.INSTALLED, status.problem
            await writer.execute("CREATE TABLE m3 PARTITION OF m FOR VALUES FROM (20) TO (30)")
            (status,) = await trigger_status(engine, "m", log=log)
            assert status.state is TriggerState.DRIFTED
            (action,) = await install_triggers(engine, "m", log=log)
            assert action.action == "replaced"
            (status,) = await trigger_status(engine, "m", log=log)
            assert status.state is TriggerState.INSTALLED, status.problem
            await writer.execute("DROP TABLE m3")


async def test_a_disabled_clone_shows(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(PARTITIONED)
        await install_triggers(engine, "m")
        await writer.execute("ALTER TABLE m1a DISABLE TRIGGER rowsignal_hint")
        (status,) = await trigger_status(engine, "m")
        assert status.state is TriggerState.DISABLED
        async with engine.connect() as connection:
            (capture,) = await captures(connection, [(None, "m")])
        assert not capture.is_notifying
        await install_triggers(engine, "m")
        (status,) = await trigger_status(engine, "m")
        assert status.state is TriggerState.INSTALLED, status.problem


async def test_inheritance_children_are_installed_with_their_parent(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(
            "CREATE TABLE parent (id int PRIMARY KEY, v text);"
            "CREATE TABLE child (extra int) INHERITS (parent);"
        )
        await install_triggers(engine, "parent")
        async with engine.connect() as connection:
            (capture,) = await captures(connection, [(None, "parent")])
        assert (len(capture.channels), len(capture.relations)) == (2, 2)
        assert capture.is_notifying
        async with listening(engine, "parent") as hint_listener:
            await writer.execute("INSERT INTO child VALUES (1, 'a'); UPDATE parent SET v = 'b'")
            assert await hint_listener.said() == [("insert", [1], None), ("update", [1], ["v"])]
        await uninstall_triggers(engine, "parent")
        assert await writer.fetchval("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
