"""One server of streams as a process: from PostgreSQL, or from NATS."""

import sys

import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.processes import serve
from rowsignal.relay import JetStreamSource
from rowsignal.sse import Limits, create_sse_router

TICKS = sa.Table(
    "ticks",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("v", sa.Integer),
    sa.Column("note", sa.Text),
)
LIMITS = Limits(write_interval=0.0)


def app_of(kind: str, address: str) -> FastAPI:
    """Return an application that reads from a database, or from `NATS-URL|DATABASE`."""
    app = FastAPI()
    if kind == "direct":
        router = create_sse_router(create_async_engine(address), [TICKS], limits=LIMITS)
    else:
        nats, _, database = address.partition("|")
        source = JetStreamSource(nats, database)
        router = create_sse_router(source=source, tables=[TICKS], limits=LIMITS)
    app.include_router(router)
    return app


if __name__ == "__main__":
    serve(app_of(sys.argv[1], sys.argv[2]))
