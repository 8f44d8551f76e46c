"""Reading rows runs no code of a table's owner: no cast, no domain check, no operator."""

import asyncio
from datetime import date

import pytest
from fastapi import FastAPI
from sqlalchemy import MetaData, Table
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase

from rowsignal.listener import Listener
from rowsignal.sse import Limits, create_sse_router
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers
from support.change_log import connect
from support.event_streams import reading
from support.web_server import serving

OWNED = """
create table ran (what text);
create type mood as enum ('calm', 'wild');
create function taint(what text) returns boolean language plpgsql as
    $$ begin insert into ran values (what); return true; end $$;
create domain code as integer check (value > 0);
create domain label as text;
create table owned (
    id code, mood mood not null, label label, items integer[], at date,
    primary key (id, mood)
);
"""
# Afterwards, so that only reading can run it: the writes here name no function of these.
TRAPS = """
create function mood_json(mood) returns json language plpgsql as
    $$ begin perform taint('cast to json'); return '1'; end $$;
create cast (mood as json) with function mood_json(mood);
create function mood_text(mood) returns text language plpgsql as
    $$ begin perform taint('cast to text'); return 'x'; end $$;
create cast (mood as text) with function mood_text(mood) as assignment;
create function same_mood(mood, mood) returns boolean language plpgsql as
    $$ begin perform taint('operator'); return true; end $$;
create operator public.= (leftarg = mood, rightarg = mood, function = same_mood);
alter domain code add constraint trap check (taint('domain')) not valid;
"""


@pytest.mark.parametrize("log", [True, False], ids=["log", "hints"])
async def test_neither_streams_nor_snapshots_run_code_of_owners(engine: AsyncEngine, log) -> None:
    owner = await connect(engine)
    await owner.execute(OWNED)
    async with engine.connect() as connection:
        table = await connection.run_sync(
            lambda sync: Table("owned", MetaData(), autoload_with=sync)
        )
    await install_triggers(engine, [table], log=log)

    class Base(DeclarativeBase):
        pass

    class Owned(Base):
        __table__ = table

    app = FastAPI()
    app.include_router(create_sse_router(engine, [table], limits=Limits(heartbeat=0.3)))
    async with (
        Listener(engine),
        serving(app) as site,
        watch(engine, Owned, rows=True) as changes,
        reading(site.port, "/changes/owned?where=mood.eq.calm") as stream,
    ):
        await stream.until("heartbeat")
        await owner.execute("insert into owned values (1, 'calm', 'a', '{1,2}', '2026-11-30')")
        await owner.execute(TRAPS)
        async with asyncio.timeout(30):
            first = await anext(changes)
        assert first.row == {
            "id": 1,
            "mood": "calm",
            "label": "a",
            "items": [1, 2],
            "at": date(2026, 11, 30),
        }
        path = "/changes/owned?snapshot=true&where=mood.eq.calm"
        async with reading(site.port, path) as again:
            shown = await again.until("snapshot")
            await again.until("snapshot-end")
        assert shown.data["row"]["mood"] == "calm"
    assert await owner.fetch("select what from ran where what <> 'domain'") == []
    assert await owner.fetch("select what from ran") == []
    await owner.close()
