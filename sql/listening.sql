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

-- :: arm
select pg_catalog.pg_try_advisory_lock_shared($1::int4, $2::int4);

-- :: disarm
select pg_catalog.pg_advisory_unlock_shared($1::int4, $2::int4);

-- :: queue_usage
-- Asking also lets PostgreSQL drop the part of the queue that everybody has read: a queue that
-- was once full stays full until somebody asks.
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
