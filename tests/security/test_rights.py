"""Which role may do what to each object of schema `rowsignal`, and the ways round it."""

import asyncpg
import pytest

from rowsignal import grant, revoke
from rowsignal.change_log import ChangeLog
from rowsignal.doctor import Finding, Severity, diagnose
from rowsignal.exceptions import GrantError, MissingRightError
from rowsignal.postgres import schema
from rowsignal.triggers import trigger_status
from support.roles import Ground

REFUSED = (asyncpg.InsufficientPrivilegeError, asyncpg.ObjectNotInPrerequisiteStateError)

# The decision about each object: the least role that may use it. Objects that are not named here
# are for the owner alone; "triggers" stands for the functions that are generated for tables.
EVERY_ROLE = {
    "key_v1",
    "is_plain_v1",
    "value_v1",
    "key_value_v1",
    "named_key_v2",
    "changed_columns_v2",
    "is_awaited_v2",
    "is_wanted_v2",
    "queue_share_v1",
    "hint_payload_v1",
    "row_hints_v1",
    "capture_hint_v2",
}
WATCH = {"log_origin_v1", "start_incarnation_v2", "store_position_v2"}
SERVE = {"prune_v2", "prune_v3"}
LAG = {
    "consumer_lag_v1",
    "consumer_relations_v1",
    "position_problem_v1",
    "snapshot_includes_v1",
}
WORK = {
    "create_consumer_v1",
    "is_leased_v1",
    "lease_consumers_v1",
    "reset_consumer_v1",
    "skip_failing_v1",
    "worker_shares_v1",
}
OWNER = {
    "alike_v1",
    "capture_log_truncate_v2",
    "check_table_v2",
    "close_function_v1",
    "close_table_v1",
    "close_v1",
    "column_expressions_v2",
    "count_changes_v1",
    "default_grantees_v1",
    "define_log_function_v1",
    "differ_v1",
    "drop_triggers_v2",
    "family_v2",
    "grant_v1",
    "grantee_name_v1",
    "guarded_v1",
    "hint_triggers_v2",
    "install_v1",
    "install_v2",
    "key_columns_v2",
    "literals_v2",
    "log_function_text_v1",
    "log_one_row_v1",
    "log_parts_v1",
    "log_row_v2",
    "log_rows_v1",
    "log_statement_v1",
    "log_triggers_v2",
    "make_differ_v1",
    "log_value_v2",
    "make_log_function_v2",
    "open_functions_v1",
    "overtake_consumers_v1",
    "prune_v1",
    "reader_rights_v1",
    "revoke_v1",
    "shape_v2",
    "sweep_v2",
    "token_v2",
    "trigger_arguments_v2",
    "uninstall_v1",
    "uninstall_v2",
    "wake_v2",
    "wanted_triggers_v2",
    "triggers",
}
TABLES: dict[str, set[str]] = {
    "migration": {"stranger", "watch", "serve", "work"},
    "change": {"watch", "serve", "work"},
    "incarnation": {"watch", "serve", "work"},
    "horizon": {"watch", "serve", "work"},
    "stored_position": {"watch", "serve", "work"},
    "retention": {"watch", "serve", "work"},
    "tick": {"serve", "work"},
    "consumer": {"serve", "work"},
    "consumer_partition": {"serve", "work"},
    "worker": {"serve", "work"},
    "dead_letter": {"serve", "work"},
    "dead_letter_id_seq": set(),
    "change_id_seq": set(),
}
KEPT = ("consumer", "consumer_partition", "worker", "dead_letter")  # by those who work
ROLES = ("stranger", "wait", "watch", "serve", "work")

FUNCTIONS_OF = {
    "stranger": EVERY_ROLE,
    "wait": EVERY_ROLE,
    "watch": EVERY_ROLE | WATCH,
    "serve": EVERY_ROLE | WATCH | SERVE | LAG,
    "work": EVERY_ROLE | WATCH | LAG | WORK,
}


async def logged(ground: Ground) -> None:
    await ground.attacker.execute(
        "create table mallory.t (id int primary key, v text);"
        "create table mallory.h (id int primary key, v text)"
    )
    await ground.install("mallory.t", log=True, row_values=True)
    await ground.install("mallory.h")


async def roles(ground: Ground) -> dict[str, str]:
    made = {name: await ground.role(f"{name}_role") for name in ROLES}
    for name in ROLES[1:]:
        await grant(ground.installer, made[name], **{name: True})
    return made


async def test_each_function_is_for_the_roles_that_were_decided_on(ground: Ground) -> None:
    await logged(ground)
    made = await roles(ground)
    for name, role in made.items():
        rows = await ground.sql.fetch(
            "select regexp_replace(p.proname, '^capture_log_.*_[0-9a-f]{32}$', 'triggers') as name,"
            " bool_or(has_function_privilege($1, p.oid, 'EXECUTE')) as may_call from pg_proc as p"
            " where p.pronamespace = 'rowsignal'::regnamespace group by 1",
            role,
        )
        decided = EVERY_ROLE | WATCH | SERVE | LAG | WORK | OWNER
        assert {row["name"] for row in rows} == decided, "a function without a decision"
        assert {row["name"] for row in rows if row["may_call"]} == FUNCTIONS_OF[name]


async def test_each_table_is_for_the_roles_that_were_decided_on(ground: Ground) -> None:
    await logged(ground)
    made = await roles(ground)
    actions = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
    for name, role in made.items():
        rows = await ground.sql.fetch(
            "select c.relname, a.action from pg_class as c, unnest($2::text[]) as a(action)"
            " where c.relnamespace = 'rowsignal'::regnamespace and c.relkind not in ('i', 'S')"
            " and has_table_privilege($1, c.oid, a.action)"
            " union all select c.relname, a.action from pg_class as c,"
            " unnest('{USAGE,SELECT,UPDATE}'::text[]) as a(action)"
            " where c.relnamespace = 'rowsignal'::regnamespace and c.relkind = 'S'"
            " and has_sequence_privilege($1, c.oid, a.action)",
            role,
            actions,
        )
        kin = {"wait": "stranger"}.get(name, name)
        expected = {(table, "SELECT") for table, readers in TABLES.items() if kin in readers}
        if name == "work":
            expected |= {(table, action) for table in KEPT for action in actions[1:4]}
        assert {(row["relname"], row["action"]) for row in rows} == expected
    found = await ground.sql.fetch(
        "select relname from pg_class where relnamespace = 'rowsignal'::regnamespace"
        " and relkind not in ('i', 't')"
    )
    assert {row["relname"] for row in found} == set(TABLES), "a table without a decision"


async def test_no_role_can_use_the_row_types_or_create_objects(ground: Ground) -> None:
    await logged(ground)
    for name in TABLES:
        if not name.endswith("_seq"):
            with pytest.raises(REFUSED):
                await ground.attacker.execute(f"create table mallory.x_{name} (r rowsignal.{name})")
    with pytest.raises(REFUSED):
        await ground.attacker.execute("create table rowsignal.x ()")
    with pytest.raises(REFUSED):
        await ground.attacker.execute("alter table mallory.t set schema rowsignal")


ATTACKS = (
    "insert into rowsignal.change (relation, operation) values (1, 'i')",
    "copy rowsignal.change to stdout",
    "copy rowsignal.change (relation, operation) from stdin",
    "copy (table rowsignal.change) to stdout",
    "select * from rowsignal.change",
    "select id from rowsignal.change",
    "select count(*) from rowsignal.change",
    "update rowsignal.retention set max_bytes = 0",
    "delete from rowsignal.migration",
    "select * from rowsignal.migration for share",
    "truncate rowsignal.change",
    "begin; lock table rowsignal.migration in row share mode",
    "begin; lock table rowsignal.migration in share row exclusive mode",
    "begin; lock table rowsignal.retention in access share mode",
    "begin; lock table rowsignal.change in access exclusive mode",
    "select nextval('rowsignal.change_id_seq')",
    "select setval('rowsignal.change_id_seq', 1)",
    "alter table mallory.t add foreign key (id) references rowsignal.migration",
    """create trigger x before insert on rowsignal.change for each row
    execute function suppress_redundant_updates_trigger()""",
    "select rowsignal.prune_v1(max_age => '0')",
    "select rowsignal.prune_v2()",
    "select rowsignal.install_v2('mallory.t')",
    "select rowsignal.uninstall_v2('mallory.t')",
    "select rowsignal.start_incarnation_v2()",
    "select rowsignal.store_position_v2('1:1:', null)",
    "select rowsignal.grant_v1(current_user::regrole, true, true)",
    "select rowsignal.log_statement_v1('mallory.t'::regclass, 'insert', '{}')",
    """create trigger x after truncate on mallory.h
    execute function rowsignal.capture_log_truncate_v2('a', '1', '{}', 'id')""",
)


@pytest.mark.parametrize("statement", ATTACKS)
async def test_a_stranger_reads_writes_locks_and_calls_nothing(
    ground: Ground, statement: str
) -> None:
    await logged(ground)
    with pytest.raises(REFUSED):
        await ground.attacker.execute(statement)


async def test_a_trigger_of_the_log_cannot_be_attached_to_another_table(ground: Ground) -> None:
    await logged(ground)
    names = await ground.sql.fetch(
        "select proname from pg_proc where pronamespace = 'rowsignal'::regnamespace"
        " and proname ~ '^capture_log_(insert|update|delete)_'"
    )
    assert len(names) == 3
    for row in names:
        event = row["proname"].split("_")[2]
        tables = {"insert": "new table as new_rows", "delete": "old table as old_rows"}
        tables["update"] = "old table as old_rows new table as new_rows"
        with pytest.raises(REFUSED):
            await ground.attacker.execute(
                f"create trigger x after {event} on mallory.h referencing {tables[event]}"
                f" for each statement execute function rowsignal.{row['proname']}()"
            )


async def test_the_owner_of_a_table_makes_attaches_and_detaches_partitions(ground: Ground) -> None:
    await ground.attacker.execute("""
        create table mallory.t (id int primary key, v text) partition by list (id);
        create table mallory.l (id int primary key, v text) partition by list (id);
    """)
    await ground.install("mallory.t")
    await ground.install("mallory.l", log=True)
    for root in ("t", "l"):
        await ground.attacker.execute(f"""
            create table mallory.{root}1 partition of mallory.{root} for values in (1);
            create table mallory.{root}2 (id int primary key, v text);
            alter table mallory.{root} attach partition mallory.{root}2 for values in (2);
            insert into mallory.{root} values (1, 'a'), (2, 'b');
            alter table mallory.{root} detach partition mallory.{root}1;
            alter table mallory.{root} attach partition mallory.{root}1 for values in (1);
        """)


async def test_default_privileges_open_nothing(ground: Ground) -> None:
    """Default privileges of the installer, global and for the schema, before and after it."""
    group = await ground.role("readers", "nologin")
    await ground.sql.execute(f"grant {group} to {ground.attacker_role}")
    owner = await ground.connect(ground.installer_role)
    give = "".join(
        f"alter default privileges grant all on {kind} to {group}, public;"
        for kind in ("tables", "sequences", "functions", "types", "schemas")
    )
    await owner.execute(give)
    await logged(ground)
    for name in ("tables", "sequences", "functions", "types"):
        await owner.execute(
            f"alter default privileges in schema rowsignal grant all on {name} to {group}"
        )
    await ground.attacker.execute("create table mallory.later (id int primary key, w text)")
    await ground.install("mallory.later", log=True, columns=["w"])
    await ground.attacker.execute("insert into mallory.later values (1, 'x')")
    open_now = await ground.sql.fetch(
        "select p.proname from pg_proc as p where p.pronamespace = 'rowsignal'::regnamespace"
        " and has_function_privilege($1, p.oid, 'EXECUTE')",
        ground.attacker_role,
    )
    assert {row["proname"] for row in open_now} == EVERY_ROLE
    for statement in (
        "select * from rowsignal.change",
        "insert into rowsignal.change (relation, operation) values (1, 'i')",
        "select nextval('rowsignal.change_id_seq')",
        "create table rowsignal.x ()",
        "select rowsignal.prune_v2()",
    ):
        with pytest.raises(REFUSED):
            await ground.attacker.execute(statement)


async def test_rights_that_a_restore_has_lost_are_told_and_given_again(ground: Ground) -> None:
    """As pg_restore --no-privileges leaves them: functions open, schema and tables closed."""
    await logged(ground)
    names = await ground.sql.fetch(
        "select p.oid::regprocedure::text as name from pg_proc as p"
        " where p.pronamespace = 'rowsignal'::regnamespace"
    )
    await ground.sql.execute("revoke all on schema rowsignal from public")
    await ground.sql.execute("revoke all on rowsignal.migration from public")
    for row in names:
        await ground.sql.execute(f"grant execute on function {row['name']} to public")
    await ground.wait_for_hints()
    await ground.attacker.execute("insert into mallory.h values (1, 'v')")  # tells of the table
    (status, _) = await trigger_status(ground.installer)
    assert (status.state, "Every role has EXECUTE" in (status.problem or "")) == ("drifted", True)
    await ground.install("mallory.t", log=True, row_values=True)
    assert {one.state for one in await trigger_status(ground.installer)} == {"installed"}
    await ground.attacker.execute("insert into mallory.h values (2, 'v')")
    with pytest.raises(REFUSED):
        await ground.attacker.execute("select rowsignal.prune_v2()")


async def about(ground: Ground, role: str) -> list[Finding]:
    findings = await diagnose(ground.installer, role=role)
    return [finding for finding in findings if finding.subject == f"role {role}"]


async def test_a_role_gets_what_it_needs_and_loses_it_again(ground: Ground) -> None:
    await logged(ground)
    role = await ground.role("reader")
    async with ChangeLog(ground.engine(role)) as log:
        with pytest.raises(MissingRightError, match="rowsignal grant ROLE --watch"):
            await log.position()
    lacking = await about(ground, role)
    assert {finding.severity for finding in lacking} == {
        Severity.NOTE,
        Severity.WARNING,
        Severity.ERROR,
    }
    await ground.attacker.execute(
        f"grant select on mallory.t, mallory.h to {ground.installer_role} with grant option"
    )
    await ground.attacker.execute(
        f"grant usage on schema mallory to {ground.installer_role} with grant option"
    )
    await grant(ground.installer, role, serve=True, tables=["mallory.t", "mallory.h"])
    (well,) = await about(ground, role)
    assert well.severity is Severity.OK
    async with ChangeLog(ground.engine(role)) as log:
        before = await log.position()
        await ground.attacker.execute("insert into mallory.t values (1, 'v')")
        assert len((await log.read(before)).changes) == 1  # type: ignore[union-attr]
    reader = await ground.connect(role)
    await reader.execute("select rowsignal.prune_v2(); select * from mallory.t")
    await revoke(ground.installer, role, tables="mallory.t")
    for statement in ("select * from rowsignal.change", "select rowsignal.prune_v2()"):
        with pytest.raises(REFUSED):
            await reader.execute(statement)


async def test_what_the_doctor_proposes_gives_the_role_its_rights(ground: Ground) -> None:
    await logged(ground)
    role = await ground.role("app")
    for finding in await about(ground, role):
        if finding.fix and not finding.fix.startswith("rowsignal"):
            await ground.sql.execute(finding.fix)
    assert [finding.severity for finding in await about(ground, role)] == [Severity.OK]


async def test_a_grant_that_cannot_be_given_is_an_error_that_says_why(ground: Ground) -> None:
    with pytest.raises(ValueError, match="pass wait=True"):
        await grant(ground.installer, "app")
    with pytest.raises(ValueError, match="not a PostgreSQL identifier"):
        await grant(ground.installer, "", wait=True)
    for name in ("nosuch", "public", 'a"b', "x; drop table y", "%s"):
        with pytest.raises(GrantError, match="does not exist"):
            await grant(ground.installer, name, wait=True)
    with pytest.raises(GrantError, match="There is no role"):
        await diagnose(ground.installer, role="nosuch")
    with pytest.raises(GrantError, match="does not exist"):
        await grant(ground.installer, ground.bystander_role, wait=True, tables="nosuch")
    await ground.attacker.execute("create table mallory.own (id int primary key)")
    if ground.installer is not ground.admin:
        with pytest.raises(GrantError, match=r"GRANT|permission denied"):
            await grant(ground.installer, ground.bystander_role, wait=True, tables="mallory.own")
    async with ground.engine(ground.attacker_role).connect() as connection:
        with pytest.raises(PermissionError):
            await grant(connection, ground.attacker_role, serve=True)


async def test_sync_binds_and_odd_role_names(ground: Ground) -> None:
    from sqlalchemy import create_engine

    async with ground.installer.begin() as connection:
        await connection.run_sync(schema.apply)
    names = ('Odd "name"', "back\\slash", "per%cent", "ümlaut", "a;b--")
    engine = create_engine(ground.installer.url.set(drivername="postgresql+psycopg"))
    for name in names:
        quoted = name.replace('"', '""')
        await ground.sql.execute(f'drop role if exists "{quoted}"; create role "{quoted}"')
        grant(engine, name, watch=True)
        may = "select has_table_privilege($1::text, 'rowsignal.change', 'SELECT')"
        assert await ground.sql.fetchval(may, name)
        revoke(engine, name)
        assert not await ground.sql.fetchval(may, name)
        await ground.sql.execute(f'drop owned by "{quoted}"; drop role "{quoted}"')
    engine.dispose()
