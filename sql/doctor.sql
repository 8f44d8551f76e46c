-- What `rowsignal doctor` asks about the server. Each statement stands under its name.

-- :: server
select
    pg_catalog.current_setting('server_version_num')::int4 as version,
    pg_catalog.current_setting('server_version') as version_name,
    pg_catalog.current_database()::text as database,
    pg_catalog.pg_is_in_recovery() as is_standby,
    pg_catalog.pg_notification_queue_usage() as queue_usage,
    pg_catalog.current_setting('max_prepared_transactions')::int4 as max_prepared,
    pg_catalog.current_setting('synchronous_standby_names') as synchronous_standbys,
    (select pg_catalog.count(*) from pg_catalog.pg_locks)::float8 / (
        pg_catalog.current_setting('max_locks_per_transaction')::int4 * (
            pg_catalog.current_setting('max_connections')::int4
            + pg_catalog.current_setting('max_prepared_transactions')::int4
        )
    )::float8 as lock_table_usage;

-- :: advisory_privileges
-- The functions that every writer of a watched table calls, and whether every role may.
select p.oid::regprocedure::text as function
from pg_catalog.pg_proc as p
where p.pronamespace = 'pg_catalog'::regnamespace::oid
    and p.proname in (
        'pg_try_advisory_lock', 'pg_advisory_unlock',
        'pg_try_advisory_lock_shared', 'pg_advisory_unlock_shared'
    )
    and p.pronargs = 2
    and not pg_catalog.has_function_privilege('public', p.oid, 'EXECUTE');

-- :: replica_roles
-- Roles and databases that switch triggers off for all they write.
select coalesce(r.rolname, 'Every role')::text as role,
    pg_catalog.concat(
        'ALTER ROLE ', coalesce(pg_catalog.quote_ident(r.rolname), 'ALL'),
        case when s.setdatabase <> 0::oid then
            ' IN DATABASE ' || pg_catalog.quote_ident(pg_catalog.current_database())
        end,
        ' RESET session_replication_role;'
    ) as fix
from pg_catalog.pg_db_role_setting as s
left join pg_catalog.pg_roles as r on r.oid = s.setrole
where s.setdatabase in (0::oid, (select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database()))
    and s.setconfig::text like '%session_replication_role=replica%';

-- :: subscribed
-- Tables that logical replication writes, whose triggers do not fire for that. Its apply fires row
-- triggers alone, and of these only those that are enabled for replicas.
select
    t.tgrelid::regclass::text as "table",
    pg_catalog.string_agg(distinct s.subname::text, ', ') as subscriptions,
    pg_catalog.bool_or(t.tgname <> 'rowsignal_hint') as is_logged
from pg_catalog.pg_subscription_rel as r
join pg_catalog.pg_subscription as s on s.oid = r.srsubid
join pg_catalog.pg_trigger as t on t.tgrelid = r.srrelid
where pg_catalog.starts_with(t.tgname::text, 'rowsignal_log_') or (t.tgname = 'rowsignal_hint' and t.tgenabled not in ('A', 'R'))
group by t.tgrelid;

-- :: reordering
-- Logged tables whose own triggers or deferrable keys can log a row's changes inner-first.
select
    c.oid::regclass::text as "table",
    pg_catalog.string_agg(distinct coalesce(t.tgname, k.conname)::text, ', ') as because
from pg_catalog.pg_class as c
left join pg_catalog.pg_trigger as t
    on t.tgrelid = c.oid
    and not t.tgisinternal
    and t.tgtype::int4 & 66 = 0 -- neither BEFORE nor INSTEAD OF
    and not pg_catalog.starts_with(t.tgname::text, 'rowsignal_')
left join pg_catalog.pg_constraint as k
    on k.conrelid = c.oid and k.contype = 'p' and k.condeferrable
where c.oid = any ($1::oid[]) and (t.oid is not null or k.oid is not null)
group by c.oid;
