"""Whether the triggers of a table are what they should be."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import md5
from typing import Any

from rowsignal.payload import LOCK_CLASS
from rowsignal.postgres.statements import function_body
from rowsignal.triggers.catalog import Member, TableFacts, Trigger
from rowsignal.triggers.settings import TriggerSettings

ROW, INSERT, DELETE, UPDATE, TRUNCATE = 1, 4, 8, 16, 32  # bits of pg_trigger.tgtype
HINT_TRIGGERS = {
    "rowsignal_hint": ROW | INSERT | DELETE | UPDATE,
    "rowsignal_hint_truncate": TRUNCATE,
}
LOG_TRIGGERS = {
    "rowsignal_log_insert": INSERT,
    "rowsignal_log_update": UPDATE,
    "rowsignal_log_delete": DELETE,
    "rowsignal_log_truncate": TRUNCATE,
}
FUNCTIONS = ("capture_hint_v1", "capture_log_truncate_v1")
MADE = ("capture_log_insert_v1_", "capture_log_update_v1_", "capture_log_delete_v1_")


class TriggerState(StrEnum):
    """What is to be said about the triggers of a table, the worst first."""

    MISSING = "missing"
    DISABLED = "disabled"
    OUTDATED = "outdated"
    DRIFTED = "drifted"
    ORPHANED = "orphaned"
    INSTALLED = "installed"


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The state of one table's triggers; `problem` is a sentence, None when there is none.

    `kind` is "hint", "log" or None: what the table carries now.
    """

    schema: str | None
    table: str
    state: TriggerState
    kind: str | None
    problem: str | None = None


def judge(facts: TableFacts, settings: TriggerSettings | None, *, is_orphan: bool) -> TableStatus:
    """Compare what is there with what was declared, or with itself when nothing was."""
    kinds = sorted({trigger.kind for trigger in facts.triggers})
    state, problem = next(_findings(facts, settings), (TriggerState.INSTALLED, None))
    if is_orphan:
        state, problem = TriggerState.ORPHANED, "No model asks for these triggers."
    return TableStatus(facts.schema, facts.name, state, kinds[0] if kinds else None, problem)


def _findings(
    facts: TableFacts, settings: TriggerSettings | None
) -> Iterator[tuple[TriggerState, str]]:
    if facts.oid is None:
        yield TriggerState.MISSING, "There is no such table."
    elif not facts.triggers:
        yield TriggerState.MISSING, "The table has no triggers of rowsignal."
    else:
        yield from ((TriggerState.DISABLED, text) for text in _disabled(facts))
        yield from ((TriggerState.OUTDATED, text) for text in _outdated(facts, settings))
        yield from ((TriggerState.DRIFTED, text) for text in _drifted(facts))


def _disabled(facts: TableFacts) -> Iterator[str]:
    for trigger in facts.triggers:
        if not trigger.is_enabled:
            yield f"Trigger {trigger.name} is disabled."


def _outdated(facts: TableFacts, settings: TriggerSettings | None) -> Iterator[str]:
    for trigger in facts.triggers:
        if not (trigger.function in FUNCTIONS or trigger.function.startswith(MADE)):
            yield f"Trigger {trigger.name} calls {trigger.function}, of another version."
        elif not trigger.is_whole:
            yield f"Trigger {trigger.name} lacks arguments that it was made with."
        elif settings is not None and _declared(trigger) != json.loads(settings.to_json()):
            yield f"The table was installed with other settings: {trigger.arguments[2]}."


def _declared(trigger: Trigger) -> dict[str, Any]:
    return {key: value for key, value in trigger.settings.items() if key != "shape"}


def _drifted(facts: TableFacts) -> Iterator[str]:
    for member in facts.members:
        for trigger in member.triggers:
            yield from _altered(trigger, member)
        yield from _incomplete(member)
    for trigger in facts.members[0].triggers:
        if trigger.key_columns != facts.key_columns:
            now, then = ", ".join(facts.key_columns), ", ".join(trigger.key_columns)
            yield f"The primary key is now ({now}), the triggers were made for ({then})."


def _altered(trigger: Trigger, member: Member) -> Iterator[str]:
    if has_altered_function(trigger):
        yield f"Function rowsignal.{trigger.function} was changed by hand."
    if trigger.type != {**HINT_TRIGGERS, **LOG_TRIGGERS}.get(trigger.name):
        yield f"Trigger {trigger.name} fires for other events than it was made for."
    if trigger.kind == "hint" and not trigger.settings.get("always"):
        pair = f"({LOCK_CLASS}, {trigger.channel[1]})"
        asked = f"WHEN ((NOT (pg_try_advisory_lock{pair} AND pg_advisory_unlock{pair})))"
        if asked not in trigger.definition.replace("pg_catalog.", ""):
            yield f"The condition of trigger {trigger.name} was changed."
    if trigger.settings.get("shape", member.shape) != member.shape:
        yield "Columns were added, dropped, renamed or changed in type: logging takes a slower way."


def has_altered_function(trigger: Trigger) -> bool:
    """Tell whether the text of a function of this version is no longer ours."""
    if trigger.function.startswith(MADE):
        return not trigger.digest.startswith(trigger.function.rpartition("_")[2])
    return trigger.function in FUNCTIONS and trigger.digest != _digest(trigger.function)


def _incomplete(member: Member) -> Iterator[str]:
    kinds = {trigger.kind for trigger in member.triggers} or {"hint"}
    wanted = LOG_TRIGGERS if "log" in kinds else HINT_TRIGGERS
    names = {trigger.name for trigger in member.triggers}
    if len(kinds) > 1:
        yield "The table has triggers for hints and for the log."
    for name in wanted:
        if name not in names:
            where = "A partition made after installing" if member.is_partition else "The table"
            yield f"{where} has no trigger {name}."


def _digest(function: str) -> str:
    return md5(function_body(function).encode(), usedforsecurity=False).hexdigest()
