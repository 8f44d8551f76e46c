-- What has to be known of tables to read their rows without running code of the tables' owners.

-- :: table_shapes
-- For each table ($1: schemas, $2: names) that exists: its columns, those whose type is a domain over
-- a built-in type, and its primary key. A key column comes with the type to convert a key's text to
-- (a domain's base type, so that no check of the domain runs) and with the operator of the index:
-- an operator class, unlike an operator, can be made by superusers only.
select
    n.nspname::text as schema,
    c.relname::text as name,
    c.oid::bigint as oid,
    pg_catalog.row_security_active(c.oid) as has_row_security,
    c.relkind = 'r' and exists (
        select from pg_catalog.pg_inherits as i where i.inhparent = c.oid
    ) as has_children,
    array(
        select a.attname::text from pg_catalog.pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        order by a.attnum
    ) as columns,
    array(
        select distinct t.oid::bigint
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_type as t on t.oid = a.atttypid
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            and t.oid::bigint >= 16384 and t.typbasetype::bigint between 1 and 16383
        order by t.oid::bigint
    ) as plain_domains,
    (
        select pg_catalog.json_agg(
            pg_catalog.json_build_object(
                'name', a.attname,
                'base', b.oid::bigint,
                'type', pg_catalog.format_type(b.oid, -1) || coalesce(
                    ' collate ' || case when a.attcollation <> b.typcollation then
                        pg_catalog.quote_ident(ln.nspname) || '.' || pg_catalog.quote_ident(l.collname)
                    end, ''
                ),
                'is_deterministic', coalesce(l.collisdeterministic, true),
                'equality', pg_catalog.quote_ident(opn.nspname) || '.' || op.oprname
            )
            order by k.place
        )
        from pg_catalog.pg_index as i
        cross join lateral rows from (
            unnest(i.indkey::smallint[]), unnest(i.indclass::oid[])
        ) with ordinality as k (number, class, place)
        join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum = k.number
        join pg_catalog.pg_type as t on t.oid = a.atttypid
        cross join lateral (
            with recursive chain as (
                select t.oid as oid, t.typbasetype as base, 0 as depth
                union all
                select x.oid, x.typbasetype, ch.depth + 1
                from chain as ch join pg_catalog.pg_type as x on x.oid = ch.base
            )
            select ch.oid from chain as ch order by ch.depth desc limit 1
        ) as root
        join pg_catalog.pg_type as b on b.oid = root.oid
        join pg_catalog.pg_opclass as oc on oc.oid = k.class
        join pg_catalog.pg_amop as am on am.amopfamily = oc.opcfamily and am.amopstrategy = 3
            and am.amoplefttype = oc.opcintype and am.amoprighttype = oc.opcintype
        join pg_catalog.pg_operator as op on op.oid = am.amopopr
        join pg_catalog.pg_namespace as opn on opn.oid = op.oprnamespace
        left join pg_catalog.pg_collation as l on l.oid = a.attcollation
        left join pg_catalog.pg_namespace as ln on ln.oid = l.collnamespace
        where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
    )::text as key
from unnest($1::text[], $2::text[]) as w (schema, name)
join pg_catalog.pg_namespace as n on n.nspname = w.schema
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name
    and c.relkind in ('r', 'p', 'f', 'v', 'm')
