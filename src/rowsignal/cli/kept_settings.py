"""Kept settings: an installation keeps a table's settings unless an option changes them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, MetaData

from rowsignal.triggers import TableAction, TriggerOptions, install_triggers
from rowsignal.triggers.catalog import TableFacts, read_facts
from rowsignal.triggers.settings import INFO, Target, targets_of

NAMES = {"filter": "filter_columns"}
EXCLUSIVE = {"columns": "exclude", "exclude": "columns"}


def install_keeping(
    connection: Connection, subjects: Any, given: TriggerOptions, *, lock_timeout: float
) -> list[TableAction]:
    """Install triggers; a table by name keeps its settings except the given ones.

    Models with declared settings get these. A given kind, such as `log`, replaces all settings.
    """
    if "log" in given:
        return install_triggers(connection, subjects, lock_timeout=lock_timeout, **given)
    targets = targets_of(subjects, **_harmless(given))
    declared = declared_names(subjects)
    plain = [target for target in targets if _label(target) not in declared]
    facts = read_facts(connection, [target.name for target in plain])
    kept = {_label(it): _kept(found, given) for it, found in zip(plain, facts, strict=True)}
    actions: list[TableAction] = []
    for one, settings in _parts(subjects, targets, kept, given):
        actions += install_triggers(connection, one, lock_timeout=lock_timeout, **settings)
    return actions


def declared_names(subjects: Any) -> set[str]:
    """Return the names of tables whose models declare settings."""
    found: set[str] = set()
    for one in subjects if isinstance(subjects, list | tuple) else [subjects]:
        metadata = one if isinstance(one, MetaData) else getattr(one, "metadata", None)
        if isinstance(metadata, MetaData):
            found.update(metadata.info.get(INFO, {}))
    return found


def _parts(
    subjects: Any,
    targets: Sequence[Target],
    kept: Mapping[str, dict[str, Any]],
    given: TriggerOptions,
) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    """Return the tables to install by settings, in one part if all are equal."""
    if not any(settings != given for settings in kept.values()):
        return [(subjects, given)]
    tables = _tables(subjects)
    return [
        (tables.get(_label(it), _label(it)), kept.get(_label(it), dict(given))) for it in targets
    ]


def _tables(subjects: Any) -> dict[str, Any]:
    """Return the tables of models and metadata by name, with their columns."""
    found: dict[str, Any] = {}
    for one in subjects if isinstance(subjects, list | tuple) else [subjects]:
        metadata = one if isinstance(one, MetaData) else getattr(one, "metadata", None)
        if isinstance(metadata, MetaData):
            found.update(metadata.tables)
    return found


def _kept(facts: TableFacts, given: TriggerOptions) -> dict[str, Any]:
    whole = [trigger for trigger in facts.triggers if trigger.is_whole]
    found = whole[0].settings if whole else {}
    settings = {NAMES.get(name, name): it for name, it in found.items() if name != "shape"}
    for name in given:
        settings.pop(EXCLUSIVE.get(name, name), None)
    return {**settings, **given}


def _harmless(given: TriggerOptions) -> Mapping[str, Any]:
    """Return the given settings that can be checked before the kind of a table is known."""
    return {name: it for name, it in given.items() if name in {"columns", "exclude"}}


def _label(target: Target) -> str:
    schema, name = target.name
    return f"{schema}.{name}" if schema else name
