-- What the listening side asks of PostgreSQL. Each statement stands under its name.

-- :: listener_settings
-- A listener is idle for a living. Server-side timeouts would end it, and keepalives find a
-- peer that has vanished without a word.
select pg_catalog.set_config(s.name, w.value, false)
from (values
    ('application_name', 'rowsignal listener'),
    ('idle_session_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'),
    ('transaction_timeout', '0'),
    ('statement_timeout', '10s'),
    ('lock_timeout', '2s'),
    ('tcp_keepalives_idle', '30'),
    ('tcp_keepalives_interval', '5'),
    ('tcp_keepalives_count', '4')
) as w (name, value)
join pg_catalog.pg_settings as s on s.name = w.name;

-- :: side_settings
-- Names, values, and whether they last for the transaction only. Settings that this version of
-- PostgreSQL does not have are left out.
select pg_catalog.count(pg_catalog.set_config(s.name, w.value, $3::bool))
from unnest($1::text[], $2::text[]) as w (name, value)
join pg_catalog.pg_settings as s on s.name = w.name;

-- :: arm
select pg_catalog.pg_try_advisory_lock_shared($1::int4, $2::int4);

-- :: disarm
select pg_catalog.pg_advisory_unlock_shared($1::int4, $2::int4);

-- :: queue_usage
-- Asking also lets PostgreSQL drop the part of the queue that all listeners have read: a queue that
-- was once full stays full until a session asks.
select pg_catalog.pg_notification_queue_usage();

-- :: notify
select pg_catalog.pg_notify($1::text, $2::text);

-- :: writers_in_flight
-- Transactions that hold a lock of writers on any of the relations: their triggers may have run
-- before the arming. Prepared transactions show here too.
select distinct l.virtualtransaction
from pg_catalog.pg_locks as l
where l.locktype = 'relation'
    and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database())
    and l.relation = any ($1::oid[])
    and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    and l.granted
    and l.pid is distinct from pg_catalog.pg_backend_pid();

-- :: session_view
-- How this transaction sees tables, by name: in which schema it finds them, and whether it has
-- written them. A writer keeps its lock on the table until its transaction ends.
select
    n.nspname::text as schema,
    c.relkind::text as kind,
    exists (
        select from pg_catalog.pg_locks as l
        where l.pid = pg_catalog.pg_backend_pid()
            and l.locktype = 'relation'
            and l.relation = c.oid
            and l.mode = 'RowExclusiveLock'
            and l.granted
    ) as is_written,
    pg_catalog.current_setting('transaction_isolation') as isolation,
    pg_catalog.current_schemas(true)::text[] as schemas
from unnest($1::text[]) with ordinality as w (name, place)
left join pg_catalog.pg_class as c on c.oid = pg_catalog.to_regclass(w.name)
left join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
order by w.place;

-- :: hides_rows
-- Whether row-level security applies to this role on any of the tables.
select coalesce(bool_or(pg_catalog.row_security_active(c.oid)), false)
from unnest($1::text[]) as w (name)
join pg_catalog.pg_class as c on c.oid = pg_catalog.to_regclass(w.name)
where c.relkind in ('r', 'p');

-- :: lock_holders
-- Sessions that hold exclusively what triggers and listeners share: (class, bucket) of the advisory locks.
select l.objid::int4 as bucket, l.pid, a.usename::text as role, a.application_name, a.state
from pg_catalog.pg_locks as l
left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
where l.locktype = 'advisory'
    and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database())
    and l.classid = $1::int4::oid
    and l.objsubid = 2
    and l.mode = 'ExclusiveLock'
    and l.granted;
