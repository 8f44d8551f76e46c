"""The health of a table's triggers, compared with their declaration."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

from rowsignal.payload import LOCK_CLASS
from rowsignal.triggers.catalog import CaptureKind, Member, TableFacts, Trigger
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
FUNCTIONS = ("capture_hint_v2", "capture_log_truncate_v2")
MADE = ("capture_log_insert_v2_", "capture_log_update_v2_", "capture_log_delete_v2_")


class TriggerState(StrEnum):
    """The state of the triggers of a table, the worst first."""

    MISSING = "missing"
    DISABLED = "disabled"
    OUTDATED = "outdated"
    DRIFTED = "drifted"
    ORPHANED = "orphaned"
    INSTALLED = "installed"


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The state of one table's triggers; `problem` is a sentence, or None.

    `kind` is "hint", "log" or None: the triggers that the table has now. `warning` is a sentence
    about the table itself, such as on row-level security.
    """

    schema: str | None
    table: str
    state: TriggerState
    kind: CaptureKind | None
    problem: str | None = None
    warning: str | None = None


def judge(
    facts: TableFacts,
    settings: TriggerSettings | None,
    *,
    is_orphan: bool,
    schema_problems: Sequence[str] = (),
) -> TableStatus:
    """Compare a table's triggers with its declaration, or with their own settings without one.

    `schema_problems` are changes of schema `rowsignal`, on which all triggers depend.
    """
    kinds = sorted({trigger.kind for trigger in facts.triggers})
    found = chain(
        _findings(facts, settings), ((TriggerState.DRIFTED, text) for text in schema_problems)
    )
    state, problem = next(found, (TriggerState.INSTALLED, None))
    if is_orphan:
        state, problem = TriggerState.ORPHANED, "No model asks for these triggers."
    kind = kinds[0] if kinds else None
    return TableStatus(facts.schema, facts.name, state, kind, problem, warning_of(facts))


def warning_of(facts: TableFacts) -> str | None:
    """Return a warning about the table itself, for its owner."""
    if not facts.has_row_security:
        return None
    return (
        "Row-level security is enabled: hints tell every role that listens the keys of all changed"
        " rows, and the change log holds all rows; a stream shows a role what its policies allow."
    )


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
    # The shape belongs to the table, not to its declaration.
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
        # PostgreSQL prints the condition with or without schema and quotes, by the search path.
        asked = f"WHEN ((NOT (pg_try_advisory_lock{pair} AND pg_advisory_unlock{pair})))"
        if asked not in trigger.definition.replace('"', "").replace("pg_catalog.", ""):
            yield f"The condition of trigger {trigger.name} was changed."
    if trigger.settings.get("shape", member.shape) != member.shape:
        yield "Columns were added, dropped, renamed or changed in type: logging takes a slower way."


def has_altered_function(trigger: Trigger) -> bool:
    """Tell whether a function that was generated for a table was altered."""
    if not trigger.function.startswith(MADE):
        return False
    # The name ends in the digest of the text that it was made with.
    has_its_text = trigger.digest.startswith(trigger.function.rpartition("_")[2])
    return not (has_its_text and trigger.is_definer and trigger.is_pinned)


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
