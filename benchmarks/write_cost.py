"""What triggers cost those who write, relative to a table without any.

pgbench drives a server with fsync on, as fast as its disk is and then as if each flush took a
millisecond (`commit_delay`). All tables are alike but for their triggers, and take turns:

    plain     no trigger: the peer
    hint      hint triggers, and no waits
    watched   hint triggers, and one wait for a row that is never written, in a busy table
    naive     a NOTIFY for each row, whoever listens: what one would write first
    least     a trigger that inserts one constant row: what any log costs, whatever it logs
    log       log triggers, and no reader
    log_read  log triggers, and one reader that follows
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import median, quantiles

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.pgbench import FLUSH, durable_server, rate, slow_flushes, turn
from benchmarks.report import Report
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.postgres.statements import split
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change

CLIENTS = (1, 8, 32)
ROUNDS = 5
SECONDS = 1
CPU_CLIENTS = 4
CPU_ROUNDS = 8
ROWS = 10_000
BULK_ROWS = 100_000
BULK_ROUNDS = 3
COLD_ROW = ROWS + 1

UPDATE = "\\set id random(1, {rows})\nupdate {table} set status = status + 1 where id = :id;\n"
INSERT = "insert into {table}_new (status, note) values (1, 'a note of some length');\n"


@dataclass(frozen=True)
class Cost:
    """Processor time of the backends for a transaction, and its quartiles over peers."""

    microseconds: float
    over_plain: tuple[float, float, float]
    over_constant: tuple[float, float, float]


class Base(DeclarativeBase):
    pass


class Row:
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None]


def tables_of(name: str) -> dict[str, type[Base]]:
    """Return the models of a variant: written by UPDATE, by INSERT and in bulk."""
    return {
        kind: type(f"{name}{kind}".title(), (Row, Base), {"__tablename__": f"{name}{kind}"})
        for kind in ("", "_new", "_bulk")
    }


VARIANTS = {
    name: tables_of(name)
    for name in ("plain", "hint", "watched", "naive", "least", "log", "log_read")
}

NAIVE = """
create function naive_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('naive', json_build_object('table', tg_table_name, 'id', new.id)::text);
    return null;
end $$
"""

LEAST = """
create table least_log (like rowsignal.change including all);
create function least_log() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.least_log (relation, operation, key, changed)
    values (tg_relid, 'u', '{"id": 1234}', '{status}');
    return null;
end $$;
"""


async def prepare(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text(NAIVE))
        for name in VARIANTS:
            for kind, rows in (("", COLD_ROW), ("_bulk", BULK_ROWS)):
                await connection.execute(
                    text(
                        f"insert into {name}{kind} (id, status, note)"
                        f" select n, 0, 'a note of some length' from generate_series(1, {rows}) n"
                    )
                )
        for kind in ("", "_new", "_bulk"):
            await connection.execute(
                text(
                    f"create trigger naive after insert or update on naive{kind}"
                    " for each row execute function naive_notify()"
                )
            )
    for name in ("hint", "watched"):
        await install_triggers(engine, list(VARIANTS[name].values()))
    for name in ("log", "log_read"):
        await install_triggers(engine, list(VARIANTS[name].values()), log=True)
    async with engine.begin() as connection:
        for statement in split(LEAST):
            await connection.execute(text(statement))
        for kind in ("", "_new", "_bulk"):
            for event in ("insert", "update"):
                await connection.execute(
                    text(
                        f"create trigger least_{event} after {event} on least{kind}"
                        " for each statement execute function least_log()"
                    )
                )


@asynccontextmanager
async def company(name: str, engine: AsyncEngine) -> AsyncIterator[None]:
    """Watch or read what the variant is about, for the length of a block."""
    if name not in {"watched", "log_read"}:
        yield
        return
    work = follow(engine) if name == "log_read" else wait(engine)
    task = asyncio.create_task(work)
    await asyncio.sleep(0.3)
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def wait(engine: AsyncEngine) -> None:
    both = (VARIANTS["watched"][""], COLD_ROW), (VARIANTS["watched"]["_new"], 1)
    async with engine.begin() as connection:
        await connection.execute(
            text("insert into watched_new (id, status) values (1, 0) on conflict do nothing")
        )
        await connection.execute(
            text("select setval('watched_new_id_seq', (select max(id) + 1 from watched_new))")
        )
    await asyncio.gather(*(wait_for_row_change(engine, model, key) for model, key in both))


async def follow(engine: AsyncEngine) -> None:
    models = [VARIANTS["log_read"][""], VARIANTS["log_read"]["_new"]]
    async with watch(engine, *models) as changes:
        async for _ in changes:
            pass


async def rates(
    server: EmbeddedPostgres, engine: AsyncEngine, clients: int, script: str
) -> tuple[float, dict[str, float]]:
    """Return the plain TPS, and each variant's over the plain one of its round: medians."""
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, seen in found.items():
            async with company(name, engine):
                statement = script.format(table=name, rows=ROWS)
                seen.append(await rate(server, statement, clients, SECONDS))
    plain = found["plain"]
    ratios = {
        name: median(rate / peer for rate, peer in zip(seen, plain, strict=True))
        for name, seen in found.items()
    }
    return median(plain), ratios


async def costs(server: EmbeddedPostgres, script: str) -> dict[str, Cost]:
    """Return what a transaction costs the processors in each variant without waits and readers.

    A turn is compared with the turns of its own round, half of which run the other way about, so
    that what other machines on this host do in the meantime concerns both.
    """
    names = ("plain", "hint", "least", "log")
    rounds: list[dict[str, float]] = []
    for _ in range(CPU_ROUNDS):
        taken = dict.fromkeys(names, 0.0)
        for name in (*names, *reversed(names)):
            statement = script.format(table=name, rows=ROWS)
            taken[name] += (await turn(server, statement, CPU_CLIENTS, SECONDS)).cpu / 2
        rounds.append(taken)
    return {
        name: Cost(
            median(taken[name] for taken in rounds) * 1e6,
            quartiles(taken[name] / taken["plain"] for taken in rounds),
            quartiles(taken[name] / taken["least"] for taken in rounds),
        )
        for name in names
    }


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    first, second, third = quantiles(values, n=4)
    return first, second, third


def judge_costs(report: Report, found: dict[str, dict[str, Cost]]) -> None:
    """Add the ratios of processor time; the less favourable of UPDATE and INSERT counts."""
    for statement, cost in found.items():
        report.figures[f"{statement}, processor us a transaction"] = {
            name: round(value.microseconds, 1) for name, value in cost.items()
        }
        report.figures[f"{statement}, processor time over plain, quartiles"] = {
            name: [round(ratio, 3) for ratio in value.over_plain] for name, value in cost.items()
        }
    hint = max(cost["hint"].over_plain[1] for cost in found.values())
    log = max(cost["log"].over_plain[1] for cost in found.values())
    constant = max(cost["log"].over_constant[1] for cost in found.values())
    report.ratio("unwatched_cpu_over_plain", hint, at_most=1.15)
    report.ratio("logged_cpu_over_plain", log, at_most=1.65)
    report.ratio("logged_cpu_over_constant_insert", constant, at_most=1.2)


def show(report: Report, label: str, plain: float, ratios: dict[str, float]) -> None:
    report.figures[label] = {
        "plain TPS": round(plain),
        **{name: round(value, 2) for name, value in ratios.items()},
    }


async def bulk(connection: asyncpg.Connection, name: str, kind: str) -> float:
    """Return the seconds of one statement of 100,000 rows."""
    if kind == "update":
        began = time.perf_counter()
        await connection.execute(f"update {name}_bulk set status = status + 1")
    else:
        first = await connection.fetchval(f"select coalesce(max(id), 0) from {name}_bulk")
        rows = [(first + n, 0, "a note of some length") for n in range(1, BULK_ROWS + 1)]
        began = time.perf_counter()
        await connection.copy_records_to_table(
            f"{name}_bulk", records=rows, columns=["id", "status", "note"]
        )
    taken = time.perf_counter() - began
    if kind == "copy":
        await connection.execute(f"delete from {name}_bulk where id > {BULK_ROWS}")
        await connection.execute(f"vacuum {name}_bulk")
    return taken


async def bulk_seconds(server: EmbeddedPostgres, kind: str) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    connection = await asyncpg.connect(server.dsn)
    for _ in range(BULK_ROUNDS):
        for name, seen in found.items():
            seen.append(await bulk(connection, name, kind))
            await connection.execute("checkpoint")
    await connection.close()
    return {name: median(seen) for name, seen in found.items()}


def judge(report: Report, tps: dict[int, dict[str, float]], clients: int) -> None:
    """Add the ratios of one number of clients; the less favourable of UPDATE and INSERT counts."""
    rate = tps[clients]
    target = {"at_least": 0.88} if clients > 1 else {}
    report.ratio(f"unwatched_tps_{clients}", rate["hint"], **target)
    if clients == 1:
        return
    report.ratio(f"watched_hot_tps_{clients}", rate["watched"], at_least=0.70)
    report.ratio(f"least_log_tps_{clients}", rate["least"])
    report.ratio(f"logged_tps_{clients}", rate["log"], at_least=0.62)
    report.ratio(f"logged_read_tps_{clients}", rate["log_read"], at_least=0.65)


async def run() -> dict[str, object]:
    """Measure every variant at every number of clients, and in bulk."""
    report = Report("write_cost")
    tps: dict[int, dict[str, float]] = {}
    with durable_server() as server:
        engine = create_async_engine(server.url)
        await prepare(engine)
        for clients in CLIENTS:
            ratios: list[dict[str, float]] = []
            for statement, script in (("update", UPDATE), ("insert", INSERT)):
                plain, found = await rates(server, engine, clients, script)
                ratios.append(found)
                show(report, f"{statement}, {clients} client{'s' * (clients > 1)}", plain, found)
            tps[clients] = {name: min(ratio[name] for ratio in ratios) for name in VARIANTS}
        statements = (("update", UPDATE), ("insert", INSERT))
        judge_costs(report, {name: await costs(server, script) for name, script in statements})
        await slow_flushes(server, FLUSH)
        slowly = {clients: await rates(server, engine, clients, UPDATE) for clients in CLIENTS[1:]}
        await slow_flushes(server, 0)
        for kind, most in (("update", 3), ("copy", 2.5)):
            seconds = await bulk_seconds(server, kind)
            ratio = {name: value / seconds["plain"] for name, value in seconds.items()}
            report.figures[f"bulk {kind}, {BULK_ROWS} rows"] = {
                "plain seconds": round(seconds["plain"], 2),
                **{name: round(value, 2) for name, value in ratio.items()},
            }
            report.ratio(f"unwatched_bulk_{kind}", ratio["hint"], at_most=1.5)
            report.ratio(f"logged_bulk_{kind}", ratio["log"], at_most=most)
        await Dispatcher.of(engine).listener.close()
        await engine.dispose()
    for clients in CLIENTS:
        judge(report, tps, clients)
    for clients, (plain, found) in slowly.items():
        show(report, f"update, {clients} clients, each flush {FLUSH} us", plain, found)
        report.ratio(f"unwatched_tps_{clients}_slow_flush", found["hint"])
        report.ratio(f"logged_tps_{clients}_slow_flush", found["log"])
        report.ratio(f"logged_read_tps_{clients}_slow_flush", found["log_read"])
    return report.as_dict()
