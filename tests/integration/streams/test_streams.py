"""Streams over tables: what is yielded, resumed, filtered, shown, and said when there is a gap."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from sqlalchemy import Numeric
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change, Operation, Reset
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import PositionError, TriggerInstallError
from rowsignal.listener import Listener
from rowsignal.streams import ChangeStream, watch
from rowsignal.triggers import install_triggers
from support.change_log import Shop, open_shop
from support.pgbouncer import pgbouncer, pooled


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    v: Mapped[int]


class Price(Base):
    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column("amt", Numeric(10, 2))
    note: Mapped[str | None]


class Quiet(Base):
    __tablename__ = "quiet"
    id: Mapped[int] = mapped_column(primary_key=True)


class Hinted(Base):
    __tablename__ = "hinted"
    id: Mapped[int] = mapped_column(primary_key=True)
    v: Mapped[int | None]


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    async with open_shop(engine) as shop, Listener(engine):
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await shop.capture("public.price")
        await install_triggers(engine, [Hinted.__table__])
        yield shop


async def take(stream: ChangeStream, count: int = 1) -> list[Change]:
    """Return the next changes; fail on a reset."""
    items = [await following(stream) for _ in range(count)]
    assert not any(isinstance(item, Reset) for item in items), items
    return [item for item in items if isinstance(item, Change)]


async def following(stream: ChangeStream) -> Change | Reset:
    async with asyncio.timeout(30):
        return await anext(stream)


def told(changes: list[Change]) -> list[tuple[str, str, int]]:
    return [(str(c.operation), c.table, (c.key or {"id": 0})["id"]) for c in changes]


async def test_several_tables_come_in_one_stream(shop: Shop) -> None:
    async with watch(shop.engine, Item, Price) as changes:
        await shop.insert(1)
        await shop.sql.execute("insert into price values (5, 1.50)")
        await shop.sql.execute("delete from item")
        assert told(await take(changes, 3)) == [
            ("insert", "item", 1),
            ("insert", "price", 5),
            ("delete", "item", 1),
        ]


async def test_a_stream_goes_on_from_any_position(shop: Shop) -> None:
    async with watch(shop.engine, Item) as changes:
        start = changes.position
        await shop.insert(1, 2, 3)
        first = await take(changes, 3)
    await shop.insert(4)
    for skipped, position in enumerate([start, *(change.position for change in first)]):
        async with watch(shop.engine, Item, after=position) as changes:
            expected = [1, 2, 3, 4][skipped:]
            assert [key for _, _, key in told(await take(changes, len(expected)))] == expected
            assert changes.position is not None


async def test_filters_narrow_what_is_yielded(shop: Shop) -> None:
    async with (
        watch(shop.engine, Item, pk=[1, 3]) as by_key,
        watch(shop.engine, Item, operations=["delete"]) as deletes,
        watch(shop.engine, Item, columns=[Item.v]) as with_v,
        watch(shop.engine, Price, columns=["note"]) as notes,
        watch(shop.engine, Item, predicate=lambda change: change.key == {"id": 2}) as chosen,
    ):
        await shop.insert(1, 2, 3)
        await shop.sql.execute("insert into price values (5, 1.50)")
        await shop.sql.execute("update price set amt = 2")
        await shop.sql.execute("delete from price")
        await shop.sql.execute("delete from item where id > 1")
        assert told(await take(by_key, 3)) == [
            ("insert", "item", 1),
            ("insert", "item", 3),
            ("delete", "item", 3),
        ]
        assert told(await take(deletes, 2)) == [("delete", "item", 2), ("delete", "item", 3)]
        assert [name for name, *_ in told(await take(with_v, 5))] == ["insert"] * 3 + ["delete"] * 2
        assert [name for name, *_ in told(await take(notes, 2))] == ["insert", "delete"]
        assert told(await take(chosen, 2)) == [("insert", "item", 2), ("delete", "item", 2)]


async def test_the_position_passes_what_filters_leave_out(shop: Shop) -> None:
    async with watch(shop.engine, Item, pk=99) as changes:
        start = changes.position
        await shop.insert(1)
        waiting = asyncio.ensure_future(anext(changes))
        async with asyncio.timeout(30):
            while changes.position == start:
                await asyncio.sleep(0.01)
        waiting.cancel()
    async with watch(shop.engine, Item, after=changes.position) as changes:
        await shop.insert(2)
        assert told(await take(changes)) == [("insert", "item", 2)]


async def test_a_snapshot_and_what_follows_are_all_there_is(shop: Shop) -> None:
    await shop.insert(*range(1200))
    slow = await shop.connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (5000, 0)")
    async with watch(shop.engine, Item, snapshot=True) as changes:
        await transaction.commit()
        await shop.sql.execute("update item set v = 7 where id = 3")
        shown = await take(changes, 1200)
        assert {change.key["id"] for change in shown if change.key} == set(range(1200))
        assert {change.position for change in shown} == {None}
        assert shown[0].row == {"id": 0, "v": 0}
        inserted, updated = await take(changes, 2)
    assert (inserted.operation, inserted.row) == (Operation.INSERT, {"id": 5000, "v": 0})
    assert (updated.operation, updated.row) == (Operation.UPDATE, {"id": 3, "v": 7})
    assert changes.position == updated.position


async def test_shown_rows_are_those_of_now(shop: Shop) -> None:
    async with watch(shop.engine, Item, Price, rows=True) as changes:
        await shop.sql.execute("insert into price values (5, 1.50, 'x')")
        (change,) = await take(changes)
        assert change.row == {"id": 5, "amount": Decimal("1.50"), "note": "x"}
        async with shop.sql.transaction():
            await shop.insert(1)
            await shop.sql.execute("delete from item")
            await shop.insert(1)
            await shop.sql.execute("update item set v = 3")
            await shop.insert(2)
            await shop.sql.execute("delete from item where id = 2")
        shown = await take(changes, 6)
    assert [(str(c.operation), c.key, c.row) for c in shown] == [
        ("insert", {"id": 1}, {"id": 1, "v": 3}),
        ("update", {"id": 1}, {"id": 1, "v": 3}),
        ("insert", {"id": 1}, {"id": 1, "v": 3}),
        ("update", {"id": 1}, {"id": 1, "v": 3}),
        ("delete", {"id": 2}, None),
        ("delete", {"id": 2}, None),
    ]


async def test_readers_converge_though_triggers_log_inside_out(shop: Shop) -> None:
    await shop.sql.execute(
        """
        create function revive() returns trigger language plpgsql as $$
        begin
            insert into item values (old.id, 99);
            return null;
        end $$;
        create trigger a_first after delete on item for each row execute function revive();
        """
    )
    await shop.insert(1)
    async with watch(shop.engine, Item, rows=True) as changes:
        await shop.sql.execute("delete from item")
        logged = ids_of_log = await take(changes, 2)
        assert [str(change.operation) for change in logged] == ["insert", "update"]
        assert {tuple((change.row or {}).values()) for change in ids_of_log} == {(1, 99)}


async def test_a_cancelled_wait_loses_nothing(shop: Shop) -> None:
    async with watch(shop.engine, Item, rows=True) as changes:
        seen = 0
        for number in range(20):
            await shop.insert(number)
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0.001 * number)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            if not waiting.cancelled():
                assert waiting.result().key == {"id": seen}
                seen += 1
        rest = await take(changes, 20 - seen)
        assert [key for _, _, key in told(rest)] == list(range(seen, 20))


async def test_hints_are_streamed_live(shop: Shop) -> None:
    async with watch(shop.engine, Hinted) as changes:
        await shop.sql.execute("insert into hinted values (1, 2)")
        await shop.sql.execute("update hinted set v = 3")
        inserted, updated = await take(changes, 2)
    assert (inserted.operation, inserted.key) == (Operation.INSERT, {"id": 1})
    assert (updated.operation, updated.changed) == (Operation.UPDATE, ("v",))
    assert changes.position is None


async def test_hints_and_log_come_in_one_stream(shop: Shop) -> None:
    async with watch(shop.engine, Hinted, Item, snapshot=True) as changes:
        await shop.sql.execute("insert into hinted values (1, 2)")
        await shop.insert(2)
        both = {change.table: change for change in await take(changes, 2)}
    assert both["hinted"].row == {"id": 1, "v": 2}
    assert both["item"].row == {"id": 2, "v": 0}


async def test_a_gap_in_the_hints_is_said_when_it_begins_and_when_it_is_over(shop: Shop) -> None:
    async with watch(shop.engine, Hinted) as changes:
        await shop.sql.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        first, last = await following(changes), await following(changes)
        while isinstance(last, Reset) and "up to here" not in last.reason:
            last = await following(changes)
        assert isinstance(first, Reset)
        assert isinstance(last, Reset)
        await shop.sql.execute("insert into hinted values (1, 2)")
        assert told(await take(changes)) == [("insert", "hinted", 1)]


async def test_a_pruned_position_is_a_reset_and_the_stream_goes_on(shop: Shop) -> None:
    position = await shop.log.position()
    await shop.insert(1)
    await shop.sql.execute("delete from rowsignal.change")
    await shop.sql.execute("update rowsignal.horizon set snapshot = pg_current_snapshot()")
    async with watch(shop.engine, Item, after=position) as changes:
        reset = await following(changes)
        assert isinstance(reset, Reset)
        assert "pruned" in reset.reason
        await shop.insert(2)
        assert told(await take(changes)) == [("insert", "item", 2)]


async def test_what_can_not_be_watched_is_refused(shop: Shop) -> None:
    with pytest.raises(TriggerInstallError, match=r"public\.quiet has no triggers"):
        await watch(shop.engine, Quiet).__aenter__()
    await shop.sql.execute("drop table quiet")
    with pytest.raises(TriggerInstallError, match="no table"):
        await watch(shop.engine, Quiet).__aenter__()
    with pytest.raises(ValueError, match="at least one model"):
        await watch(shop.engine).__aenter__()
    with pytest.raises(ValueError, match="has no column 'nope'"):
        await watch(shop.engine, Item, columns=["nope"]).__aenter__()
    with pytest.raises(ValueError, match="for one model"):
        await watch(shop.engine, Item, Price, pk=1).__aenter__()
    with pytest.raises(ValueError, match="'explode' is not a valid"):
        watch(shop.engine, Item, operations=["explode"])
    with pytest.raises(PositionError):
        watch(shop.engine, Item, after="nonsense")
    position = await shop.log.position()
    with pytest.raises(ValueError, match="pass one of them"):
        watch(shop.engine, Item, after=position, snapshot=True)
    with pytest.raises(ValueError, match="has no change log"):
        await watch(shop.engine, Hinted, after=position).__aenter__()


async def test_a_stream_through_a_transaction_pooler_misses_nothing(
    server: EmbeddedPostgres, shop: Shop
) -> None:
    await shop.insert(1)
    async with pgbouncer(server) as port, pooled(port, shop.engine) as engine:
        async with watch(engine, Item, snapshot=True) as stream:
            assert told(await take(stream)) == [("insert", "item", 1)]
            for number in range(2, 12):  # on whichever connections the pooler picks
                await shop.insert(number)
                assert told(await take(stream)) == [("insert", "item", number)]
            left_at = stream.position
        await shop.insert(12)
        async with watch(engine, Item, after=left_at) as stream:
            assert told(await take(stream)) == [("insert", "item", 12)]
        await Listener.of(engine).close()
