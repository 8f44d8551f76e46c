"""An application as it is written for sqlalchemy-helpers, on rowsignal after new imports."""

import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from support.migration_projects import Project

FILES = {
    "config.py": """
import os
from functools import lru_cache
from pathlib import Path
from pydantic import BaseModel

class SQLAlchemyModel(BaseModel):
    url: str = os.environ["LIBRARY_URL"]
    pool_size: int = 1
    max_overflow: int = 0
    pool_timeout: float = 1.0

class AlembicModel(BaseModel):
    migrations_path: Path = Path(__file__).parent / "migrations"

class DatabaseSettings(BaseModel):
    sqlalchemy: SQLAlchemyModel = SQLAlchemyModel()
    alembic: AlembicModel = AlembicModel()

class Settings(BaseModel):
    database: DatabaseSettings = DatabaseSettings()

def get_settings():
    return Settings()
""",
    "database.py": """
from collections.abc import AsyncIterator
from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from rowsignal.orm.manager.config import manager_from_config
from rowsignal.orm.manager.sessions import make_db_session
from rowsignal.orm.manager.manager import AsyncDatabaseManager
from rowsignal.orm.models.base import Base
from .config import get_settings

managers = []

async def gen_db_manager() -> AsyncDatabaseManager:
    manager = manager_from_config(get_settings().database, base_model=Base)
    managers.append(manager)
    return manager

async def gen_db_session(
    db_manager: AsyncDatabaseManager = Depends(gen_db_manager),
) -> AsyncIterator[AsyncSession]:
    async for session in make_db_session(db_manager):
        yield session
""",
    "models.py": """
from sqlalchemy import MetaData, UnicodeText
from sqlalchemy.orm import Mapped, mapped_column
from .database import Base

class Reader(Base):
    __tablename__ = "readers"
    metadata = MetaData()
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(UnicodeText, unique=True)
    full_name: Mapped[str | None] = mapped_column(UnicodeText)
""",
    "views.py": """
from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from .database import gen_db_session
from .models import Reader

router = APIRouter(prefix="/readers")

@router.get("/{name}")
async def get_reader(name: str, db_session: AsyncSession = Depends(gen_db_session)):
    reader = await Reader.get_one(db_session, name=name)
    return {"id": reader.id, "name": reader.name, "full_name": reader.full_name}

@router.put("/{name}")
async def put_reader(
    name: str, full_name: str, db_session: AsyncSession = Depends(gen_db_session)
):
    reader, created = await Reader.update_or_create(
        db_session, name=name, defaults=dict(full_name=full_name)
    )
    return {"created": created}

@router.post("/{name}/broken")
async def break_reader(name: str, db_session: AsyncSession = Depends(gen_db_session)):
    reader, created = await Reader.get_or_create(db_session, name=name)
    raise HTTPException(418)
""",
    "main.py": """
from fastapi import FastAPI
from .views import router

app = FastAPI()
app.include_router(router)
""",
}


@pytest.fixture
def library(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an application package in a folder of its own."""
    name = f"library_{tmp_path.name}"
    monkeypatch.setenv("LIBRARY_URL", database_url.replace("+asyncpg", ""))
    monkeypatch.syspath_prepend(tmp_path)
    project = Project(tmp_path / name, metadata=f"{name}.models:Reader.metadata")
    project.add(
        "a1",
        None,
        """
        op.create_table(
            "readers",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.UnicodeText, unique=True),
            sa.Column("full_name", sa.UnicodeText),
        )
        """,
    )
    for file, content in FILES.items():
        (project.folder / file).write_text(content)
    return name


@pytest.fixture
async def database(library: str) -> AsyncIterator[ModuleType]:
    from rowsignal.orm.manager.config import syncdb

    config = importlib.import_module(f"{library}.config")
    await syncdb(config.get_settings().database, create="migrations")
    database = importlib.import_module(f"{library}.database")
    yield database
    await (await database.gen_db_manager()).dispose()


@pytest.fixture
async def client(library: str, database: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    app = importlib.import_module(f"{library}.main").app
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://library") as client:
        yield client


async def test_requests_write_commit_and_read_through_one_engine(client, database):
    first = await client.put("/readers/ann", params={"full_name": "Ann A."})
    second = await client.put("/readers/ann", params={"full_name": "Ann B."})
    assert (first.json(), second.json()) == ({"created": True}, {"created": False})
    answer = await client.get("/readers/ann")
    assert answer.json() == {"id": 1, "name": "ann", "full_name": "Ann B."}
    assert len(set(map(id, database.managers))) == 1, "one engine for all requests"


async def test_a_raising_handler_rolls_back_before_its_answer_leaves(client, database):
    answer = await client.post("/readers/ann/broken")
    assert answer.status_code == 418
    manager = database.managers[-1]
    assert manager.engine.pool.checkedout() == 0
    async with manager.Session() as session:
        models = importlib.import_module(database.__name__.replace("database", "models"))
        assert await models.Reader.get_by_pk(session, 1) is None


async def test_a_session_of_the_managers_serves_queries_of_ones_own(client, database):
    from sqlalchemy import select

    await client.put("/readers/ann", params={"full_name": "Ann A."})
    models = importlib.import_module(database.__name__.replace("database", "models"))
    db = await database.gen_db_manager()
    session = db.Session()
    result = await session.execute(select(models.Reader).filter_by(name="ann"))
    assert result.one()[0].full_name == "Ann A."
    assert (await models.Reader.get_by_pk(session, 1)).name == "ann"
    await session.close()
