"""The conftest.py of the guide for those who come from fastapi-toolsets."""

from pathlib import Path

import pytest

from rowsignal.embedded import EmbeddedPostgres
from support.doc_pages import ROOT, blocks

GUIDE = ROOT / "docs" / "migrating" / "from-fastapi-toolsets.md"
MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class Role(Base):
    __tablename__ = "roles"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("roles.id"))
"""
FIXTURES = """
from fastapi_toolsets.fixtures import FixtureRegistry
from shop.models import Role, User

fixtures = FixtureRegistry()


@fixtures.register
def roles():
    return [Role(id=1, name="admin")]


@fixtures.register(depends_on=["roles"])
def users():
    return [User(id=7, role_id=1)]
"""
TESTS = """
from sqlalchemy import select
from shop.models import Role, User


async def test_registered_rows_are_in_the_database_of_the_test(db_session, fixture_users):
    assert [user.id for user in fixture_users] == [7]
    assert [role.name for role in await db_session.scalars(select(Role))] == ["admin"]


async def test_each_test_has_its_own(db_session):
    assert (await db_session.scalars(select(User))).all() == []
"""


def test_the_conftest_of_the_guide_works(
    pytester: pytest.Pytester, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (conftest,) = [it.text for it in blocks(GUIDE) if it.text.startswith("# conftest.py\n")]
    pytester.mkpydir("shop")
    Path("shop/models.py").write_text(MODELS)
    Path("shop/fixtures.py").write_text(FIXTURES)
    pytester.makepyfile(conftest=conftest, test_shop=TESTS)
    pytester.makeini("[pytest]\nasyncio_mode = auto\npythonpath = .")
    monkeypatch.setenv("DATABASE_URL", server.url)
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=2)
