-- What the service asks about the database it serves.

-- :: service_tables
-- The tables that carry our triggers; partitions go by their root.
select distinct n.nspname::text as schema, r.relname::text as name
from pg_catalog.pg_trigger as t
join pg_catalog.pg_proc as p on p.oid = t.tgfoid
join pg_catalog.pg_namespace as f on f.oid = p.pronamespace and f.nspname = 'rowsignal'
join pg_catalog.pg_class as c on c.oid = t.tgrelid
join pg_catalog.pg_class as r on r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
join pg_catalog.pg_namespace as n on n.oid = r.relnamespace
where not t.tgisinternal
order by 1, 2

-- :: service_check
-- A sign of life, and how far transactions have come.
select pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- :: service_database
select pg_catalog.current_database()::text as name, pg_catalog.current_setting('server_version') as server_version,
    pg_catalog.pg_notification_queue_usage() as queue_usage

-- :: service_estimates
-- Rows as the planner believes; -1 without statistics.
select n.nspname::text as schema, c.relname::text as name, c.reltuples::bigint as rows
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where pg_catalog.concat(n.nspname, '.', c.relname) = any (cast(:names as text[]))

-- :: service_log
-- The oldest change by transaction, which the index knows; age is near enough.
select pg_catalog.pg_total_relation_size('rowsignal.change') as bytes,
    (select c.reltuples::bigint from pg_catalog.pg_class as c where c.oid = 'rowsignal.change'::regclass::oid) as rows,
    (select c.captured_at from rowsignal.change as c order by c.xid limit 1) as oldest_at,
    extract(epoch from r.max_age)::float8 as retention_seconds,
    r.max_bytes as retention_bytes
from rowsignal.retention as r

-- :: service_candidates
-- Tables that could carry triggers, to begin with: those with a primary key, largest first.
select n.nspname::text as schema, c.relname::text as name
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
join pg_index as i on i.indrelid = c.oid and i.indisprimary
where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
    and n.nspname not in ('rowsignal', 'information_schema') and n.nspname not like 'pg\_%'
order by c.reltuples desc, 1, 2
limit 10
