-- How a value of any type becomes text or JSON without running code of the type's owner.
--
-- A user can attach code to a type: a cast (CREATE CAST ... WITH FUNCTION), operators, the checks of
-- a domain. to_json looks for such a cast, `::text` does, `=` may. Output functions cannot be user
-- code: they take and return internal types, so only a superuser can define one (PostgreSQL manual,
-- CREATE TYPE). format('%s', value) calls the output function and nothing else.

-- :: plain types
-- Whether to_json of the type runs built-in code alone: a built-in type, or a domain over one.
-- to_json looks through domains, and looks for casts from 16384 (the first id of a user's type) on.
create or replace function rowsignal.is_plain_v1(type oid) returns boolean
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select type::bigint < 16384 or exists (
        select from pg_type as t where t.oid = type and t.typbasetype::bigint between 1 and 16383)
$rowsignal$;

-- :: value as JSON
-- A value as JSON: as to_json writes it where the type is plain, else its text as a string.
-- Written to be inlined into queries, hence without SET and with every name qualified.
create or replace function rowsignal.value_v1(value anyelement) returns json
language sql stable parallel safe
as $rowsignal$
    select case
        when pg_catalog.int8(pg_catalog.pg_typeof(value)::pg_catalog.oid)
                operator(pg_catalog.<) 16384::pg_catalog.int8
            or rowsignal.is_plain_v1(pg_catalog.pg_typeof(value))
        then pg_catalog.to_json(value)
        when pg_catalog.num_nulls(value) operator(pg_catalog.=) 0
        then pg_catalog.to_json(pg_catalog.format('%s', value)) end
$rowsignal$;

-- :: key value
-- A key column's value as hints carry it: JSON, nested values as the string of their text. The
-- settings that decide how a date, an interval, a float or a bytea is written are pinned here and in
-- the hint trigger: two sessions must write one key the same way.
create or replace function rowsignal.key_value_v1(value anyelement) returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
set "TimeZone" = 'UTC' set "DateStyle" = 'ISO, YMD' set "IntervalStyle" = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 set lc_monetary = 'C'
as $rowsignal$
    select case when json_typeof(v.image) in ('object', 'array', 'null')
        then to_json(v.image::text)::text else v.image::text end
    from (select rowsignal.value_v1(value) as image) as v
$rowsignal$;
