"""Triggers on the tables to watch: install, uninstall, status."""

from rowsignal.triggers.access import MissingRight, grant, missing_rights, revoke
from rowsignal.triggers.catalog import Capture, captures
from rowsignal.triggers.health import TableStatus, TriggerState
from rowsignal.triggers.installation import (
    TableAction,
    install_on_create,
    install_script,
    install_triggers,
    trigger_status,
    uninstall_triggers,
)
from rowsignal.triggers.settings import TableName, TriggerOptions, TriggerSettings, watched

__all__ = [
    "Capture",
    "MissingRight",
    "TableAction",
    "TableName",
    "TableStatus",
    "TriggerOptions",
    "TriggerSettings",
    "TriggerState",
    "captures",
    "grant",
    "install_on_create",
    "install_script",
    "install_triggers",
    "missing_rights",
    "revoke",
    "trigger_status",
    "uninstall_triggers",
    "watched",
]
