-- Which rights a role has, asked of the catalogue. Calls no function of schema rowsignal, which may
-- be another role's.

-- :: role
select r.oid::bigint as oid, r.rolcanlogin as may_log_in from pg_catalog.pg_roles as r where r.rolname = :role

-- :: role_lacks
-- What a role cannot do of what it needs: to wait (the schema and the tables), to watch (the log as
-- well), to serve (to prune as well). `need` is the command that asks for it; `fix` is SQL.
with me as (
    select r.oid, pg_catalog.quote_ident(r.rolname) as name
    from pg_catalog.pg_roles as r where r.rolname = :role
),
schema as (
    select n.oid from pg_catalog.pg_namespace as n where n.nspname = 'rowsignal'
),
wanted as (
    select c.oid, c.relnamespace, c.oid::regclass::text as name,
        pg_catalog.quote_ident(n.nspname) as schema
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.oid::text = any (cast(:tables as text[])) -- text: for an array of oid asyncpg asks about the type
),
lack (need, place, what, fix) as (
    select 'wait', 1, pg_catalog.concat('CONNECT on database ', d.name), pg_catalog.concat('GRANT CONNECT ON DATABASE ', d.name)
    from (select pg_catalog.quote_ident(pg_catalog.current_database()) as name) as d, me
    where not pg_catalog.has_database_privilege(me.oid, pg_catalog.current_database(), 'CONNECT')
    union all
    select 'wait', 2, 'USAGE on schema rowsignal', 'GRANT USAGE ON SCHEMA rowsignal'
    from me, schema where not pg_catalog.has_schema_privilege(me.oid, schema.oid, 'USAGE')
    union all
    select distinct 'wait', 3, pg_catalog.concat('USAGE on schema ', w.schema),
        pg_catalog.concat('GRANT USAGE ON SCHEMA ', w.schema)
    from me, wanted as w where not pg_catalog.has_schema_privilege(me.oid, w.relnamespace, 'USAGE')
    union all
    select 'wait', 4, pg_catalog.concat('SELECT on table ', w.name),
        pg_catalog.concat('GRANT SELECT ON TABLE ', w.name)
    from me, wanted as w where not pg_catalog.has_table_privilege(me.oid, w.oid, 'SELECT')
    union all
    select 'wait', 5, pg_catalog.concat('EXECUTE on function ', p.oid::regprocedure),
        pg_catalog.concat('GRANT EXECUTE ON FUNCTION pg_catalog.', p.oid::regprocedure)
    from me, pg_catalog.pg_proc as p
    where p.pronamespace = 'pg_catalog'::regnamespace::oid and p.proname::text = any (array[
            'pg_try_advisory_lock', 'pg_advisory_unlock', 'pg_try_advisory_lock_shared',
            'pg_advisory_unlock_shared', 'pg_notify', 'pg_notification_queue_usage'])
        and (p.pronargs = 2 and p.proargtypes[0] <> 'pg_catalog.int8'::regtype::oid or p.pronargs = 0)
        and not pg_catalog.has_function_privilege(me.oid, p.oid, 'EXECUTE')
    union all
    select 'watch', 6, pg_catalog.concat('SELECT on table rowsignal.', c.relname),
        pg_catalog.concat('GRANT SELECT ON TABLE rowsignal.', c.relname)
    from me, schema join pg_catalog.pg_class as c on c.relnamespace = schema.oid
    where c.relname::text = any (array['change', 'incarnation', 'horizon', 'stored_position', 'retention'])
        and not pg_catalog.has_table_privilege(me.oid, c.oid, 'SELECT')
    union all
    select case when pg_catalog.starts_with(p.proname::text, 'prune') then 'serve' else 'watch' end, 7,
        pg_catalog.concat('EXECUTE on function rowsignal.', p.proname),
        pg_catalog.concat('GRANT EXECUTE ON FUNCTION ', p.oid::regprocedure)
    from me, schema join pg_catalog.pg_proc as p on p.pronamespace = schema.oid
    where p.proname::text = any (array['log_origin_v1', 'start_incarnation_v2', 'store_position_v2',
            'prune_v2', 'prune_v3'])
        and not pg_catalog.has_function_privilege(me.oid, p.oid, 'EXECUTE')
)
select lack.need, lack.what, pg_catalog.concat(lack.fix, ' TO ', me.name) as fix
from lack cross join me order by lack.place, lack.what
