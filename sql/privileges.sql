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
-- What the role of a writer or a reader calls: nothing here has more rights than its caller.
create or replace function rowsignal.open_functions_v1() returns setof regprocedure
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select unnest(array[
        'rowsignal.is_plain_v1(oid)', 'rowsignal.value_v1(anyelement)', 'rowsignal.key_value_v1(anyelement)',
        'rowsignal.named_key_v2(json, text[])', 'rowsignal.changed_columns_v2(json, json, json)',
        'rowsignal.is_awaited_v2(integer)', 'rowsignal.is_wanted_v2(integer, json)',
        'rowsignal.queue_share_v1()', 'rowsignal.hint_payload_v1(text, text, text, text[])',
        'rowsignal.row_hints_v1(text, text, record, record, text[], json)']::regprocedure[])
$rowsignal$;

-- :: close
-- Take every right on every object of the schema from PUBLIC and from the roles of default
-- privileges, then give PUBLIC what capturing and waiting need. Rights that were granted to other
-- roles stay.
create or replace function rowsignal.close_v1() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    grantee oid;
    function regprocedure;
begin
    perform rowsignal.close_function_v1(p.oid) from pg_proc as p
    where p.pronamespace = 'rowsignal'::regnamespace;
    perform rowsignal.close_table_v1(c.oid) from pg_class as c
    where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S');
    for grantee in
        select rowsignal.default_grantees_v1(n.nspowner, n.nspacl) from pg_namespace as n
        where n.nspname = 'rowsignal'
    loop
        execute concat('revoke all on schema rowsignal from ', rowsignal.grantee_name_v1(grantee));
    end loop;
    grant usage on schema rowsignal to public;
    grant select on rowsignal.migration to public;
    for function in select rowsignal.open_functions_v1() loop
        execute concat('grant execute on function ', function, ' to public');
    end loop;
end
$rowsignal$;

-- :: grant
-- Give a role what it needs and no more. Capturing and waiting need nothing beyond PUBLIC's rights.
-- To watch is to read the log: keys, and values where they are logged, of every captured table. To
-- serve is to watch and to prune. To work is to watch and to keep positions: handlers run so.
create or replace function rowsignal.grant_v1(
    role regrole, may_watch boolean, may_serve boolean, may_work boolean default false)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    grantee constant text := role::text;
begin
    execute concat('grant usage on schema rowsignal to ', grantee);
    if may_watch or may_serve or may_work then
        execute concat('grant select on rowsignal.change, rowsignal.incarnation, rowsignal.horizon, '
            'rowsignal.stored_position, rowsignal.retention to ', grantee);
        execute concat('grant execute on function rowsignal.log_origin_v1(), rowsignal.start_incarnation_v2(), '
            'rowsignal.store_position_v2(pg_snapshot, pg_snapshot) to ', grantee);
    end if;
    if may_serve then
        execute concat('grant execute on function rowsignal.prune_v2(integer, text), '
            'rowsignal.prune_v3(interval, bigint, integer, text) to ', grantee);
    end if;
    if may_serve or may_work then
        execute concat('grant select on rowsignal.tick, rowsignal.consumer, rowsignal.consumer_partition, '
            'rowsignal.worker, rowsignal.dead_letter to ', grantee);
        execute concat('grant execute on function rowsignal.snapshot_includes_v1(pg_snapshot, pg_snapshot), '
            'rowsignal.position_problem_v1(text, pg_snapshot), rowsignal.consumer_relations_v1(text[]), '
            'rowsignal.consumer_lag_v1() to ', grantee);
    end if;
    if may_work then
        execute concat('grant insert, update, delete on rowsignal.consumer, rowsignal.consumer_partition, '
            'rowsignal.worker, rowsignal.dead_letter to ', grantee);
        execute concat('grant execute on function '
            'rowsignal.create_consumer_v1(text, integer, text[], pg_snapshot), '
            'rowsignal.worker_shares_v1(text[]), rowsignal.is_leased_v1(uuid, text), '
            'rowsignal.lease_consumers_v1(uuid, text, text[], interval), '
            'rowsignal.reset_consumer_v1(text, pg_snapshot, pg_snapshot, bigint, text), '
            'rowsignal.skip_failing_v1(text, integer) to ', grantee);
    end if;
end
$rowsignal$;
