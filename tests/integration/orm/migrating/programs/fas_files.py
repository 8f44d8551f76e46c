"""A program for fastapi-async-sqlalchemy: routes, start-up and helpers around one `db`."""

import os

from fastapi import FastAPI
from fastapi_async_sqlalchemy import SQLAlchemyMiddleware, db
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select

app = FastAPI()
app.add_middleware(
    SQLAlchemyMiddleware,
    db_url=os.environ["DATABASE_URL"],
    engine_args={"echo": False, "pool_pre_ping": True, "pool_size": 5, "max_overflow": 10},
)

metadata = MetaData()
files = Table("files", metadata, Column("id", Integer, primary_key=True), Column("name", String))


async def fetch() -> list[str]:
    async with db():
        result = await db.session.execute(select(files.c.name).order_by(files.c.id))
        return [row.name for row in result.fetchall()]


@app.on_event("startup")
async def on_startup() -> None:
    async with db(commit_on_exit=True):
        connection = await db.session.connection()
        await connection.run_sync(metadata.create_all)
        await db.session.execute(insert(files), [{"name": "a.txt"}, {"name": "b.txt"}])


@app.get("/")
async def get_files() -> list[str]:
    result = await db.session.execute(select(files.c.name).order_by(files.c.id))
    return [row.name for row in result.fetchall()]


@app.get("/context")
async def context() -> list[str]:
    return await fetch()


@app.post("/files/{name}")
async def add(name: str) -> None:
    await db.session.execute(insert(files).values(name=name))
    await db.session.commit()
