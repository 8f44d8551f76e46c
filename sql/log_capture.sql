-- Log capture: write every change of a row into rowsignal.change, in the transaction that makes it.
--
-- The triggers are statement-level with transition tables, one for each event. Their functions are
-- generated for the columns of a table. They run with the rights of the schema's owner, since no
-- other role may write to the log, and therefore use nothing that could run code of the table's
-- owner: values of user-defined types are written by their output functions (values.sql), and
-- operators are applied to built-in types alone. No role but the owner may execute them, so no role
-- can make a trigger that calls them, or call them otherwise, to forge a change.

-- :: key value of a logged row
-- Integers, booleans and strings as such, everything else as the string of its JSON text.
create or replace function rowsignal.log_value_v2(value json) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select case when json_typeof(value) in ('boolean', 'string') or value::text ~ '^-?[0-9]+$' then value::jsonb
                else to_jsonb(value::text) end
$rowsignal$;

-- :: values of a logged row
-- A row as jsonb; null where jsonb cannot hold it: \u0000, half a surrogate pair, a number beyond
-- numeric, a string over 256 MB. The change is then logged without its values.
create or replace function rowsignal.log_row_v2(image record) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    return row_to_json(image)::jsonb;
exception when others then
    return null;
end
$rowsignal$;

-- :: wake
-- Readers sleep while there is nothing to read. Called after the insert: a reader that is about to
-- sleep checks first for transactions that write to the log. One notification a transaction will do.
create or replace function rowsignal.wake_v2() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    if current_setting('rowsignal.woken', true) = pg_current_xact_id()::text then
        return;
    end if;
    if rowsignal.is_wanted_v2(1000, '{}') then
        perform pg_notify('rowsignal_log', '');
        perform set_config('rowsignal.woken', pg_current_xact_id()::text, true);
    end if;
end
$rowsignal$;

-- :: TRUNCATE
create or replace function rowsignal.capture_log_truncate_v2() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    insert into rowsignal.change (relation, operation) values (TG_RELID, 't');
    begin
        if (TG_ARGV[2]::json ->> 'notify')::boolean is not false then
            perform rowsignal.wake_v2();
        end if;
    exception when others then
        raise warning 'rowsignal could not wake the readers of the change log: %', SQLERRM;
    end;
    return null;
exception when undefined_table then -- as when rows are logged: without a log there is nothing to lose
    raise warning 'rowsignal.change is missing: the truncation of % is not logged', TG_RELID::regclass;
    return null;
end
$rowsignal$;

-- :: same type
-- Parses only while both arguments have one and the same type: no cast is tried for anyelement.
-- A generated function names the types it was made for with it, so that a column whose type was
-- changed since makes the query fail before any operator or cast of the new type is looked for.
create or replace function rowsignal.alike_v1(anyelement, anyelement) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $rowsignal$
    select true
$rowsignal$;

-- :: expressions for a column
-- How to compare and write a column, as SQL over the rows o (before) and n (after). For the types
-- listed, equality is equality of what is stored; a collation may call different texts equal, "C"
-- does not. For other types (1.0 and 1.00, citext, json, which has no equality) the stored image is
-- compared, which calls no operator of the type, and a key is joined by its text.
create or replace function rowsignal.column_expressions_v2(relation oid)
returns table (
    name text, place integer, old_value text, new_value text, differs text, same text, check_type text,
    old_key text, new_key text, is_plain boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select a.attname, a.attnum,
        concat('rowsignal.value_v1(', r.o, ')'), concat('rowsignal.value_v1(', r.n, ')'),
        case when k.is_exact then concat(r.o, ' is distinct from ', r.n, k.binary_collation)
             else concat('row(', r.o, ')::record *<> row(', r.n, ')::record') end,
        case when k.is_exact then concat(r.o, ' = ', r.n, k.binary_collation)
             else concat('rowsignal.value_v1(', r.o, ')::text = rowsignal.value_v1(', r.n, ')::text') end,
        case when k.is_exact then concat(', null::', format_type(a.atttypid, null)) end,
        case when k.is_exact then r.o else concat('rowsignal.log_value_v2(rowsignal.value_v1(', r.o, '))') end,
        case when k.is_exact then r.n else concat('rowsignal.log_value_v2(rowsignal.value_v1(', r.n, '))') end,
        k.is_exact and t.typname not in ('date', 'timestamp', 'timestamptz', 'time', 'bytea')
    from pg_attribute as a join pg_type as t on t.oid = a.atttypid
    cross join lateral (select 'o.' || quote_ident(a.attname) as o, 'n.' || quote_ident(a.attname) as n) as r
    cross join lateral (select
        t.typnamespace = 'pg_catalog'::regnamespace and t.typname in ('int2', 'int4', 'int8', 'bool', 'oid',
            'text', 'varchar', 'uuid', 'date', 'timestamp', 'timestamptz', 'time', 'bytea') as is_exact,
        case when t.typname in ('text', 'varchar') then ' collate "C"' else '' end as binary_collation) as k
    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
$rowsignal$;

-- :: parts of a log statement
-- The pieces of SQL from which the statements of one table and event are put together, each made
-- once from quoted names: no text that holds a name is searched or formatted again. `old_` and `new_`
-- are expressions of the row before (o) and after (n), `changed` is the array of the columns that
-- differ, `same` joins the two by key. `checked` is a query that parses only while the table has the
-- columns and types that the pieces were made for.
create or replace function rowsignal.log_parts_v1(
    relation oid, event text, settings jsonb, key_columns text[],
    out old_key text, out new_key text, out old_kept text, out new_kept text,
    out changed text, out same text, out old_first text, out new_first text, out checked text,
    out needs_pins boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select
        case when keys.are_there then concat('jsonb_build_object(', keys.old, ')') else 'null::jsonb' end,
        case when keys.are_there then concat('jsonb_build_object(', keys.new, ')') else 'null::jsonb' end,
        coalesce('(select rowsignal.log_row_v2(r.*) from (select ' || kept.old || ') as r)', 'null::jsonb'),
        coalesce('(select rowsignal.log_row_v2(r.*) from (select ' || kept.new || ') as r)', 'null::jsonb'),
        concat('array_remove(array[', columns.changed, ']::text[], null)'),
        case when keys.are_there then keys.same else 'false' end,
        concat('o.', quote_ident(key_columns[1])), concat('n.', quote_ident(key_columns[1])),
        concat('select ', one.row, '.* union all select ', names.all, ' from rowsignal.change where ',
            coalesce(columns.checks, 'true')),
        keys.needs_pins or kept.old is not null
    from (select case event when 'delete' then 'o' else 'n' end) as one(row),
    lateral (
        select string_agg(concat(one.row, '.', quote_ident(a.attname)), ', ' order by a.attnum) as all
        from pg_attribute as a
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
    ) as names,
    lateral (
        select string_agg(concat('rowsignal.alike_v1(', one.row, '.', quote_ident(c.name), c.check_type, ')'), ' and ')
                filter (where c.check_type is not null) as checks,
            string_agg(concat('case when ', c.differs, ' then ', quote_literal(c.name), ' end'), ', ' order by c.place)
                filter (where coalesce(settings -> 'columns' ? c.name, true)
                    and coalesce(not settings -> 'exclude' ? c.name, true)) as changed
        from rowsignal.column_expressions_v2(relation) as c
    ) as columns,
    (
        select count(*) = cardinality(key_columns) as are_there,
            string_agg(concat(quote_literal(c.name), ', ', c.old_key), ', ' order by k.place) as old,
            string_agg(concat(quote_literal(c.name), ', ', c.new_key), ', ' order by k.place) as new,
            string_agg(c.same, ' and ' order by k.place) as same,
            bool_or(not c.is_plain) as needs_pins
        from unnest(key_columns) with ordinality as k(name, place)
        join rowsignal.column_expressions_v2(relation) as c on c.name = k.name
    ) as keys,
    (
        select string_agg(concat(c.old_value, ' as ', quote_ident(c.name)), ', ' order by c.place) as old,
            string_agg(concat(c.new_value, ' as ', quote_ident(c.name)), ', ' order by c.place) as new
        from rowsignal.column_expressions_v2(relation) as c
        where case when (settings ->> 'row_values')::boolean then coalesce(not settings -> 'exclude' ? c.name, true)
                   else coalesce(settings -> 'filter' ? c.name, false) end
    ) as kept
$rowsignal$;

-- :: rows of a statement
-- The query from the transition tables to the columns of the log. OFFSET 0 keeps the planner from
-- turning the FULL JOIN, which is never a nested loop, into an inner join, which is one for all
-- later statements when the first had a single row. Deletes come first: a key that was given up
-- may be taken by another row of the same statement.
create or replace function rowsignal.log_rows_v1(event text, parts record, table_id text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    if event = 'insert' then
        return concat('select ', table_id, ', ''i''::"char", ', parts.new_key, ', null::text[], null::jsonb, ',
            parts.new_kept, ' from new_rows as n');
    elsif event = 'delete' then
        return concat('select ', table_id, ', ''d''::"char", ', parts.old_key, ', null::text[], ',
            parts.old_kept, ', null::jsonb from old_rows as o');
    end if;
    return concat('select ', table_id, ', r.operation, r.key, r.changed, r.old_row, r.new_row
        from (select case when ', parts.new_first, ' is null then ''d'' when ', parts.old_first, ' is null then ''i''
                     else ''u'' end::"char" as operation,
                case when ', parts.new_first, ' is null then ', parts.old_key, ' else ', parts.new_key, ' end as key,
                case when ', parts.new_first, ' is not null and ', parts.old_first, ' is not null then
                    ', parts.changed, ' end as changed,
                case when ', parts.old_first, ' is not null then ', parts.old_kept, ' end as old_row,
                case when ', parts.new_first, ' is not null then ', parts.new_kept, ' end as new_row
            from old_rows as o full join new_rows as n on ', parts.same, ' offset 0) as r
        where r.changed is distinct from ''{}'' order by r.operation = ''d'' desc');
end
$rowsignal$;

-- :: statement for the columns of now
-- The insert for a table whose columns are no longer those that its function was made for.
create or replace function rowsignal.log_statement_v1(relation oid, event text, settings jsonb)
returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select concat('insert into rowsignal.change (relation, operation, key, changed, old_row, new_row) ',
        rowsignal.log_rows_v1(event, p, concat(relation, '::oid')))
    from rowsignal.log_parts_v1(relation, event, settings, rowsignal.key_columns_v2(relation)) as p
$rowsignal$;

-- :: the only row of a statement
-- Most statements change one row: this query finds it, and no join is needed. STRICT stops at a
-- second row, so the product of the two tables is never formed.
create or replace function rowsignal.log_one_row_v1(event text, parts record) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    return concat('select ', case event
        when 'insert' then concat('true, ', parts.new_key, ', null, null, ', parts.new_kept)
        when 'delete' then concat('true, ', parts.old_key, ', null, ', parts.old_kept, ', null')
        else concat_ws(', ', parts.same, parts.new_key, parts.changed, parts.old_kept, parts.new_kept) end,
        ' into strict is_one, one_key, one_changed, one_old, one_new from ', case event
        when 'insert' then 'new_rows as n' when 'delete' then 'old_rows as o'
        else 'old_rows as o, new_rows as n' end,
        ' where true or exists (', parts.checked, ')');
end
$rowsignal$;

-- :: text of a trigger function
-- The first query fails when the columns are no longer those of the text. It only reads: a guard
-- around the insert would cost a transaction id for each statement. Where values are kept, the
-- inserts after it are guarded, too: a value that cannot be written must not fail the write.
create or replace function rowsignal.log_function_text_v1(
    relation regclass, event text, settings jsonb, parts record)
returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    has_values constant boolean := parts.old_kept <> 'null::jsonb' or parts.new_kept <> 'null::jsonb';
    kept constant text := quote_literal(settings);
    bare constant text := quote_literal(settings - '{row_values,filter}'::text[]);
    named constant text := quote_literal(event);
begin
    return concat('
#variable_conflict use_variable
declare
    is_stale boolean := false;
    is_one boolean := false;
    one_key jsonb;
    one_changed text[];
    one_old jsonb;
    one_new jsonb;
begin
    begin
        ', rowsignal.log_one_row_v1(event, parts), ';
    exception
    when no_data_found then
        return null;
    when too_many_rows then
        is_one := false;
    when others then
        is_stale := true;
    end;
    if is_one then
        if one_changed = ''{}'' then
            return null;
        end if;
        insert into rowsignal.change (relation, operation, key, changed, old_row, new_row)
        values (TG_RELID, ', quote_literal(left(event, 1)), ', one_key, one_changed, one_old, one_new);
    elsif is_stale then
        if to_regclass(''rowsignal.change'') is null then
            raise warning ''rowsignal.change is missing: changes of % are not logged'', TG_RELID::regclass;
            return null;
        end if;
        ', rowsignal.guarded_v1(has_values,
            concat('execute rowsignal.log_statement_v1(TG_RELID, ', named, ', ', kept, ')'),
            concat('execute rowsignal.log_statement_v1(TG_RELID, ', named, ', ', bare, ')')), '
    else
        ', rowsignal.guarded_v1(has_values,
            concat('insert into rowsignal.change (relation, operation, key, changed, old_row, new_row)
        ', rowsignal.log_rows_v1(event, parts, 'TG_RELID')),
            concat('execute rowsignal.log_statement_v1(TG_RELID, ', named, ', ', bare, ')')), '
    end if;',
    case when (settings ->> 'notify')::boolean is not false then '
    begin
        if not (pg_try_advisory_lock(1919907699, 1000) and pg_advisory_unlock(1919907699, 1000)) then
            perform rowsignal.wake_v2();
        end if;
    exception when others then
        raise warning ''rowsignal could not wake the readers of the change log: %'', SQLERRM;
    end;' end, '
    return null;
end
');
end
$rowsignal$;

create or replace function rowsignal.guarded_v1(is_wanted boolean, statement text, instead text)
returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select case when is_wanted then concat('begin
            ', statement, ';
        exception when others then
            ', instead, ';
        end;') else statement || ';' end
$rowsignal$;

-- :: function of a table
-- Make the trigger function for one event of tables with such columns, and return its name, which
-- ends in the digest of its text: the status of the triggers tells by it whether the text was edited.
create or replace function rowsignal.make_log_function_v2(
    relation regclass, event text, settings jsonb, key_columns text[])
returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    parts record;
    body text;
    name text;
begin
    select * into strict parts from rowsignal.log_parts_v1(relation, event, settings, key_columns);
    body := rowsignal.log_function_text_v1(relation, event, settings, parts);
    name := concat('capture_log_', event, '_v2_', md5(body));
    perform rowsignal.define_log_function_v1(name, body, parts.needs_pins);
    return name;
end
$rowsignal$;

create or replace function rowsignal.define_log_function_v1(name text, body text, needs_pins boolean)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    execute concat('create or replace function rowsignal.', quote_ident(name), '() returns trigger ',
        'language plpgsql security definer set search_path = pg_catalog, pg_temp ',
        case when needs_pins then
            'set "TimeZone" = ''UTC'' set "DateStyle" = ''ISO, YMD'' set "IntervalStyle" = ''postgres'' '
            'set bytea_output = ''hex'' set extra_float_digits = 1 set lc_monetary = ''C'' ' end,
        'as ', quote_literal(body));
    perform rowsignal.close_function_v1(format('rowsignal.%I()', name)::regprocedure);
end
$rowsignal$;
