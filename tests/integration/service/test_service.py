"""The service: its endpoints, what it refuses, and that its logs keep secrets."""

import asyncio
import json
import os
import signal
import sys
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import ValidationError

from rowsignal.retention import Retention, get_retention
from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings, TokenKey
from rowsignal.sse import Limits
from support.event_streams import execute, make_tables, reading
from support.web_server import serving

SECRET = "a secret that is long enough to sign with, whichever digest is used for it"
OTHER = "another secret that is long enough to sign with, whichever digest is used"
GRANT = {"tables": {"public.orders": {"columns": ["id", "status"], "where": ["customer.eq.7"]}}}


def settings_of(database_url, tmp_path, **options):
    options.setdefault("log_level", "warning")
    return Settings(
        database_url=database_url,
        ticket_dir=tmp_path / "tickets",
        heartbeat=0.5,
        write_interval=0.005,
        **options,
    )


def token(key=SECRET, algorithm="HS256", headers=None, **claims):
    body = {"sub": "user-7", "aud": "rowsignal", "exp": time.time() + 60, "rowsignal": GRANT}
    body = {name: value for name, value in {**body, **claims}.items() if value is not None}
    return jwt.encode(body, key, algorithm, headers=headers)


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
async def open_site(engine, database_url, tmp_path):
    await make_tables(engine)
    async with serving(create_app(settings_of(database_url, tmp_path))) as site:
        yield site


@pytest.fixture
async def guarded_site(engine, database_url, tmp_path):
    await make_tables(engine)
    await execute(engine, "insert into orders values (1, 'open', 1, 7, ''), (2, 'open', 1, 8, '')")
    keys = (TokenKey(kid="old", key=SECRET), TokenKey(kid="new", key=OTHER))
    settings = settings_of(
        database_url, tmp_path, token_keys=keys, cors_origins=("https://app.example",)
    )
    async with serving(create_app(settings)) as site:
        yield site


async def test_health_metrics_and_status_tell_how_it_is(open_site, engine):
    get = open_site.client.get
    assert (await get("/health/live")).json() == {"status": "ok"}
    assert (await get("/health/ready")).json() == {"status": "ready"}
    async with reading(open_site.port, "/v1/changes/orders") as stream:
        await stream.until(lambda event: event.id != "")
        await execute(engine, "insert into orders values (1, 'open', 1, 7, '')")
        await stream.until("insert")
        status = (await get("/v1/status")).json()
        metrics = (await get("/metrics")).text
    assert status["ready"] is True
    assert status["listener"]["state"] == "listening"
    assert status["readers"]["now"] == 1
    assert status["latency"]["count"] == 1
    assert status["log"]["bytes"] > 0
    (orders,) = (table for table in status["tables"] if table["table"] == "orders")
    assert orders["capture"] == "log"
    assert orders["changes"]["insert"] == 1
    assert orders["columns"]["total"] == "numeric"
    assert 'rowsignal_deliveries_total{table="public.orders"} 1.0' in metrics
    assert "rowsignal_readers 1.0" in metrics


async def test_a_retention_that_is_set_here_is_stored_for_all(engine, database_url, tmp_path):
    await make_tables(engine)
    settings = settings_of(database_url, tmp_path, retention_age=7200.0)
    async with serving(create_app(settings)) as site, asyncio.timeout(30):
        while await get_retention(engine) != Retention(max_age=7200.0):
            await asyncio.sleep(0.02)
        log = (await site.client.get("/v1/status")).json()["log"]
        while log is None:  # its facts are looked up now and then
            await asyncio.sleep(0.1)
            log = (await site.client.get("/v1/status")).json()["log"]
    assert (log["retention_seconds"], log["retention_bytes"]) == (7200.0, 2**30)


async def test_a_table_that_lost_its_triggers_names_the_fix(open_site, engine):
    await execute(engine, "drop trigger if exists rowsignal_insert on items")
    names = "select tgname from pg_trigger where tgrelid = 'items'::regclass and not tgisinternal"
    async with engine.begin() as connection:
        for (name,) in (await connection.exec_driver_sql(names)).all():
            await connection.exec_driver_sql(f'drop trigger "{name}" on items')
    status = (await open_site.client.get("/v1/status")).json()
    (items,) = (table for table in status["tables"] if table["table"] == "items")
    assert items["trigger"] == "missing"
    assert items["fix"].startswith("rowsignal install public.items")
    assert items["mend"] == items["fix"]  # the name of 0.1


async def test_the_page_and_its_parts_are_served_with_a_strict_policy(open_site):
    page = await open_site.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    script = await open_site.client.get("/client.js")
    assert script.headers["content-type"].startswith("text/javascript")
    known = {"If-None-Match": script.headers["etag"]}
    assert (await open_site.client.get("/client.js", headers=known)).status_code == 304
    assert (await open_site.client.get("/dashboard/..%2fsettings.py")).status_code == 404


async def test_a_page_with_its_own_name_for_loopback_gets_nothing(open_site):
    answer = await open_site.client.get("/v1/status", headers={"Host": "evil.example"})
    assert answer.status_code == 421


async def test_a_token_decides_what_is_seen(guarded_site, engine):
    path = "/v1/changes/orders?snapshot=true"
    async with reading(guarded_site.port, path, headers=bearer(token())) as stream:
        await stream.until("snapshot-end")
        rows = [event.data["row"] for event in stream.events if event.name == "snapshot"]
        assert rows == [{"id": 1, "status": "open"}]
    other = await guarded_site.client.get("/v1/changes/items", headers=bearer(token()))
    assert other.status_code == 404


def no_good_tokens():
    """Make them when they are needed: those that differ in something else must not be old."""
    return [
        (None, "token is needed"),
        ("nonsense", "not a JSON Web Token"),
        (token(exp=time.time() - 60), "expired"),
        (token(exp=None), "exp"),
        (token(aud="somebody else"), "udience"),
        (token(aud=None), "aud"),
        (token(key="x" * 70), "key that is not known"),
        (token(key=None, algorithm="none"), "key that is not known"),
        (token(algorithm="HS512"), "key that is not known"),
        (token(headers={"kid": "unheard-of"}), "key that is not known"),
        (token(rowsignal={"tables": {"public.orders": {"colums": []}}}), "not valid"),
        (token(rowsignal={"everything": True}), "not valid"),
        ("x" * 9000, "too long"),
    ]


async def test_whatever_is_no_good_token_is_refused(guarded_site):
    for text, complaint in no_good_tokens():
        headers = {} if text is None else bearer(text)
        answer = await guarded_site.client.get("/v1/changes/orders", headers=headers)
        assert answer.status_code == 401, complaint
        assert answer.headers["www-authenticate"] == "Bearer"
        assert complaint in answer.json()["detail"]


async def test_keys_rotate_and_need_no_shared_secret(engine, database_url, tmp_path):
    await make_tables(engine)
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(public)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    keys = (
        TokenKey(kid="a", algorithm="ES256", file=tmp_path / "key.pem"),
        TokenKey(kid="b", key=SECRET),
    )
    async with serving(create_app(settings_of(database_url, tmp_path, token_keys=keys))) as site:
        for text in (token(pem, "ES256", headers={"kid": "a"}), token(), token(pem, "ES256")):
            async with reading(site.port, "/v1/changes/orders", headers=bearer(text)) as stream:
                assert stream.status == 200
        confused = jwt.api_jws.PyJWS(options={"enforce_minimum_key_length": False})
        forged = confused.encode(b"{}", b"x" * 32, "HS256", headers={"kid": "a"})
        answer = await site.client.get("/v1/changes/orders", headers=bearer(forged))
        assert answer.status_code == 401


async def test_a_ticket_admits_once(guarded_site):
    made = await guarded_site.client.post("/v1/tickets", headers=bearer(token()))
    assert made.status_code == 201
    path = f"/v1/changes/orders?ticket={made.json()['ticket']}"
    async with reading(guarded_site.port, path) as stream:
        assert stream.status == 200
        await stream.until("heartbeat")
    again = await guarded_site.client.get(path)
    assert (again.status_code, "has been used" in again.json()["detail"]) == (401, True)
    forged = await guarded_site.client.get(f"/v1/changes/orders?ticket={token()}")
    assert forged.status_code == 401
    assert (await guarded_site.client.post("/v1/tickets")).status_code == 401


async def test_a_cookie_counts_for_our_own_pages_only(guarded_site):
    cookie = {"Cookie": f"rowsignal_token={token()}"}
    for origin, status in [
        (None, 200),
        ("https://app.example", 200),
        ("https://evil.example", 401),
    ]:
        headers = cookie | ({} if origin is None else {"Origin": origin})
        async with reading(guarded_site.port, "/v1/changes/orders", headers=headers) as stream:
            assert stream.status == status
            shared = stream.headers.get("access-control-allow-origin")
            assert shared == (origin if origin == "https://app.example" else None)
            if shared:  # a page may read how long it is to wait
                assert "Retry-After" in stream.headers["access-control-expose-headers"]


async def test_status_needs_a_token_that_says_so(guarded_site):
    get = guarded_site.client.get
    assert (await get("/v1/status", headers=bearer(token()))).status_code == 403
    allowed = bearer(token(rowsignal={**GRANT, "status": True}))
    assert (await get("/v1/status", headers=allowed)).json()["auth"] is True


async def test_a_stream_ends_with_its_token(guarded_site):
    short = token(exp=time.time() + 1)
    async with reading(guarded_site.port, "/v1/changes/orders", headers=bearer(short)) as stream:
        assert (await stream.until("bye")).data["reason"] == "token expired"


async def test_limits_are_per_principal_and_in_all(engine, database_url, tmp_path):
    await make_tables(engine)
    settings = settings_of(
        database_url, tmp_path, max_streams=2, max_streams_per_principal=1, token_secret=SECRET
    )
    async with serving(create_app(settings)) as site:
        path, mine = "/v1/changes/orders", bearer(token())
        async with reading(site.port, path, headers=mine) as stream:
            await stream.until("heartbeat")
            refused = await site.client.get(path, headers=mine)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            async with reading(site.port, path, headers=bearer(token(sub="b"))) as second:
                await second.until("heartbeat")
                third = await site.client.get(path, headers=bearer(token(sub="c")))
                assert third.status_code == 503


async def test_no_log_line_holds_a_token_or_a_ticket(engine, database_url, tmp_path, capsys):
    await make_tables(engine)
    settings = settings_of(database_url, tmp_path, token_secret=SECRET, log_level="debug")
    text = token()
    async with serving(create_app(settings)) as site:
        ticket = (await site.client.post("/v1/tickets", headers=bearer(text))).json()["ticket"]
        async with reading(site.port, f"/v1/changes/orders?ticket={ticket}") as stream:
            await stream.until("heartbeat")
        assert (await site.client.get("/v1/changes/orders?ticket=again")).status_code == 401
    lines = [line for line in capsys.readouterr().err.splitlines() if '"rowsignal.http"' in line]
    paths = [json.loads(line)["path"] for line in lines]
    assert "/v1/changes/orders" in paths
    for line in lines:
        assert ticket not in line
        assert text not in line
        assert "again" not in line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"host": "0.0.0.0"}, "ROWSIGNAL_ALLOW_ANYBODY_TO_READ_EVERYTHING"),
        ({"token_secret": "short"}, "at least 32 bytes"),
        ({"cors_origins": "*"}, "no origin"),
        ({"cors_origins": "https://app.example/path"}, "no origin"),
        ({"token_keys": ({"algorithm": "none", "key": SECRET},)}, "algorithm"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(options, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Settings(database_url="postgresql://x", **options)


def test_settings_come_from_the_environment_and_hide_secrets(monkeypatch):
    monkeypatch.setenv("ROWSIGNAL_DATABASE_URL", "postgresql://me:hunter2@db/app")
    monkeypatch.setenv("ROWSIGNAL_TABLES", "public.orders, items")
    monkeypatch.setenv("ROWSIGNAL_TOKEN_KEYS", json.dumps([{"kid": "a", "key": SECRET}]))
    monkeypatch.setenv("ROWSIGNAL_HOST", "0.0.0.0")
    settings = Settings()
    assert settings.tables == {"public.orders": None, "items": None}
    assert "hunter2" not in repr(settings)
    assert SECRET not in repr(settings)
    monkeypatch.delenv("ROWSIGNAL_TOKEN_KEYS")
    settings.export()
    assert Settings().keys[0].text() == SECRET
    for name in settings.model_fields_set:
        monkeypatch.delenv(f"ROWSIGNAL_{name.upper()}", raising=False)


async def test_several_workers_share_tickets_and_stop_on_sigterm(engine, database_url, tmp_path):
    await make_tables(engine)
    environment = os.environ | {
        "ROWSIGNAL_DATABASE_URL": database_url,
        "ROWSIGNAL_TOKEN_SECRET": SECRET,
        "ROWSIGNAL_TICKET_DIR": str(tmp_path / "tickets"),
        "ROWSIGNAL_LOG_FORMAT": "json",
    }
    program = (
        "import socket; from rowsignal.service.server import serve;"
        "from rowsignal.service.settings import Settings;"
        "s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]; s.close();"
        "print(port, flush=True);"
        "serve(Settings(port=port, workers=2))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        port = int(await process.stdout.readline())
        ready = 0
        while ready < 2:
            ready += b'"event": "ready"' in await process.stderr.readline()
        async with reading(port, "/v1/changes/orders", headers=bearer(token())) as stream:
            await stream.until("heartbeat")
            answers = set()
            for _ in range(8):
                ticket = await ticket_of(port)
                async with reading(port, f"/v1/changes/orders?ticket={ticket}") as once:
                    answers.add(once.status)
            assert answers == {200}
            process.send_signal(signal.SIGTERM)
            assert (await stream.until("bye")).data["reason"] == "shutdown"
        async with asyncio.timeout(30):
            await process.communicate()  # to the end of both pipes, which closes them
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_a_worker_has_loaded_is_left_alone_by_the_garbage_collector(database_url):
    """A full collection would visit it each time, and stop all streams meanwhile."""
    program = (
        "import gc; from rowsignal.service.server import service_worker;"
        "service_worker(); print(gc.get_freeze_count())"
    )
    environment = os.environ | {"ROWSIGNAL_DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert int(output) > 50_000


async def ticket_of(port):
    import httpx

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.post("/v1/tickets", headers=bearer(token()))
        return answer.json()["ticket"]


def test_settings_of_the_first_version_are_taken_by_their_old_names(monkeypatch):
    monkeypatch.setenv("ROWSIGNAL_READERS", "7")
    monkeypatch.setenv("ROWSIGNAL_TICK", "0.5")
    monkeypatch.setenv("ROWSIGNAL_WRITE_INTERVAL", "0.25")
    settings = Settings(database_url="postgresql://x", buffer=2048)
    assert (settings.max_streams, settings.write_interval) == (7, 0.25)
    assert settings.max_buffer_bytes == settings.limits.buffer == 2048
    assert "ROWSIGNAL_READERS is now ROWSIGNAL_MAX_STREAMS" in settings.old_names()
    assert Limits(readers=3) == Limits(max_streams=3)
    with pytest.raises(TypeError, match="no limit 'raeders'"):
        Limits(raeders=3)
