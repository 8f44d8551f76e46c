"""What users import from a package or module stays there, wherever the code behind it lies."""

import ast
import importlib
from pathlib import Path

import pytest

import rowsignal

PACKAGE = Path(rowsignal.__file__).parent
INITS = sorted(PACKAGE.rglob("__init__.py"))

PUBLIC = {
    "rowsignal.alembic_plugin": ["setup"],
    "rowsignal.change_log": ["Batch", "ChangeLog"],
    "rowsignal.doctor": ["Finding", "Severity", "diagnose"],
    "rowsignal.embedded": ["EmbeddedPostgres", "find_bin_dir", "postgres_url"],
    "rowsignal.listener": ["Listener", "ListenerState", "Timings"],
    "rowsignal.metrics": ["PrometheusHooks"],
    "rowsignal.orm": ["AsyncDatabaseManager", "SessionProxy", "create_db_dependency", "db"],
    "rowsignal.pytest_plugin": ["create_db_session", "create_worker_database", "database_url"],
    "rowsignal.retention": ["PruneReport", "Retention", "get_retention", "prune", "set_retention"],
    "rowsignal.sse": [
        *("FrameParser", "Grant", "Limits", "Outlet", "TableGrant", "create_sse_router"),
    ],
    "rowsignal.streams": ["ChangeStream", "watch"],
    "rowsignal.triggers": [
        *("Capture", "TableAction", "TableName", "TableStatus", "TriggerOptions"),
        *(
            "TriggerSettings",
            "TriggerState",
            "captures",
            "install_on_create",
            "install_script",
            "install_triggers",
        ),
        *("trigger_status", "uninstall_triggers", "watched"),
    ],
    "rowsignal.waiting": [
        *("wait_for_any_row_change", "wait_for_row", "wait_for_row_change"),
        "wait_for_row_deleted",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_importable(module: str) -> None:
    face = importlib.import_module(module)
    assert [name for name in PUBLIC[module] if not hasattr(face, name)] == []


def reexported(file: Path) -> set[str]:
    """Return the public names that a file imports from this package."""
    found = set[str]()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rowsignal"):
            found.update(alias.asname or alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("file", INITS, ids=lambda file: file.parent.name)
def test_a_package_lists_every_name_that_it_exports(file: Path) -> None:
    names = file.parent.relative_to(PACKAGE.parent).parts
    exported = set(getattr(importlib.import_module(".".join(names)), "__all__", ()))
    assert reexported(file) <= exported
