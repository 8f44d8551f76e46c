-- What the page asks of the change log. Each question reads a bounded number of changes, the newest
-- first, whose transaction ids the log's only index knows; the answer says whether that was all.

-- :: page_relations
-- The relations whose changes are those of the given tables ($1: schemas, $2: names): partitions
-- count as their root.
select n.nspname::text as schema, c.relname::text as name, t.relation::bigint, t.relation <> c.oid as is_part
from unnest($1::text[], $2::text[]) as w (schema, name)
join pg_catalog.pg_namespace as n on n.nspname = w.schema
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name
cross join lateral (
    select c.oid as relation
    union
    select p.relid::oid from pg_catalog.pg_partition_tree(c.oid) as p
) as t

-- :: page_has_log
select pg_catalog.to_regclass('rowsignal.change') is not null

-- :: page_is_within
-- Whether the log has no more changes than a number ($1).
select not exists (select from rowsignal.change as c order by c.xid desc offset $1 limit 1)

-- :: page_recent
-- The newest changes of some relations ($1) among the newest of all ($2), at most so many ($3).
select
    c.id, c.xid::text as xid, c.captured_at, c.relation::bigint, c.operation::text, c.key::text, c.changed,
    c.old_row::text, c.new_row::text
from (select * from rowsignal.change order by xid desc limit $2) as c
where c.relation = any ($1::oid[])
order by c.xid desc, c.id desc
limit $3

-- :: page_row
-- The same for one row, whose key columns ($4) have these texts ($5), and whatever emptied its table.
select
    c.id, c.xid::text as xid, c.captured_at, c.relation::bigint, c.operation::text, c.key::text, c.changed,
    c.old_row::text, c.new_row::text
from (select * from rowsignal.change order by xid desc limit $2) as c
where c.relation = any ($1::oid[])
    and (c.operation = 't' or not exists (
        select from unnest($4::text[], $5::text[]) as k (name, content)
        where c.key ->> k.name is distinct from k.content
    ))
order by c.xid desc, c.id desc
limit $3

-- :: page_transaction
-- Changes of one transaction ($4), in the order in which they were made. The inner bound keeps a
-- transaction of millions of changes from being sorted.
select
    c.id, c.xid::text as xid, c.captured_at, c.relation::bigint, c.operation::text, c.key::text, c.changed,
    c.old_row::text, c.new_row::text
from (select * from rowsignal.change where xid = $4::text::xid8 limit $2) as c
where c.relation = any ($1::oid[])
order by c.id
limit $3

-- :: page_timeline
-- How many changes there were in each fraction of a second ($3) of the last while ($4, seconds).
select
    c.relation::bigint, c.operation::text,
    floor(date_part('epoch', c.captured_at) / $3::float8) * $3::float8 as at, count(*) as number
from (select * from rowsignal.change order by xid desc limit $2) as c
where c.relation = any ($1::oid[])
    and c.captured_at > pg_catalog.clock_timestamp() - $4::float8 * interval '1 second'
group by 1, 2, 3
order by 3
