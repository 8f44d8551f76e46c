"""docker-compose.yml and Dockerfile: checked by their validators, their commands run by hand."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from support.doc_pages import ROOT
from support.tokens import SECRET, bearer

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PASSWORD = 'it\'s a "secret"'
OWNER_COMMAND = re.compile(r"^#   docker compose run --rm owner (rowsignal .+)$", re.MULTILINE)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def succeed(*command: object, **options: Any) -> str:
    """Run a command that has to succeed; return its output."""
    parts = [str(part) for part in command]
    outcome = subprocess.run(parts, capture_output=True, text=True, check=False, **options)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def content(compose: dict[str, Any], name: str) -> str:
    """Return a config file as Compose writes it."""
    return compose["configs"][name]["content"].replace("$$", "$")


def test_the_compose_file_fits_the_specification():
    succeed(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_the_dockerfile_fits_its_linter():
    assert succeed(BIN / "hadolint", ROOT / "Dockerfile") == ""


def test_what_the_dockerfile_copies_is_there():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"pyproject.toml", "setup.py", "README.md", "src", "sql"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_files_that_are_mounted_are_there(compose: dict[str, Any]):
    mounts = [it for service in compose["services"].values() for it in service.get("volumes", [])]
    sources = [it.partition(":")[0] for it in mounts if it.startswith(".")]
    assert sources
    assert [source for source in sources if not (ROOT / source).is_file()] == []


def test_every_service_is_confined(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "mem_limit" in service, name
        ports = service.get("ports", [])
        assert [port for port in ports if not port.startswith("127.0.0.1:")] == [], name


def test_images_are_named_with_their_version(compose: dict[str, Any]):
    images = [it["image"] for it in compose["services"].values() if "image" in it]
    assert [image for image in images if not re.search(r":v?\d+\.\d+", image)] == []


@pytest.mark.skipif(
    shutil.which("promtool") is None and "promtool" not in os.environ.get("ROWSIGNAL_REQUIRE", ""),
    reason="promtool is not installed",
)
def test_prometheus_takes_its_configuration(compose: dict[str, Any], tmp_path: Path):
    (tmp_path / "prometheus.yml").write_text(content(compose, "prometheus"))
    shutil.copy(ROOT / "docs" / "monitoring" / "alerts.yml", tmp_path)
    succeed("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_grafana_finds_its_source_and_its_dashboard(compose: dict[str, Any]):
    source = yaml.safe_load(content(compose, "datasource"))["datasources"][0]
    provider = yaml.safe_load(content(compose, "dashboards"))["providers"][0]
    target = provider["options"]["path"]
    mounted = [it.split(":")[1] for it in compose["services"]["grafana"]["volumes"]]
    dashboard = json.loads((ROOT / "docs" / "monitoring" / "grafana-dashboard.json").read_text())
    assert source["type"] == "prometheus"
    assert any(path.startswith(f"{target}/") for path in mounted)
    assert all(panel["datasource"]["type"] == source["type"] for panel in dashboard["panels"])


class Stack:
    """What the compose file starts, on this machine: a server, and commands on it."""

    def __init__(self, server: EmbeddedPostgres, compose: dict[str, Any]) -> None:
        self.compose = compose
        self.address = f"127.0.0.1:{server.port}"
        self.psql = server.bin_dir / "psql"

    def url(self, role: str) -> str:
        return f"postgresql://{role}@{self.address}/shop"

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's variables, with the addresses of this machine."""
        role = {"owner": "owner", "service": "service"}[name]
        given = self.compose["services"][name]["environment"]
        values = {**dict.fromkeys(given, ""), "ROWSIGNAL_DATABASE_URL": self.url(role)}
        if "ROWSIGNAL_TOKEN_SECRET" in values:
            values["ROWSIGNAL_TOKEN_SECRET"] = SECRET
        return {**os.environ, **values}

    def create_role(self) -> None:
        """Run the script that the image of PostgreSQL runs at its first start."""
        host, port = self.address.split(":")
        place = {"PGHOST": host, "PGPORT": port, "SERVICE_PASSWORD": PASSWORD}
        names = {"POSTGRES_USER": "owner", "POSTGRES_DB": "shop"}
        path = f"{self.psql.parent}:{os.environ['PATH']}"
        script = content(self.compose, "service_role")
        succeed("sh", "-e", "-c", script, env={**os.environ, **place, **names, "PATH": path})

    def run_owner_commands(self) -> list[str]:
        """Run the commands that the file's first comment names; return what they print."""
        said = OWNER_COMMAND.findall(COMPOSE.read_text())
        assert len(said) == 2
        commands = [shlex.split(line)[1:] for line in said]
        environment = self.environment("owner")
        return [succeed(BIN / "rowsignal", *words, env=environment) for words in commands]

    @asynccontextmanager
    async def service(self) -> AsyncIterator[str]:
        """Run the image's command with the service's variables; yield its address."""
        command = json.loads(DOCKERFILE.rsplit("CMD ", 1)[1])
        port = free_port()
        variables = {"ROWSIGNAL_HOST": "127.0.0.1", "ROWSIGNAL_PORT": str(port)}
        process = await asyncio.create_subprocess_exec(
            BIN / command[0],
            *command[1:],
            env={**self.environment("service"), **variables},
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        lines: list[bytes] = []
        try:
            async with asyncio.timeout(60):
                while b"application startup complete" not in b"".join(lines).lower():
                    lines.append(await process.stderr.readline())
                    assert lines[-1], b"".join(lines).decode()
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.communicate()


@pytest.fixture(scope="module")
def stack(compose: dict[str, Any]) -> Iterator[Stack]:
    with EmbeddedPostgres(port=0) as server:
        found = Stack(server, compose)
        for statement in ("create role owner superuser login", "create database shop owner owner"):
            succeed(found.psql, server.dsn, "-c", statement)
        found.create_role()
        orders = "create table orders (id int primary key, status text)"
        succeed(found.psql, found.url("owner"), "-c", orders)
        printed = found.run_owner_commands()
        assert "orders" in printed[0]
        yield found


async def test_the_role_of_the_service_reads_and_no_more(stack: Stack):
    connection = await asyncpg.connect(stack.url("service"))
    try:
        (role,) = await connection.fetch("select * from pg_roles where rolname = current_user")
        assert await connection.fetch("select * from orders") == []
        for statement in ("insert into orders values (1, 'new')", "create table public.x ()"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
    assert [role[it] for it in ("rolsuper", "rolcreatedb", "rolcreaterole")] == [False] * 3


async def test_the_password_of_the_role_is_the_one_that_was_set(stack: Stack):
    connection = await asyncpg.connect(stack.url("owner"))
    try:
        has_password = await connection.fetchval(
            "select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolname = 'service'"
        )
    finally:
        await connection.close()
    assert has_password


async def test_the_service_streams_and_is_scraped(stack: Stack):
    async with stack.service() as address:
        request = urllib.request.Request(
            f"http://{address}/v1/changes/public.orders?snapshot=true",
            headers=bearer({"public.orders": {}}),
        )
        lines = await asyncio.to_thread(first_lines, request, "event: insert", stack)
        scraped = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://{address}/metrics", timeout=30).read().decode()
        )
        health = health_check(address)
        succeed(*health)
    assert any('"status":"new"' in line for line in lines)
    names = {family.name for family in text_string_to_metric_families(scraped)}
    assert {"rowsignal_ready", "rowsignal_readers"} <= names


def first_lines(request: urllib.request.Request, wanted: str, stack: Stack) -> list[str]:
    """Read a stream up to the data of the event that is wanted, which a write brings about."""
    seen: list[str] = []
    with urllib.request.urlopen(request, timeout=30) as answer:
        while not seen or "data:" not in seen[-1] or wanted not in seen:
            seen.append(answer.readline().decode().strip())
            if seen[-1] == "event: snapshot-end":
                statement = "insert into orders values (7, 'new')"
                succeed(stack.psql, stack.url("owner"), "-c", statement)
    return seen


def health_check(address: str) -> list[str]:
    """Return the image's health check, for a service at this address."""
    (found,) = re.findall(r"^HEALTHCHECK .+ CMD \\\n +(\[.+\])$", DOCKERFILE, re.MULTILINE)
    program, *rest = json.loads(found)
    assert program == "python"
    return [sys.executable, *(part.replace("127.0.0.1:8080", address) for part in rest)]
