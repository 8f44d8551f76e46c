-- Which role may do what in schema rowsignal. An object begins with the rights that PostgreSQL's
-- defaults and ALTER DEFAULT PRIVILEGES give away; they are taken back when the object is made.

-- :: grantees by default
-- Of those with rights on an object: PUBLIC (0), and the roles that default privileges of its owner
-- name.
create or replace function rowsignal.default_grantees_v1(owner oid, rights aclitem[]) returns setof oid
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select r.grantee from aclexplode(rights) as r where r.grantee = 0
    union
    select d.grantee
    from aclexplode(rights) as r
    join (select a.defaclrole, (aclexplode(a.defaclacl)).grantee from pg_default_acl as a
          where a.defaclnamespace in (0, 'rowsignal'::regnamespace)) as d using (grantee)
    where d.defaclrole = owner and d.grantee <> owner
$rowsignal$;

create or replace function rowsignal.grantee_name_v1(grantee oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
$rowsignal$;

-- :: close a function
create or replace function rowsignal.close_function_v1(function regprocedure) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    grantee oid;
begin
    for grantee in
        select rowsignal.default_grantees_v1(p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)))
        from pg_proc as p where p.oid = function
    loop
        execute concat('revoke all on function ', function, ' from ', rowsignal.grantee_name_v1(grantee));
    end loop;
end
$rowsignal$;

-- :: close a table
-- Tables, sequences and the rights on single columns.
create or replace function rowsignal.close_table_v1(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    kind constant text := case c.relkind when 'S' then 'sequence ' else 'table ' end
        from pg_class as c where c.oid = relation;
    grantee oid;
begin
    for grantee in
        select rowsignal.default_grantees_v1(c.relowner, c.relacl) from pg_class as c where c.oid = relation
    loop
        execute concat('revoke all on ', kind, relation, ' from ', rowsignal.grantee_name_v1(grantee));
    end loop;
end
$rowsignal$;

-- :: functions for everybody
-- What the role of a writer or a reader calls: nothing here has more rights than its caller. The
-- owner of a partitioned table needs the hint trigger's function to make a partition, which gets a
-- copy of the trigger; with it a role can send hints, as it can with NOTIFY.
create or replace function rowsignal.open_functions_v1() returns setof regprocedure
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select unnest(array[
        'rowsignal.is_plain_v1(oid)', 'rowsignal.value_v1(anyelement)', 'rowsignal.key_value_v1(anyelement)',
        'rowsignal.key_v1(record)', 'rowsignal.named_key_v2(json, text[])', 'rowsignal.changed_columns_v2(json, json, json)',
        'rowsignal.is_awaited_v2(integer)', 'rowsignal.is_wanted_v2(integer, json)',
        'rowsignal.queue_share_v1()', 'rowsignal.hint_payload_v1(text, text, text, text[])',
        'rowsignal.row_hints_v1(text, text, record, record, text[], json)',
        'rowsignal.capture_hint_v2()']::regprocedure[])
$rowsignal$;

-- :: close
-- Take every right on every object of the schema from PUBLIC and from the roles of default
-- privileges, then give PUBLIC what capturing and waiting need. Rights that were granted to other
-- roles stay. A row type that others may use could be made the type of their columns, and our
-- tables could then not be altered.
create or replace function rowsignal.close_v1() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    closing record;
    function regprocedure;
begin
    perform rowsignal.close_function_v1(p.oid) from pg_proc as p
    where p.pronamespace = 'rowsignal'::regnamespace;
    perform rowsignal.close_table_v1(c.oid) from pg_class as c
    where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S');
    for closing in
        select concat('schema rowsignal from ', rowsignal.grantee_name_v1(g.grantee)) as text
        from pg_namespace as n, rowsignal.default_grantees_v1(n.nspowner, n.nspacl) as g(grantee)
        where n.nspname = 'rowsignal'
        union all
        select concat('type ', format_type(t.oid, null), ' from ', rowsignal.grantee_name_v1(g.grantee))
        from pg_type as t,
            rowsignal.default_grantees_v1(t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))) as g(grantee)
        where t.typnamespace = 'rowsignal'::regnamespace and t.typtype = 'c'
    loop
        execute concat('revoke all on ', closing.text);
    end loop;
    grant usage on schema rowsignal to public;
    grant select on rowsignal.migration to public;
    for function in select rowsignal.open_functions_v1() loop
        execute concat('grant execute on function ', function, ' to public');
    end loop;
end
$rowsignal$;

-- :: rights of a reader
-- What a role needs to watch, to serve and to work, as text for GRANT and REVOKE. To watch is to
-- read the log: keys, and values where they are logged, of every captured table. To serve is to watch
-- and to prune. To work is to watch and to keep positions: handlers run so. Capturing and waiting
-- need nothing beyond PUBLIC's rights.
create or replace function rowsignal.reader_rights_v1(may_serve boolean, may_work boolean) returns setof text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select unnest(array[
        'select on table rowsignal.change', 'select on table rowsignal.incarnation',
        'select on table rowsignal.horizon', 'select on table rowsignal.stored_position',
        'select on table rowsignal.retention',
        'execute on function rowsignal.log_origin_v1()',
        'execute on function rowsignal.start_incarnation_v2()',
        'execute on function rowsignal.store_position_v2(pg_snapshot, pg_snapshot)'])
    union all
    select unnest(array[
        'execute on function rowsignal.prune_v2(integer, text)',
        'execute on function rowsignal.prune_v3(interval, bigint, integer, text)']) where may_serve
    union all
    select unnest(array[
        'select on table rowsignal.tick', 'select on table rowsignal.consumer',
        'select on table rowsignal.consumer_partition', 'select on table rowsignal.worker',
        'select on table rowsignal.dead_letter',
        'execute on function rowsignal.snapshot_includes_v1(pg_snapshot, pg_snapshot)',
        'execute on function rowsignal.position_problem_v1(text, pg_snapshot)',
        'execute on function rowsignal.consumer_relations_v1(text[])',
        'execute on function rowsignal.consumer_lag_v1()']) where may_serve or may_work
    union all
    select unnest(array[
        'insert, update, delete on table rowsignal.consumer',
        'insert, update, delete on table rowsignal.consumer_partition',
        'insert, update, delete on table rowsignal.worker',
        'insert, update, delete on table rowsignal.dead_letter',
        'execute on function rowsignal.create_consumer_v1(text, integer, text[], pg_snapshot)',
        'execute on function rowsignal.worker_shares_v1(text[])',
        'execute on function rowsignal.is_leased_v1(uuid, text)',
        'execute on function rowsignal.lease_consumers_v1(uuid, text, text[], interval)',
        'execute on function rowsignal.reset_consumer_v1(text, pg_snapshot, pg_snapshot, bigint, text)',
        'execute on function rowsignal.skip_failing_v1(text, integer)']) where may_work
$rowsignal$;

-- :: grant
create or replace function rowsignal.grant_v1(
    role regrole, may_watch boolean, may_serve boolean, may_work boolean default false)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    privilege text;
begin
    execute concat('grant usage on schema rowsignal to ', role);
    for privilege in select rowsignal.reader_rights_v1(may_serve, may_work) where may_watch or may_serve or may_work
    loop
        execute concat('grant ', privilege, ' to ', role);
    end loop;
end
$rowsignal$;

-- :: revoke
create or replace function rowsignal.revoke_v1(role regrole) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    privilege text;
begin
    execute concat('revoke usage on schema rowsignal from ', role);
    for privilege in select rowsignal.reader_rights_v1(true, true) loop
        execute concat('revoke ', privilege, ' from ', role);
    end loop;
end
$rowsignal$;
