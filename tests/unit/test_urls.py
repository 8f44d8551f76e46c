"""URLs for async drivers: what stays, what is translated, what is refused."""

import logging

import asyncpg.connect_utils
import pytest
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import URL, make_url

from rowsignal.orm.urls import async_url


def connect_arguments(url: URL) -> dict[str, object]:
    return PGDialect_asyncpg().create_connect_args(url)[1]


def parsed_by_asyncpg(url: URL) -> tuple[object, object]:
    """Return addresses and parameters as asyncpg itself understands them."""
    names = [
        "dsn",
        "host",
        "port",
        "user",
        "password",
        "passfile",
        "database",
        "ssl",
        "service",
        "servicefile",
        "direct_tls",
        "server_settings",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
    ]
    given = connect_arguments(url)
    assert given.keys() <= set(names)
    return asyncpg.connect_utils._parse_connect_dsn_and_args(
        **{name: given.get(name) for name in names}
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://h/d", "postgresql+asyncpg"),
        ("postgres://h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg2://h/d", "postgresql+asyncpg"),
        ("postgresql+pg8000://h/d", "postgresql+asyncpg"),
        ("sqlite:///file.db", "sqlite+aiosqlite"),
        ("mysql+pymysql://h/d", "mysql+aiomysql"),
        ("mariadb://h/d", "mariadb+aiomysql"),
        ("oracle://h/d", "oracle+oracledb"),
    ],
)
def test_sync_urls_get_their_async_driver(given: str, expected: str):
    assert async_url(given).drivername == expected


@pytest.mark.parametrize(
    "drivername",
    ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy", "postgresql+something"],
)
def test_a_driver_that_is_already_named_stays(drivername: str):
    assert async_url(f"{drivername}://h/d").drivername == drivername


def test_an_unknown_dialect_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'db2'.*db2\+driver"):
        async_url("db2://h/d")


def test_the_password_is_kept_and_masked_only_when_shown():
    url = async_url("postgresql://ann:p%40ss%25word@h/d")
    assert url.password == "p@ss%word"
    assert "p@ss" not in repr(url)
    assert "***" not in url.render_as_string(hide_password=False)
    assert connect_arguments(url)["password"] == "p@ss%word"


def test_a_password_in_the_query_moves_to_where_it_is_masked():
    url = async_url("postgresql://h/d?user=ann&password=secret&dbname=shop")
    assert (url.username, url.password, url.database) == ("ann", "secret", "shop")
    assert "secret" not in repr(url)


def test_sslmode_alone_becomes_ssl():
    url = async_url("postgresql+asyncpg://h/d?sslmode=require")
    assert dict(url.query) == {"ssl": "require"}
    parsed_by_asyncpg(url)


def test_certificates_and_settings_reach_asyncpg(tmp_path):
    certificate = tmp_path / "root ca.crt"
    certificate.write_text("not a certificate")
    url = make_url("postgresql://ann@h:6000/d").update_query_dict(
        {"sslmode": "verify-full", "sslrootcert": str(certificate)}
    )
    with pytest.raises(OSError, match=r"(?i)certificate|ssl|pem"):
        parsed_by_asyncpg(async_url(url))


def test_application_name_and_options_become_server_settings():
    url = async_url("postgresql://ann@h:6000/d?application_name=shop&options=-csearch_path%3Da")
    addresses, parameters = parsed_by_asyncpg(url)
    assert addresses == [("h", 6000)]
    assert parameters.server_settings == {"application_name": "shop", "options": "-csearch_path=a"}
    assert (parameters.user, parameters.database) == ("ann", "d")


def test_several_hosts_stay_several_hosts():
    url = async_url(
        "postgresql://ann@/d?host=a:1&host=b:2&target_session_attrs=primary&sslmode=disable"
    )
    addresses, parameters = parsed_by_asyncpg(url)
    assert addresses == [("a", 1), ("b", 2)]
    assert parameters.target_session_attrs.value == "primary"


def test_what_only_libpq_knows_is_left_out_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        url = async_url("postgresql://h/d?keepalives=1&connect_timeout=5&channel_binding=prefer")
    assert not url.query
    assert {record.args for record in caplog.records} == {
        ("keepalives",),
        ("connect_timeout",),
        ("channel_binding",),
    }


@pytest.mark.parametrize("demand", ["channel_binding=require", "gssencmode=require"])
def test_a_demand_that_would_be_ignored_is_refused(demand: str):
    with pytest.raises(ValueError, match=demand):
        async_url(f"postgresql://h/d?{demand}")


def test_parameters_of_other_drivers_stay_as_they_are():
    url = async_url("postgresql+psycopg://h/d?sslmode=require&connect_timeout=5")
    assert dict(url.query) == {"sslmode": "require", "connect_timeout": "5"}


def test_the_callers_url_is_not_changed():
    given = make_url("postgresql://ann:secret@h/d?sslmode=require")
    async_url(given)
    assert dict(given.query) == {"sslmode": "require"}
