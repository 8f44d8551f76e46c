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

-- :: captures
-- Tables asked for (:asked, JSON: tables as pairs of schema or null and name) in that order; then,
-- if with_strays is true, those that carry triggers of ours without having been asked for. Each
-- comes with its partitions or children, and all of our triggers on them, clones included.
WITH RECURSIVE request AS MATERIALIZED (
    SELECT CAST(:asked AS json) AS asked
),
asked AS (
    SELECT item.place, item.value ->> 0 AS schema, item.value ->> 1 AS name,
           pg_catalog.to_regclass(pg_catalog.concat(pg_catalog.quote_ident(item.value ->> 0) || '.', pg_catalog.quote_ident(item.value ->> 1)))::oid AS root
    FROM request, pg_catalog.json_array_elements(asked -> 'tables'::text) WITH ORDINALITY AS item(value, place)
),
ours AS (
    -- A function made for a table says in its first line when it needs no pinned settings.
    SELECT oid AS function, proname AS name, pg_catalog.md5(prosrc) AS digest, prosecdef AS is_definer,
        prosrc like E'\n-- No setting of the session matters here%' OR
        coalesce(pg_catalog.replace(pg_catalog.array_to_string(proconfig, ';'), '"', '')
        like '%search_path=pg_catalog, pg_temp%', false) AS is_pinned
    FROM pg_catalog.pg_proc
    WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'rowsignal')
      AND prorettype = 'trigger'::regtype::oid
),
family(root, relation) AS (
    SELECT DISTINCT root, root FROM asked WHERE root IS NOT NULL
    UNION
    SELECT f.root, i.inhrelid FROM pg_catalog.pg_inherits i JOIN family f ON i.inhparent = f.relation
),
everybody AS (
    SELECT place, schema, name, root, false AS is_stray FROM asked
    UNION ALL
    SELECT DISTINCT CAST(NULL AS bigint), CAST(NULL AS text), CAST(NULL AS text), t.tgrelid, true
    FROM request, ours o JOIN pg_catalog.pg_trigger t ON t.tgfoid = o.function JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    WHERE (asked ->> 'with_strays'::text)::boolean AND NOT c.relispartition
      AND t.tgrelid NOT IN (SELECT relation FROM family)
)
SELECT e.is_stray, coalesce(n.nspname, e.schema)::text AS schema, coalesce(c.relname, e.name)::text AS name,
    e.root::bigint AS oid, c.relkind::text AS kind,
    ARRAY(SELECT a.attname::text
          FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place), pg_catalog.pg_attribute a
          WHERE i.indrelid = e.root AND i.indisprimary AND k.place <= i.indnkeyatts
            AND a.attrelid = e.root AND a.attnum = k.number ORDER BY k.place) AS key_columns,
    -- whether readers write the key as triggers do, whose JSON follows casts to json
    NOT EXISTS (
        SELECT FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::smallint[]) AS k(number), pg_catalog.pg_attribute a, pg_catalog.pg_type t
        WHERE i.indrelid = e.root AND i.indisprimary AND a.attrelid = e.root AND a.attnum = k.number
            AND t.oid = a.atttypid AND t.oid::bigint >= 16384
            AND t.typbasetype::bigint NOT BETWEEN 1 AND 16383
            AND (t.typtype NOT IN ('b', 'e', 'r') OR t.typelem <> 0::oid OR EXISTS (
                SELECT FROM pg_catalog.pg_cast x WHERE x.castsource = t.oid AND x.casttarget = 'json'::regtype::oid))
    ) AS has_plain_key,
    c.relrowsecurity AS has_row_security,
    ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = e.root AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns,
    (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'oid', m.oid::bigint, 'kind', m.relkind, 'is_partition', m.relispartition, 'shape', (
            SELECT pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat(a.attname, ' ', t.typname, a.atttypmod), ',' ORDER BY a.attnum))
            FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'triggers', (
            SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
                'name', t.tgname, 'function', o.name, 'digest', o.digest, 'is_definer', o.is_definer,
                'is_pinned', o.is_pinned, 'type', t.tgtype,
                'is_enabled', t.tgenabled IN ('O', 'A'), 'is_clone', t.tgparentid <> 0::oid,
                'definition', pg_catalog.pg_get_triggerdef(t.oid), 'arguments', (
                    -- tgargs has a zero byte after each argument
                    SELECT pg_catalog.json_agg(pg_catalog.convert_from(pg_catalog.decode(pg_catalog.replace(part, ' ', ''), 'hex'), pg_catalog.getdatabaseencoding())
                                    ORDER BY place)
                    FROM pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.regexp_replace(pg_catalog.encode(t.tgargs, 'hex'), '(..)', E'\\1 ', 'g'), '00 '))
                        WITH ORDINALITY AS piece(part, place)))), '[]')
            FROM pg_catalog.pg_trigger t JOIN ours o ON o.function = t.tgfoid WHERE t.tgrelid = m.oid))
        ORDER BY m.oid <> e.root, m.oid)
     FROM (SELECT e.root UNION SELECT f.relation FROM family f WHERE f.root = e.root) AS belonging(oid)
     JOIN pg_catalog.pg_class m USING (oid))::text AS members
FROM everybody e LEFT JOIN pg_catalog.pg_class c ON c.oid = e.root LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY e.place, 2, 3
