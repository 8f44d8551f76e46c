-- Capture from the WAL: what is asked about publications and replication slots. Works where schema
-- rowsignal does not exist.

-- :: wal_server
select
    pg_catalog.current_setting('server_version_num')::int4 as version,
    pg_catalog.current_setting('wal_level') as wal_level,
    pg_catalog.current_database()::text as database,
    current_user::text as role,
    exists (
        select from pg_catalog.pg_roles as r
        where r.rolname = current_user and (r.rolreplication or r.rolsuper)
            or r.rolname = 'rds_replication' and pg_catalog.pg_has_role(r.oid, 'MEMBER')  -- Amazon RDS
    ) as may_replicate,
    pg_catalog.current_setting('max_replication_slots')::int4 as max_slots,
    (select pg_catalog.count(*) from pg_catalog.pg_replication_slots)::int4 as slots,
    pg_catalog.pg_is_in_recovery() as is_standby,
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8 as next_xid

-- :: wal_slot
-- A slot ($1) of this cluster, and how many bytes of WAL lie between what was confirmed and now.
select
    s.slot_name::text as name,
    s.plugin::text as plugin,
    s.database::text as database,
    s.active as is_active,
    s.wal_status,
    (s.confirmed_flush_lsn - '0/0'::pg_lsn)::int8 as confirmed,
    case when pg_catalog.pg_is_in_recovery() then null
        else (pg_catalog.pg_current_wal_lsn() - s.confirmed_flush_lsn)::int8 end as lag
from pg_catalog.pg_replication_slots as s
where s.slot_name = $1

-- :: wal_slots
-- The slots of relays in this database; other readers have slots of other names.
select
    s.slot_name::text as name,
    s.active as is_active,
    s.wal_status,
    pg_catalog.pg_size_pretty(pg_catalog.pg_current_wal_lsn() - s.confirmed_flush_lsn) as lag
from pg_catalog.pg_replication_slots as s
where pg_catalog.starts_with(s.slot_name::text, 'rowsignal_') and s.plugin = 'pgoutput'
    and s.database = pg_catalog.current_database() and not pg_catalog.pg_is_in_recovery()

-- :: wal_slot_create
select pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')

-- :: wal_slot_create_failover
-- PostgreSQL 17 and newer: standbys can keep a copy of the slot.
select pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', failover => true)

-- :: wal_slot_drop
select pg_catalog.pg_drop_replication_slot(s.slot_name)
from pg_catalog.pg_replication_slots as s where s.slot_name = $1

-- :: wal_publication
select
    p.puballtables as is_for_all,
    p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate and not p.pubviaroot as is_whole
from pg_catalog.pg_publication as p where p.pubname = $1

-- :: wal_published
-- The tables of a publication ($1), each partition and each child as its root or parent.
with recursive published as (
    select c.oid
    from pg_catalog.pg_publication_tables as p
    join pg_catalog.pg_namespace as n on n.nspname = p.schemaname
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname = $1 and n.nspname <> 'rowsignal'
    union
    select r.prrelid
    from pg_catalog.pg_publication_rel as r
    join pg_catalog.pg_publication as p on p.oid = r.prpubid
    where p.pubname = $1
),
ancestor(oid) as (
    select oid from published
    union
    select i.inhparent
    from ancestor as a
    join pg_catalog.pg_inherits as i on i.inhrelid = a.oid
    join pg_catalog.pg_class as c on c.oid = i.inhparent
    where c.relkind = 'p' or i.inhparent in (select oid from published)
)
select n.nspname::text as schema, c.relname::text as name
from ancestor as a
join pg_catalog.pg_class as c on c.oid = a.oid
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where not exists (
    select from pg_catalog.pg_inherits as i join ancestor as o on o.oid = i.inhparent where i.inhrelid = a.oid
)
order by 1, 2

-- :: wal_tables
-- The facts about tables ($1: schemas, $2: names) that are needed to read their changes from the WAL through a
-- publication ($3): the relations that hold their rows, whether each is published by itself, and whether
-- the WAL tells which row was updated or deleted. `columns` are those that are published.
with recursive asked as (
    select w.schema, w.name, c.oid, c.relkind
    from unnest($1::text[], $2::text[]) as w (schema, name)
    join pg_catalog.pg_namespace as n on n.nspname = w.schema
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name and c.relkind in ('r', 'p')
),
family(root, oid) as (
    select oid, oid from asked
    union
    select f.root, i.inhrelid from pg_catalog.pg_inherits as i join family as f on i.inhparent = f.oid
),
published as (
    select p.schemaname, p.tablename, pg_catalog.to_jsonb(p) -> 'attnames' as columns  -- from 15 on
    from pg_catalog.pg_publication_tables as p where p.pubname = $3
),
member as (
    select f.root, c.oid, c.relkind, c.relreplident, c.relpersistence, n.nspname, c.relname
    from family as f
    join pg_catalog.pg_class as c on c.oid = f.oid
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
)
select
    a.schema,
    a.name,
    a.oid::int8 as oid,
    a.relkind = 'p' as is_partitioned,
    coalesce(
        (
            select array(select pg_catalog.jsonb_array_elements_text(p.columns))
            from member as m join published as p on p.schemaname = m.nspname and p.tablename = m.relname
            where m.root = a.oid and p.columns is not null
            order by m.oid limit 1
        ),
        array(
            select t.attname::text from pg_catalog.pg_attribute as t
            where t.attrelid = a.oid and t.attnum > 0 and not t.attisdropped and t.attgenerated = ''
            order by t.attnum
        )
    ) as columns,
    (
        select pg_catalog.json_agg(
            pg_catalog.json_build_object(
                'oid', m.oid::int8,
                'name', pg_catalog.concat(m.nspname, '.', m.relname),
                'is_logged', m.relpersistence = 'p',
                'is_full', m.relreplident = 'f',
                'is_published', exists (
                    select from published as p
                    where p.schemaname = m.nspname and p.tablename = m.relname
                ),
                'has_identity', case m.relreplident
                    when 'f' then true
                    when 'd' then exists (
                        select from pg_catalog.pg_index as i
                        where i.indrelid = m.oid and i.indisprimary and i.indimmediate
                    )
                    when 'i' then exists (
                        select from pg_catalog.pg_index as i
                        join pg_catalog.pg_index as k on k.indrelid = i.indrelid and k.indisprimary
                        where i.indrelid = m.oid and i.indisreplident
                            and not exists (
                                select unnest(k.indkey::int2[]) except select unnest(i.indkey::int2[])
                            )
                    )
                    else false
                end
            )
            order by m.oid
        )
        from member as m where m.root = a.oid and m.relkind = 'r'
    )::text as members
from asked as a

-- :: wal_types
-- Arrays of built-in types, and domains over built-in types: what their texts become.
select
    t.oid::int8 as oid,
    t.typelem::int8 as element,
    t.typdelim::text as delimiter,
    t.typbasetype::int8 as base
from pg_catalog.pg_type as t
where t.oid::int8 < 16384 and t.typcategory = 'A' and t.typelem <> 0::oid
    or t.oid::int8 >= 16384 and t.typtype = 'd' and t.typbasetype::int8 < 16384

-- :: wal_is_there
select exists (select from pg_catalog.pg_class as c where c.oid::int8 = $1::int8)

-- :: wal_snapshot
-- The current snapshot, and a place in the WAL behind the commits that it sees.
select
    pg_catalog.pg_current_snapshot()::text as seen,
    (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8 as lsn

-- :: wal_emit
-- Tell the relay how far the WAL is once a snapshot was taken: it stores a checkpoint when it is there.
select (pg_catalog.pg_logical_emit_message(false, 'rowsignal', '') - '0/0'::pg_lsn)::int8
