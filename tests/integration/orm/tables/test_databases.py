import asyncio

import asyncpg
import pytest
from sqlalchemy import make_url

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import DatabaseExistsError, DatabaseInUseError, NotFoundError
from rowsignal.orm.tables.databases import create_database, drop_database


@pytest.fixture
def server_url(server: EmbeddedPostgres) -> str:
    return server.url_of("postgres")


async def databases(server: EmbeddedPostgres) -> set[str]:
    connection = await asyncpg.connect(server.dsn)
    try:
        return {row[0] for row in await connection.fetch("select datname from pg_database")}
    finally:
        await connection.close()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    "name",
    ["lab-new", "LabMixed", 'quote"d', "with space", "a:b%c", "a%sb%%", r"a\:b", "select", "größe"],
)
async def test_any_legal_name_is_created_and_dropped_as_written(
    server: EmbeddedPostgres, server_url: str, name: str, driver: str
) -> None:
    server_url = server_url.replace("asyncpg", driver)
    await create_database(db_name=name, server_url=server_url)
    assert name in await databases(server)
    await drop_database(name, server_url=server_url)
    assert name not in await databases(server)


async def test_an_impossible_name_is_refused(server_url: str) -> None:
    with pytest.raises(ValueError, match="63 bytes"):
        await create_database("x" * 64, server_url=server_url)


async def test_an_existing_database_is_an_error_that_says_what_to_do(server_url: str) -> None:
    await create_database("twice", server_url=server_url)
    with pytest.raises(DatabaseExistsError, match="if_not_exists=True"):
        await create_database("twice", server_url=server_url)
    await create_database("twice", server_url=server_url, if_not_exists=True)
    await drop_database("twice", server_url=server_url)


async def test_of_many_creations_at_once_one_is_made_and_none_fails(
    server: EmbeddedPostgres, server_url: str
) -> None:
    creations = [
        create_database("at-once", server_url=server_url, if_not_exists=True) for _ in range(4)
    ]
    await asyncio.gather(*creations)
    assert "at-once" in await databases(server)
    await drop_database("at-once", server_url=server_url)


async def test_a_template_and_an_owner_are_followed(
    server: EmbeddedPostgres, server_url: str, database_url: str
) -> None:
    template = str(make_url(database_url).database)
    source = await asyncpg.connect(server.dsn_of(template))
    await source.execute("create table copied (id int)")
    await source.execute('create role "Own er"')
    with pytest.raises(DatabaseInUseError, match="cannot be copied"):
        await create_database("copy", server_url=server_url, template=template)
    await source.close()
    await create_database("copy", server_url=server_url, template=template, owner="Own er")
    copy = await asyncpg.connect(server.dsn_of("copy"))
    assert await copy.fetchval("select to_regclass('copied')::text") == "copied"
    owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'copy'"
    assert await copy.fetchval(owner) == "Own er"
    await copy.close()
    await drop_database("copy", server_url=server_url)
    admin = await asyncpg.connect(server.dsn)
    await admin.execute('drop role "Own er"')
    await admin.close()


async def test_a_missing_template_is_named(server_url: str) -> None:
    with pytest.raises(NotFoundError, match="'nowhere'"):
        await create_database("copy", server_url=server_url, template="nowhere")


async def test_a_database_in_use_is_dropped_only_by_force(
    server: EmbeddedPostgres, server_url: str
) -> None:
    await create_database("busy", server_url=server_url)
    connection = await asyncpg.connect(server.dsn_of("busy"))
    with pytest.raises(DatabaseInUseError, match="force=True"):
        await drop_database("busy", server_url=server_url)
    await drop_database("busy", server_url=server_url, force=True)
    assert "busy" not in await databases(server)
    await connection.close()


async def test_dropping_what_is_not_there(server_url: str) -> None:
    with pytest.raises(NotFoundError, match="'nowhere'"):
        await drop_database("nowhere", server_url=server_url)
    await drop_database("nowhere", server_url=server_url, if_exists=True)


async def test_the_database_one_is_connected_to_is_never_dropped(server_url: str) -> None:
    with pytest.raises(ValueError, match="cannot drop itself"):
        await drop_database("postgres", server_url=server_url, force=True)
