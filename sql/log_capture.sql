-- Log capture: write every change of a row into rowsignal.change, in the transaction that makes it.
--
-- The triggers are statement-level with transition tables, one for each event. Their functions are
-- generated for the columns of a table. They run with the rights of the schema's owner, since no
-- other role may write to the log, and therefore use nothing that could run code of the table's
-- owner: values of user-defined types are written by their output functions (values.sql), and
-- operators are applied to built-in types alone. No role but the owner may execute them, so no role
-- can make a trigger that calls them, or call them otherwise, to forge a change.
--
-- Changing and restoring a setting for each call (SET) is a large part of a trigger's cost, so the
-- generated text names the schema of every function, operator, type and collation: the writer's
-- search_path decides nothing. IS DISTINCT FROM looks for its operator by that path, so differ_v1 stands
-- for it. Only functions that write values of a column have settings pinned.

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
-- Readers sleep while there is nothing to read. One notification a transaction will do.
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

-- :: differ
-- IS DISTINCT FROM for the types whose equality is equality of what is stored; "C" is the collation
-- that tells different texts apart. Bodies after RETURN are parsed once, here, and put in place of the
-- call when a query is planned (PostgreSQL manual, CREATE FUNCTION).
create or replace function rowsignal.make_differ_v1() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    kind text;
begin
    foreach kind in array '{int2,int4,int8,bool,oid,text,varchar,uuid,date,timestamp,timestamptz,time,bytea}'::text[]
    loop
        execute format(
            'create or replace function rowsignal.differ_v1(pg_catalog.%1$I, pg_catalog.%1$I) returns pg_catalog.bool '
            'language sql immutable parallel safe return ($1 is distinct from $2%2$s)',
            kind, case when kind in ('text', 'varchar') then ' collate pg_catalog."C"' end);
    end loop;
end
$rowsignal$;

select rowsignal.make_differ_v1();

-- :: expressions for a column
-- How to compare and write a column, as SQL over the rows o (before) and n (after): exactly, for the
-- types that differ_v1 takes. For other types (1.0 and 1.00, citext, json, which has no equality) the
-- stored image is compared, which calls no operator of the type, and a key is joined by its text.
create or replace function rowsignal.column_expressions_v2(relation oid)
returns table (
    name text, place integer, old_value text, new_value text, differs text, same text, check_type text,
    old_key text, new_key text, is_plain boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select a.attname, a.attnum,
        concat('rowsignal.value_v1(', r.o, ')'), concat('rowsignal.value_v1(', r.n, ')'),
        case when k.is_exact then concat('rowsignal.differ_v1(', r.o, ', ', r.n, ')')
             else concat('row(', r.o, ')::pg_catalog.record operator(pg_catalog.*<>) row(', r.n, ')::pg_catalog.record') end,
        case when k.is_exact then k.equal
             else concat('rowsignal.value_v1(', r.o, ')::pg_catalog.text operator(pg_catalog.=) rowsignal.value_v1(',
                r.n, ')::pg_catalog.text') end,
        case when k.is_exact then concat(', null::pg_catalog.', quote_ident(t.typname)) end,
        case when k.is_exact then r.o else concat('rowsignal.log_value_v2(rowsignal.value_v1(', r.o, '))') end,
        case when k.is_exact then r.n else concat('rowsignal.log_value_v2(rowsignal.value_v1(', r.n, '))') end,
        k.is_exact and t.typname not in ('date', 'timestamp', 'timestamptz', 'time', 'bytea')
    from pg_attribute as a join pg_type as t on t.oid = a.atttypid
    cross join lateral (select 'o.' || quote_ident(a.attname) as o, 'n.' || quote_ident(a.attname) as n) as r
    cross join lateral (select
        exists (
            select from pg_proc as p
            where p.pronamespace = 'rowsignal'::regnamespace and p.proname = 'differ_v1' and p.proargtypes[0] = t.oid
        ) as is_exact,
        concat(r.o, ' operator(pg_catalog.=) ', r.n,
            case when t.typname in ('text', 'varchar') then ' collate pg_catalog."C"' end) as equal) as k
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
        case when keys.are_there then concat('pg_catalog.jsonb_build_object(', keys.old, ')') else 'null::pg_catalog.jsonb' end,
        case when keys.are_there then concat('pg_catalog.jsonb_build_object(', keys.new, ')') else 'null::pg_catalog.jsonb' end,
        coalesce('(select rowsignal.log_row_v2(r.*) from (select ' || kept.old || ') as r)', 'null::pg_catalog.jsonb'),
        coalesce('(select rowsignal.log_row_v2(r.*) from (select ' || kept.new || ') as r)', 'null::pg_catalog.jsonb'),
        concat('pg_catalog.array_remove(array[', columns.changed, ']::pg_catalog.text[], null)'),
        case when keys.are_there then keys.same else 'false' end,
        concat('o.', quote_ident(key_columns[1])), concat('n.', quote_ident(key_columns[1])),
        concat('select one.* from ', one.rows, ' as one union all select ', names.all, ' from ', one.rows,
            ' as one, rowsignal.change where ', coalesce(columns.checks, 'true')),
        keys.needs_pins or kept.old is not null
    from (select case event when 'delete' then 'old_rows' else 'new_rows' end) as one(rows),
    lateral (
        select string_agg(concat('one.', quote_ident(a.attname)), ', ' order by a.attnum) as all
        from pg_attribute as a
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
    ) as names,
    lateral (
        select string_agg(concat('rowsignal.alike_v1(one.', quote_ident(c.name), c.check_type, ')'), ' and ')
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
        return concat('select ', table_id, ', ''i''::pg_catalog."char", ', parts.new_key,
            ', null::pg_catalog.text[], null::pg_catalog.jsonb, ',
            parts.new_kept, ' from new_rows as n');
    elsif event = 'delete' then
        return concat('select ', table_id, ', ''d''::pg_catalog."char", ', parts.old_key,
            ', null::pg_catalog.text[], ', parts.old_kept, ', null::pg_catalog.jsonb from old_rows as o');
    end if;
    return concat('select ', table_id, ', r.operation, r.key, r.changed, r.old_row, r.new_row
        from (select case when ', parts.new_first, ' is null then ''d'' when ', parts.old_first, ' is null then ''i''
                     else ''u'' end::pg_catalog."char" as operation,
                case when ', parts.new_first, ' is null then ', parts.old_key, ' else ', parts.new_key, ' end as key,
                case when ', parts.new_first, ' is not null and ', parts.old_first, ' is not null then
                    ', parts.changed, ' end as changed,
                case when ', parts.old_first, ' is not null then ', parts.old_kept, ' end as old_row,
                case when ', parts.new_first, ' is not null then ', parts.new_kept, ' end as new_row
            from old_rows as o full join new_rows as n on ', parts.same, ' offset 0) as r
        where (r.changed operator(pg_catalog.=) ''{}'') is not true
        order by r.operation operator(pg_catalog.=) ''d'' desc');
end
$rowsignal$;

-- :: statement for the columns of now
-- The insert for a table whose columns are no longer those that its function was made for.
create or replace function rowsignal.log_statement_v1(relation oid, event text, settings jsonb)
returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select concat('insert into rowsignal.change (relation, operation, key, changed, old_row, new_row) ',
        rowsignal.log_rows_v1(event, p, concat(relation, '::pg_catalog.oid')))
    from rowsignal.log_parts_v1(relation, event, settings, rowsignal.key_columns_v2(relation)) as p
$rowsignal$;

-- :: the only row of a statement
-- Most statements change one row: this query finds it, and no join is needed. STRICT stops at a
-- second row, so the product of the two tables is never formed. The columns are checked in a CTE that
-- nothing refers to: it is parsed and never run, and unlike a sublink costs nothing at each call.
create or replace function rowsignal.log_one_row_v1(event text, parts record) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    return (select concat('with checked as (', parts.checked, ') select ', string_agg(t.value, ', ' order by t.place),
        ' into strict ', string_agg(t.name, ', ' order by t.place), ' from ', case event
        when 'insert' then 'new_rows as n' when 'delete' then 'old_rows as o'
        else 'old_rows as o, new_rows as n' end)
    from (values
        (1, 'is_one', case when event = 'update' then parts.same else 'true' end),
        (2, 'one_key', case when event = 'delete' then parts.old_key else parts.new_key end),
        (3, 'one_changed', case when event = 'update' then parts.changed end),
        (4, 'one_old', case when event <> 'insert' then parts.old_kept end),
        (5, 'one_new', case when event <> 'delete' then parts.new_kept end)
    ) as t(place, name, value)
    where t.value <> 'null::pg_catalog.jsonb');
end
$rowsignal$;

-- :: text of a trigger function
-- The first query fails when the columns are no longer those of the text. It only reads: a guard
-- around the insert would cost a transaction id for each statement. Where values are kept, the
-- inserts after it are guarded, too: a value that cannot be written must not fail the write.
--
-- Whether a reader sleeps is asked in the same guard, before the insert, since each guard is a
-- subtransaction. A reader that is about to sleep therefore first waits for all transactions that
-- hold a lock on a logged table: they may have asked before it registered.
create or replace function rowsignal.log_function_text_v1(
    relation regclass, event text, settings jsonb, parts record)
returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    no_values constant text := 'null::pg_catalog.jsonb';
    has_values constant boolean := parts.old_kept <> no_values or parts.new_kept <> no_values;
    has_notice constant boolean := (settings ->> 'notify')::boolean is not false;
    kept constant text := quote_literal(settings);
    bare constant text := quote_literal(settings - '{row_values,filter}'::text[]);
    named constant text := quote_literal(event);
begin
    return concat('
', case when not parts.needs_pins then '-- No setting of the session matters here: all names are qualified.
' end, '#variable_conflict use_variable
declare
    is_stale pg_catalog.bool := false;
    is_one pg_catalog.bool := false;
    is_read pg_catalog.bool := true;
    one_key pg_catalog.jsonb;
    one_changed pg_catalog.text[];
    one_old pg_catalog.jsonb;
    one_new pg_catalog.jsonb;
begin
    begin', case when has_notice then '
        is_read := not (pg_catalog.pg_try_advisory_lock(1919907699, 1000)
            and pg_catalog.pg_advisory_unlock(1919907699, 1000));' end, '
        ', rowsignal.log_one_row_v1(event, parts), ';
    exception
    when no_data_found then
        return null;
    when too_many_rows then
        is_one := false;
    when others then
        is_stale := true;
    end;
    if is_one then', case when event = 'update' then '
        if one_changed operator(pg_catalog.=) ''{}'' then
            return null;
        end if;' end, '
        insert into rowsignal.change (relation, operation, key, changed', case when has_values then ', old_row, new_row' end, ')
        values (TG_RELID, ', quote_literal(left(event, 1)), ', one_key, one_changed',
        case when has_values then ', one_old, one_new' end, ');
    elsif is_stale then
        if pg_catalog.to_regclass(''rowsignal.change'') is null then
            raise warning ''rowsignal.change is missing: changes of % are not logged'', TG_RELID::pg_catalog.regclass;
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
    case when has_notice then '
    if is_read then
        begin
            perform rowsignal.wake_v2();
        exception when others then
            raise warning ''rowsignal could not wake the readers of the change log: %'', SQLERRM;
        end;
    end if;' end, '
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
        'language plpgsql security definer ',
        case when needs_pins then 'set search_path = pg_catalog, pg_temp '
            'set "TimeZone" = ''UTC'' set "DateStyle" = ''ISO, YMD'' set "IntervalStyle" = ''postgres'' '
            'set bytea_output = ''hex'' set extra_float_digits = 1 set lc_monetary = ''C'' ' end,
        'as ', quote_literal(body));
    perform rowsignal.close_function_v1(format('rowsignal.%I()', name)::regprocedure);
end
$rowsignal$;
