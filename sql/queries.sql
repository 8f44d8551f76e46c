-- What the installer asks the catalogue. Works where schema rowsignal does not exist.

-- :: has_schema
-- Whether there is a schema of which the current role may read the version; no row without one. A
-- plain table with a column that no role can attach code to: the schema may be another role's.
select pg_catalog.has_table_privilege(c.oid, 'SELECT') and pg_catalog.has_schema_privilege(n.oid, 'USAGE')
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
join pg_catalog.pg_attribute as a on a.attrelid = c.oid
where n.nspname = 'rowsignal' and c.relname = 'migration' and c.relkind = 'r'
    and not c.relrowsecurity and a.attname = 'version' and a.atttypid = 'pg_catalog.int4'::regtype::oid

-- :: schema_version
select coalesce(pg_catalog.max(version), 0) from only rowsignal.migration

-- :: record_migration
insert into rowsignal.migration (version, name) values (:version, :name) on conflict do nothing

-- :: schema_functions
select p.proname::text as name, pg_catalog.md5(p.prosrc) as digest, p.prosecdef as is_definer,
    coalesce(pg_catalog.replace(pg_catalog.array_to_string(p.proconfig, ';'), '"', '')
        like '%search_path=pg_catalog, pg_temp%', false) as is_pinned
from pg_catalog.pg_proc as p
join pg_catalog.pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'rowsignal'

-- :: schema_rights
-- What PUBLIC (0), or a role of the owner's default privileges, may do and should not, and what PUBLIC
-- should and may not: pg_restore --no-privileges leaves functions open and the schema closed. :open
-- names the functions for PUBLIC. Calls no function of the schema, which may be another role's.
with schema as (
    select n.* from pg_catalog.pg_namespace as n where n.nspname = 'rowsignal'
),
grantee as (
    select 0::oid as oid
    union
    select a.grantee from pg_catalog.pg_default_acl as d
    cross join schema as s cross join lateral pg_catalog.aclexplode(d.defaclacl) as a
    where d.defaclnamespace in (0::oid, s.oid) and d.defaclrole = s.nspowner and a.grantee <> s.nspowner
),
object (description, rights, is_open) as (
    select pg_catalog.concat('function rowsignal.', p.proname),
        coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)),
        p.proname::text = any (cast(:open as text[]))
    from pg_catalog.pg_proc as p join schema as s on s.oid = p.pronamespace
    union all
    select pg_catalog.concat(case c.relkind when 'S' then 'sequence' else 'table' end, ' rowsignal.', c.relname),
        c.relacl, c.relname = 'migration'
    from pg_catalog.pg_class as c join schema as s on s.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'S')
    union all
    select 'schema rowsignal', s.nspacl, true from schema as s
),
given as (
    select o.description, o.is_open, g.oid as grantee, a.privilege_type
    from object as o cross join lateral pg_catalog.aclexplode(o.rights) as a
    join grantee as g on g.oid = a.grantee
)
select pg_catalog.concat(
    case g.grantee when 0::oid then 'Every role' else pg_catalog.concat('Role ', r.rolname) end,
    ' has ', g.privilege_type, ' on ', g.description, '.')
from given as g left join pg_catalog.pg_roles as r on r.oid = g.grantee
where not (g.is_open and g.grantee = 0::oid and g.privilege_type in ('EXECUTE', 'SELECT', 'USAGE'))
union all
select pg_catalog.concat('Writers and readers lack their rights on ', o.description, '.')
from object as o
where o.is_open and not exists (
    select from given as g where g.description = o.description and g.grantee = 0::oid)
order by 1

-- :: installation_lock
lock table rowsignal.migration in share row exclusive mode

-- :: table_activity
-- For each relation (:relations): how many rows were written since statistics began, as PostgreSQL
-- counts them, and the file, which TRUNCATE changes. Nothing where it does not count: with
-- track_counts off, on a standby, and for foreign tables, which are written elsewhere.
select c.oid::bigint,
    pg_catalog.pg_stat_get_tuples_inserted(c.oid) + pg_catalog.pg_stat_get_tuples_updated(c.oid)
    + pg_catalog.pg_stat_get_tuples_deleted(c.oid) as written,
    coalesce(pg_catalog.pg_relation_filenode(c.oid)::bigint, 0) as file
from pg_catalog.pg_class as c
where c.oid = any (cast(cast(:relations as bigint[]) as oid[]))
    and c.relkind in ('r', 'p')
    and pg_catalog.current_setting('track_counts')::boolean
    and not pg_catalog.pg_is_in_recovery();

-- :: captures
-- Tables asked for (:asked, JSON: tables as pairs of schema or null and name) in that order; then,
-- if with_strays is true, those that carry triggers of ours without having been asked for. Each
-- comes with its partitions or children, and all of our triggers on them, clones included.
with recursive request as materialized (
    select cast(:asked as json) as asked
),
asked as (
    select item.place, item.value ->> 0 as schema, item.value ->> 1 as name,
           pg_catalog.to_regclass(pg_catalog.concat(pg_catalog.quote_ident(item.value ->> 0) || '.', pg_catalog.quote_ident(item.value ->> 1)))::oid as root
    from request, pg_catalog.json_array_elements(asked -> 'tables'::text) with ordinality as item(value, place)
),
ours as (
    -- A function made for a table says in its first line when it needs no pinned settings.
    select oid as function, proname as name, pg_catalog.md5(prosrc) as digest, prosecdef as is_definer,
        prosrc like E'\n-- No setting of the session matters here%' or
        coalesce(pg_catalog.replace(pg_catalog.array_to_string(proconfig, ';'), '"', '')
        like '%search_path=pg_catalog, pg_temp%', false) as is_pinned
    from pg_catalog.pg_proc
    where pronamespace = (select oid from pg_catalog.pg_namespace where nspname = 'rowsignal')
      and prorettype = 'trigger'::regtype::oid
),
family(root, relation) as (
    select distinct root, root from asked where root is not null
    union
    select f.root, i.inhrelid from pg_catalog.pg_inherits i join family f on i.inhparent = f.relation
),
everybody as (
    select place, schema, name, root, false as is_stray from asked
    union all
    select distinct cast(null as bigint), cast(null as text), cast(null as text), t.tgrelid, true
    from request, ours o join pg_catalog.pg_trigger t on t.tgfoid = o.function join pg_catalog.pg_class c on c.oid = t.tgrelid
    where (asked ->> 'with_strays'::text)::boolean and not c.relispartition
      and t.tgrelid not in (select relation from family)
)
select e.is_stray, coalesce(n.nspname, e.schema)::text as schema, coalesce(c.relname, e.name)::text as name,
    e.root::bigint as oid, c.relkind::text as kind,
    array(select a.attname::text
          from pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::smallint[]) with ordinality as k(number, place), pg_catalog.pg_attribute a
          where i.indrelid = e.root and i.indisprimary and k.place <= i.indnkeyatts
            and a.attrelid = e.root and a.attnum = k.number order by k.place) as key_columns,
    -- whether readers write the key as triggers do, whose JSON follows casts to json
    not exists (
        select from pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::smallint[]) as k(number), pg_catalog.pg_attribute a, pg_catalog.pg_type t
        where i.indrelid = e.root and i.indisprimary and a.attrelid = e.root and a.attnum = k.number
            and t.oid = a.atttypid and t.oid::bigint >= 16384
            and t.typbasetype::bigint not between 1 and 16383
            and (t.typtype not in ('b', 'e', 'r') or t.typelem <> 0::oid or exists (
                select from pg_catalog.pg_cast x where x.castsource = t.oid and x.casttarget = 'json'::regtype::oid))
    ) as has_plain_key,
    c.relrowsecurity as has_row_security,
    array(select a.attname::text from pg_catalog.pg_attribute a
          where a.attrelid = e.root and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
    (select pg_catalog.json_agg(pg_catalog.json_build_object(
        'oid', m.oid::bigint, 'kind', m.relkind, 'is_partition', m.relispartition, 'shape', (
            select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat(a.attname, ' ', t.typname, a.atttypmod), ',' order by a.attnum))
            from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
            where a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped),
        'triggers', (
            select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', t.tgname, 'function', o.name, 'digest', o.digest, 'is_definer', o.is_definer,
                'is_pinned', o.is_pinned, 'type', t.tgtype,
                'is_enabled', t.tgenabled in ('O', 'A'), 'is_clone', t.tgparentid <> 0::oid,
                'definition', pg_catalog.pg_get_triggerdef(t.oid), 'arguments', (
                    -- tgargs has a zero byte after each argument
                    select pg_catalog.json_agg(pg_catalog.convert_from(pg_catalog.decode(pg_catalog.replace(part, ' ', ''), 'hex'), pg_catalog.getdatabaseencoding())
                                    order by place)
                    from pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.regexp_replace(pg_catalog.encode(t.tgargs, 'hex'), '(..)', E'\\1 ', 'g'), '00 '))
                        with ordinality as piece(part, place)))), '[]')
            from pg_catalog.pg_trigger t join ours o on o.function = t.tgfoid where t.tgrelid = m.oid))
        order by m.oid <> e.root, m.oid)
     from (select e.root union select f.relation from family f where f.root = e.root) as belonging(oid)
     join pg_catalog.pg_class m using (oid))::text as members
from everybody e left join pg_catalog.pg_class c on c.oid = e.root left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
order by e.place, 2, 3
