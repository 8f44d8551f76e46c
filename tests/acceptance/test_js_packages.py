"""The JavaScript packages: their own tests, their types, and what the service serves of them."""

import json
import re
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

import rowsignal.sse.client
from acceptance.npm_tools import LOCK, PACKAGES, found_node, run

pytest_plugins = ["acceptance.npm_workspace"]
pytestmark = pytest.mark.timeout(300)  # the first one installs and builds

SERVED = Path(rowsignal.sse.client.__file__).parent
NAMES = ("client", "react", "tanstack-db")
HOST = re.compile(r"https?://[^/\"]*")
ALLOWED_HOSTS = ("github.com", "opencollective.com", "tidelift.com")  # of funding notes


def test_their_own_tests_pass(npm_workspace: Path) -> None:
    assert re.search(r"Tests +\d+ passed", run("npx", "vitest", "run"))


def test_their_types_hold_with_tests_and_examples(npm_workspace: Path) -> None:
    run("npm", "run", "--silent", "check")


def test_the_served_script_is_made_of_the_source_that_is_here(
    npm_workspace: Path, tmp_path: Path
) -> None:
    run("node", "scripts/served.js", tmp_path)
    for name in ("client.js", "client.d.ts"):
        made, committed = (tmp_path / name).read_text(), (SERVED / name).read_text()
        assert made == committed, f"{name} is not of this source: npm run served"


def test_the_served_script_stays_small() -> None:
    for name in ("client.js", "client.d.ts"):
        assert len((SERVED / name).read_text().splitlines()) < 400


def test_sources_are_short_enough_to_read() -> None:
    files = [*PACKAGES.glob("*/src/*.ts"), *PACKAGES.glob("*/test/*")]
    assert files
    assert [path for path in files if len(path.read_text().splitlines()) >= 400] == []


def test_the_served_types_compile_for_an_interface(npm_workspace: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample.ts"
    sample.write_text(SAMPLE)
    (tmp_path / "client.d.ts").write_text((SERVED / "client.d.ts").read_text())
    options = ["--noEmit", "--strict", "--lib", "es2022,dom", "--types", "", "--module", "esnext"]
    run("npx", "tsc", *options, "--moduleResolution", "bundler", "--target", "es2022", sample)


SAMPLE = """
import { subscribe, keyOf, type Change } from "./client.js";
interface Order { id: number; status: "new" | "paid"; total: string }
const orders = subscribe<Order>({
  tables: "public.orders",
  where: { status: { eq: "paid" }, total: { gt: 9 } },
  onChange({ row, old, key }: Change<Order>) {
    const status: "new" | "paid" | undefined = row?.status ?? old?.status;
    if (key) console.log(keyOf(key), status);
  },
});
const one: Order | undefined = orders.rows.get("[1]");
// @ts-expect-error -- no such status
subscribe<Order>({ tables: "public.orders", where: { status: { eq: "payed" } } });
// @ts-expect-error -- the map is not for writing
orders.rows.set("[1]", one);
subscribe({ tables: "public.orders", where: ["status.eq.paid"] }).rows.get("[1]")?.["status"];
"""


def test_the_lock_names_no_registry() -> None:
    text = LOCK.read_text()
    assert '"resolved": "http' not in text
    hosts = {address.partition("//")[2] for address in HOST.findall(text)}
    assert hosts <= set(ALLOWED_HOSTS)


def test_a_run_that_requires_node_fails_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ROWSIGNAL_REQUIRE", "node")
    with pytest.raises(pytest.fail.Exception, match="needs node and npm"):
        found_node()
    monkeypatch.delenv("ROWSIGNAL_REQUIRE")
    with pytest.raises(pytest.skip.Exception, match="needs node and npm"):
        found_node()


@pytest.mark.parametrize("name", NAMES)
def test_a_package_has_the_version_of_the_project_and_needs_nothing_at_run_time(name: str) -> None:
    package = json.loads((PACKAGES / name / "package.json").read_text())
    assert package["name"] == f"@rowsignal/{name}"
    assert package["version"] == version("rowsignal")
    assert "dependencies" not in package


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_package_holds_code_types_and_licence(
    npm_workspace: Path, tmp_path: Path, name: str
) -> None:
    run("npm", "pack", "--silent", "--pack-destination", tmp_path, cwd=PACKAGES / name)
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert {"package/dist/index.js", "package/dist/index.d.ts", "package/LICENSE"} <= set(names)
    assert [it for it in names if "test" in it or "served" in it or it.endswith(".tsx")] == []
