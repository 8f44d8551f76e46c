-- What the service asks about the database it serves.

-- :: service_tables
-- The tables that carry our triggers; partitions go by their root.
SELECT DISTINCT n.nspname::text AS schema, r.relname::text AS name
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace AS f ON f.oid = p.pronamespace AND f.nspname = 'rowsignal'
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_class AS r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
WHERE NOT t.tgisinternal
ORDER BY 1, 2

-- :: service_check
-- A sign of life, and how far transactions have come.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint

-- :: service_database
SELECT pg_catalog.current_database()::text AS name, pg_catalog.current_setting('server_version') AS server_version,
    pg_catalog.pg_notification_queue_usage() AS queue_usage

-- :: service_estimates
-- Rows as the planner believes; -1 where nobody has counted.
SELECT n.nspname::text AS schema, c.relname::text AS name, c.reltuples::bigint AS rows
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE pg_catalog.concat(n.nspname, '.', c.relname) = ANY (CAST(:names AS text[]))

-- :: service_log
-- The oldest change by transaction, which the index knows; age is near enough.
SELECT pg_catalog.pg_total_relation_size('rowsignal.change') AS bytes,
    (SELECT c.reltuples::bigint FROM pg_catalog.pg_class AS c WHERE c.oid = 'rowsignal.change'::regclass::oid) AS rows,
    (SELECT c.captured_at FROM rowsignal.change AS c ORDER BY c.xid LIMIT 1) AS oldest_at,
    extract(epoch FROM r.max_age)::float8 AS retention_seconds,
    r.max_bytes AS retention_bytes
FROM rowsignal.retention AS r

-- :: service_candidates
-- Tables that could carry triggers, to begin with: those with a primary key, largest first.
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('rowsignal', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY c.reltuples DESC, 1, 2
LIMIT 10
