-- How the change log is read: in one statement where that will do, which is of one snapshot by
-- itself, else in one REPEATABLE READ, READ ONLY transaction. The writers are asked for outside.

-- :: log_begin
-- Plans must not depend on statistics, which are stale just when a log has grown, nor on plans that
-- were made for another position: sequential scans are off, and each plan is made anew.
begin isolation level repeatable read, read only;
set local enable_seqscan = off;
set local plan_cache_mode = force_custom_plan;
set local jit = off;
set local work_mem = '16MB';
set local idle_in_transaction_session_timeout = 0

-- :: log_head
-- The snapshot is the position; the rest says whether positions of before still count.
select
    pg_catalog.pg_is_in_recovery() as is_standby,
    pg_catalog.pg_current_xact_id_if_assigned() is not null as has_written,
    pg_catalog.pg_current_snapshot()::text as now,
    (
        select i.id from rowsignal.incarnation as i where i.origin = rowsignal.log_origin_v1()
    ) as incarnation,
    (select h.snapshot::text from rowsignal.horizon as h) as horizon

-- :: log_stored_position
select p.before::text, p.after::text from rowsignal.stored_position as p where p.id = $1

-- :: log_max_running
-- How many transactions can run at once, in sessions of all kinds and prepared ones.
select
    pg_catalog.current_setting('max_connections')::integer
    + pg_catalog.current_setting('max_prepared_transactions')::integer
    + pg_catalog.current_setting('max_worker_processes')::integer
    + pg_catalog.current_setting('max_wal_senders')::integer
    + pg_catalog.current_setting('autovacuum_max_workers')::integer

-- :: log_changes
-- What was not visible in the old snapshot ($1: its xmax, $2: those of its running transactions that
-- have ended) and is in the new one ($3), after an id ($4), of some tables ($5) or all. One OR of
-- both conditions would be a scan of the whole index. The order of ids is the order of changes of a
-- row. Times and arrays come in the forms that are cheapest to decode: a catch-up may take millions.
-- $2 comes as text: for an array of xid8 asyncpg asks about the type first, and makes our `jit = off`
-- outlast the transaction, on a connection that may be a pooler's.
select
    c.id, c.xid, pg_catalog.date_part('epoch', c.captured_at) as captured_at, c.relation, c.operation,
    c.key::text, c.changed::text, c.old_row::text, c.new_row::text, c.trace
from (
    select * from rowsignal.change where xid >= $1
    union all
    select * from rowsignal.change where xid = any ($2::text[]::xid8[])
) as c
where pg_catalog.pg_visible_in_snapshot(c.xid, $3::text::pg_snapshot)
    and c.id > $4
    and ($5::oid[] is null or c.relation = any ($5))
order by c.id
limit $6

-- :: log_look_settings
-- For a session that does nothing but look. It is planned once: planning takes longer than all else.
-- Without sequential scans and workers one plan is right for every position, however long the log.
set enable_seqscan = off;
set max_parallel_workers_per_gather = 0;
set plan_cache_mode = force_generic_plan;
set jit = off;
set default_transaction_isolation = 'read committed';
set default_transaction_read_only = on

-- :: log_look_origin
-- What rowsignal.log_origin_v1 starts with: nothing that can change while a connection lives.
select pg_catalog.regexp_replace(rowsignal.log_origin_v1(), '[^:]*$', '')

-- :: log_look
-- The head, and what has become visible after a snapshot ($1: its xmax, $2: its running
-- transactions) of an incarnation ($3): log_head and log_changes at once, up to the snapshot of this
-- very statement. A number ($4) bounds what is looked at: as many rows are any of those there are,
-- fewer are all of them. A transaction that still runs has nothing to show, however much it wrote. Without changes one row comes that has the head alone. Where
-- only some tables are wanted, log_look_of_tables says so ($6, $7). Every node of the plan counts: who
-- is woken after a pause runs with cold caches.
select
    c.*,
    (
        pg_catalog.pg_identify_object_as_address(
            'pg_catalog.pg_class'::regclass::oid,
            coalesce(pg_catalog.pg_partition_root(c.relation), c.relation),
            0
        )
    ).object_names as name,
    case when c.operation = 't' then pg_catalog.pg_partition_root(c.relation) <> c.relation end as is_part,
    pg_catalog.pg_is_in_recovery() as is_standby,
    pg_catalog.pg_current_xact_id_if_assigned() is not null as has_written,
    pg_catalog.pg_current_snapshot()::text as now,
    i.id as incarnation,
    (select h.snapshot::text from rowsignal.horizon as h) as horizon
from (
    select (
        select i.id from rowsignal.incarnation as i
        where i.origin = $5 || 'rowsignal.change'::regclass::oid::text
    ) as id offset 0
) as i
left join lateral (
    select
        c.id, c.xid, pg_catalog.date_part('epoch', c.captured_at) as captured_at, c.relation, c.operation,
        c.key::text, c.changed::text, c.old_row::text, c.new_row::text, c.trace
    from (
        select * from rowsignal.change where xid >= $1
        union all
        select * from rowsignal.change
        where xid = any (array(
            select r.xid from unnest($2::xid8[]) as r (xid)
            where pg_catalog.pg_visible_in_snapshot(r.xid, pg_catalog.pg_current_snapshot())
        ))
    ) as c
    where pg_catalog.pg_visible_in_snapshot(c.xid, pg_catalog.pg_current_snapshot())
        and i.id = $3
        {of_tables}
    limit $4
) as c on true
order by c.id

-- :: log_look_of_tables
-- log_relations, asked in the same statement.
and c.relation = any (array(
            select t.relation
            from unnest($6::text[], $7::text[]) as w (schema, name)
            join pg_catalog.pg_namespace as n on n.nspname = w.schema
            join pg_catalog.pg_class as k on k.relnamespace = n.oid and k.relname = w.name
            cross join lateral (
                select k.oid as relation
                union
                select p.relid::oid from pg_catalog.pg_partition_tree(k.oid) as p
            ) as t
        ))

-- :: log_relation_names
-- A partition goes by its root's name, by which programs know it.
select c.oid, n.nspname::text as schema, r.relname::text as name, r.oid <> c.oid as is_part
from pg_catalog.pg_class as c
join pg_catalog.pg_class as r on r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
join pg_catalog.pg_namespace as n on n.oid = r.relnamespace
where c.oid = any ($1::oid[])

-- :: log_relations
select t.relation
from unnest($1::text[], $2::text[]) as w (schema, name)
join pg_catalog.pg_namespace as n on n.nspname = w.schema
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name
cross join lateral (
    select c.oid as relation
    union
    select p.relid::oid from pg_catalog.pg_partition_tree(c.oid) as p
) as t

-- :: log_writers
-- Transactions that write to the log or to a logged table: their triggers may have run before this.
-- Ask before the log is read: what a transaction that has ended wrote is visible to that read.
select pg_catalog.array_agg(distinct l.virtualtransaction)
from pg_catalog.pg_locks as l
where l.locktype = 'relation'
    and l.database = (
        select d.oid from pg_catalog.pg_database as d
        where d.datname = pg_catalog.current_database()
    )
    and l.mode = 'RowExclusiveLock'
    and (l.relation = 'rowsignal.change'::regclass::oid or exists (
        select from pg_catalog.pg_trigger as t
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where t.tgrelid = l.relation and n.nspname = 'rowsignal' and p.proname ~ '^capture_log_'
    ))

-- :: log_has_unflushed
select pg_catalog.pg_current_wal_insert_lsn() > pg_catalog.pg_current_wal_flush_lsn()

-- :: log_flush
-- A commit that is flushed takes along all that was written before it. Waiting for the WAL writer
-- instead would not end while the last page holds the work of an open transaction.
begin;
set local synchronous_commit = local;
select pg_catalog.pg_logical_emit_message(true, 'rowsignal', '');
commit

-- :: log_start
select rowsignal.start_incarnation_v2()

-- :: log_store_position
select rowsignal.store_position_v2($1::text::pg_snapshot, $2::text::pg_snapshot)

-- :: log_prune
select is_ours, deleted, reached, bytes from rowsignal.prune_v3($1::interval, $2, $3, $4)

-- :: log_prune_stored
select is_ours, deleted, reached, bytes from rowsignal.prune_v2($1, $2)

-- :: log_retention
select extract(epoch from r.max_age)::float8 as max_age, r.max_bytes from rowsignal.retention as r

-- :: log_retain
update rowsignal.retention set max_age = $1, max_bytes = $2
