-- What the installer asks the catalogue. Works where schema rowsignal does not exist.

-- :: has_schema
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rowsignal' AND c.relname = 'migration')

-- :: record_migration
insert into rowsignal.migration (version, name) values (:version, :name) on conflict do nothing

-- :: schema_functions
select p.proname::text as name, pg_catalog.md5(p.prosrc) as digest, p.prosecdef as is_definer,
    coalesce(p.proconfig::text like '%search_path=pg_catalog, pg_temp%', false) as is_pinned
from pg_catalog.pg_proc as p
join pg_catalog.pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'rowsignal'

-- :: schema_rights
-- What PUBLIC may do and should not, and what it should and may not: pg_restore --no-privileges
-- leaves functions open and the schema closed.
select 'Everybody may execute rowsignal.' || p.proname || '.'
from pg_catalog.pg_proc as p
where p.pronamespace = 'rowsignal'::regnamespace
    and pg_catalog.has_function_privilege('public', p.oid, 'EXECUTE')
    and p.oid not in (select f.function::oid from rowsignal.open_functions_v1() as f(function))
union all
select 'Not everybody may execute ' || f.function::text || ', which writers call.'
from rowsignal.open_functions_v1() as f(function)
where not pg_catalog.has_function_privilege('public', f.function, 'EXECUTE')
union all
select 'Everybody has rights on rowsignal.' || c.relname || '.'
from pg_catalog.pg_class as c
where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
    and pg_catalog.has_table_privilege('public', c.oid,
        case c.relname when 'migration' then 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'
            else 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER' end)
union all
select 'Not everybody may use schema rowsignal, as writers of watched tables must.'
where not pg_catalog.has_schema_privilege('public', 'rowsignal', 'USAGE')

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
           to_regclass(concat(quote_ident(item.value ->> 0) || '.', quote_ident(item.value ->> 1)))::oid AS root
    FROM request, json_array_elements(asked -> 'tables') WITH ORDINALITY AS item(value, place)
),
ours AS (
    SELECT oid AS function, proname AS name, md5(prosrc) AS digest, prosecdef AS is_definer,
        coalesce(proconfig::text LIKE '%search_path=pg_catalog, pg_temp%', false) AS is_pinned
    FROM pg_proc
    WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'rowsignal')
      AND prorettype = 'trigger'::regtype
),
family(root, relation) AS (
    SELECT DISTINCT root, root FROM asked WHERE root IS NOT NULL
    UNION
    SELECT f.root, i.inhrelid FROM pg_inherits i JOIN family f ON i.inhparent = f.relation
),
everybody AS (
    SELECT place, schema, name, root, false AS is_stray FROM asked
    UNION ALL
    SELECT DISTINCT CAST(NULL AS bigint), CAST(NULL AS text), CAST(NULL AS text), t.tgrelid, true
    FROM request, ours o JOIN pg_trigger t ON t.tgfoid = o.function JOIN pg_class c ON c.oid = t.tgrelid
    WHERE (asked ->> 'with_strays')::boolean AND NOT c.relispartition
      AND t.tgrelid NOT IN (SELECT relation FROM family)
)
SELECT e.is_stray, coalesce(n.nspname, e.schema)::text AS schema, coalesce(c.relname, e.name)::text AS name,
    e.root::bigint AS oid, c.relkind::text AS kind,
    ARRAY(SELECT a.attname::text
          FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place), pg_attribute a
          WHERE i.indrelid = e.root AND i.indisprimary AND k.place <= i.indnkeyatts
            AND a.attrelid = e.root AND a.attnum = k.number ORDER BY k.place) AS key_columns,
    -- whether readers write the key as triggers do, whose JSON follows casts to json
    NOT EXISTS (
        SELECT FROM pg_index i, unnest(i.indkey::smallint[]) AS k(number), pg_attribute a, pg_type t
        WHERE i.indrelid = e.root AND i.indisprimary AND a.attrelid = e.root AND a.attnum = k.number
            AND t.oid = a.atttypid AND t.oid::bigint >= 16384
            AND t.typbasetype::bigint NOT BETWEEN 1 AND 16383
            AND (t.typtype NOT IN ('b', 'e', 'r') OR t.typelem <> 0 OR EXISTS (
                SELECT FROM pg_cast x WHERE x.castsource = t.oid AND x.casttarget = 'json'::regtype))
    ) AS has_plain_key,
    c.relrowsecurity AS has_row_security,
    ARRAY(SELECT a.attname::text FROM pg_attribute a
          WHERE a.attrelid = e.root AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns,
    (SELECT json_agg(json_build_object(
        'oid', m.oid::bigint, 'kind', m.relkind, 'is_partition', m.relispartition, 'shape', (
            SELECT md5(string_agg(concat(a.attname, ' ', t.typname, a.atttypmod), ',' ORDER BY a.attnum))
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'triggers', (
            SELECT coalesce(json_agg(json_build_object(
                'name', t.tgname, 'function', o.name, 'digest', o.digest, 'is_definer', o.is_definer,
                'is_pinned', o.is_pinned, 'type', t.tgtype,
                'is_enabled', t.tgenabled IN ('O', 'A'), 'is_clone', t.tgparentid <> 0,
                'definition', pg_get_triggerdef(t.oid), 'arguments', (
                    -- tgargs has a zero byte after each argument
                    SELECT json_agg(convert_from(decode(replace(part, ' ', ''), 'hex'), getdatabaseencoding())
                                    ORDER BY place)
                    FROM unnest(string_to_array(regexp_replace(encode(t.tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 '))
                        WITH ORDINALITY AS piece(part, place)))), '[]')
            FROM pg_trigger t JOIN ours o ON o.function = t.tgfoid WHERE t.tgrelid = m.oid))
        ORDER BY m.oid <> e.root, m.oid)
     FROM (SELECT e.root UNION SELECT f.relation FROM family f WHERE f.root = e.root) AS belonging(oid)
     JOIN pg_class m USING (oid))::text AS members
FROM everybody e LEFT JOIN pg_class c ON c.oid = e.root LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY e.place, 2, 3
