-- Installing and uninstalling the triggers of one table, from what the catalogue says.

-- :: arguments of a trigger
-- tgargs holds each argument followed by a zero byte.
create or replace function rowsignal.trigger_arguments_v2(tgargs bytea) returns text[]
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select (array_agg(convert_from(decode(replace(part, ' ', ''), 'hex'), getdatabaseencoding())
                      order by place))[: count(*) - 1]
    from unnest(string_to_array(regexp_replace(encode(tgargs, 'hex'), '(..)', E'\\1 ', 'g'), '00 '))
        with ordinality as piece(part, place)
$rowsignal$;

-- :: tables of a table
-- The table with its partitions or its inheritance children, at every depth.
create or replace function rowsignal.family_v2(root oid) returns table (relation oid, is_partition boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    with recursive family(relation) as (
        select root
        union
        select i.inhrelid from pg_inherits as i join family as f on i.inhparent = f.relation
    )
    select c.oid, c.relispartition from family as f join pg_class as c on c.oid = f.relation
    where c.relkind in ('r', 'p') order by c.oid <> root, c.oid
$rowsignal$;

-- :: key columns
-- The names of the primary key, in key order.
create or replace function rowsignal.key_columns_v2(relation oid) returns text[]
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select array_agg(a.attname::text order by k.place)
    from pg_index as i, unnest(i.indkey::smallint[]) with ordinality as k(number, place), pg_attribute as a
    where i.indrelid = relation and i.indisprimary and k.place <= i.indnkeyatts
      and a.attrelid = relation and a.attnum = k.number
$rowsignal$;

-- :: refusals
-- Raise a sentence where triggers cannot be or would make writes fail.
create or replace function rowsignal.check_table_v2(relation regclass, settings jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    class pg_class;
    name text;
begin
    select * into class from pg_class as c where c.oid = relation;
    if class.relkind not in ('r', 'p') then
        raise exception using errcode = 'RS001', message = format(
            '%s is a %s: rowsignal watches tables only; install on the tables beneath it.', relation,
            case class.relkind when 'v' then 'view' when 'm' then 'materialized view'
                when 'f' then 'foreign table' else 'relation without rows of its own' end);
    elsif class.relispartition then
        raise exception using errcode = 'RS001', message = format(
            '%s is a partition: install on %s, which covers all its partitions.',
            relation, pg_partition_root(relation));
    elsif rowsignal.key_columns_v2(relation) is null then
        raise exception using errcode = 'RS001', message = format(
            '%s has no primary key, so its rows cannot be told apart: add one, then install.', relation);
    elsif (settings ->> 'log')::boolean is not true and (settings ->> 'always')::boolean is not true
      and not (has_function_privilege('public', 'pg_catalog.pg_try_advisory_lock(integer, integer)', 'EXECUTE')
          and has_function_privilege('public', 'pg_catalog.pg_advisory_unlock(integer, integer)', 'EXECUTE')) then
        raise exception using errcode = 'RS001', message = format(
            'Writers of %s may not call pg_try_advisory_lock and pg_advisory_unlock, so every write would fail: '
            'GRANT EXECUTE on both (integer, integer) TO PUBLIC, then install.', relation);
    end if;
    for name in select jsonb_array_elements_text(
        coalesce(settings -> 'columns', '[]') || coalesce(settings -> 'exclude', '[]') || coalesce(settings -> 'filter', '[]'))
    loop
        if not exists (select from pg_attribute as a where a.attrelid = relation and a.attname = name
                       and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v') then
            raise exception using errcode = 'RS001', message = format(
                '%s stores no column %I, so it cannot be watched for it.', relation, name);
        end if;
    end loop;
end
$rowsignal$;

-- :: token
-- The name by which hints call a table: given once, kept by its triggers through renames, dumps and
-- re-installation.
create or replace function rowsignal.token_v2(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select coalesce(
        (select min((rowsignal.trigger_arguments_v2(t.tgargs))[1])
         from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
         where t.tgrelid = relation and p.pronamespace = 'rowsignal'::regnamespace),
        (select format('%s.%s@%s', n.nspname, c.relname, c.oid)
         from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation))
$rowsignal$;

-- :: shape
-- A digest of the columns that a function was made for.
create or replace function rowsignal.shape_v2(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select md5(string_agg(concat(a.attname, ' ', t.typname, a.atttypmod), ',' order by a.attnum))
    from pg_attribute as a join pg_type as t on t.oid = a.atttypid
    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
$rowsignal$;

-- :: hint triggers
-- Partitions get the row trigger from their root, as clones; TRUNCATE's has to be made on each.
create or replace function rowsignal.hint_triggers_v2(
    relation regclass, is_partition boolean, token text, settings jsonb, key_columns text[])
returns table (trigger text, definition text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    bucket constant bigint := hashtextextended(token, 0) & 127;
    arguments constant text := rowsignal.literals_v2(array[token, bucket::text, settings::text] || key_columns);
    asked constant text := case when (settings ->> 'always')::boolean is true then '' else concat('when (not '
        '(pg_catalog.pg_try_advisory_lock(1919907699, ', bucket, ') and '
        'pg_catalog.pg_advisory_unlock(1919907699, ', bucket, '))) ') end;
begin
    if not is_partition then
        trigger := 'rowsignal_hint';
        definition := concat('after insert or update or delete on ', relation, ' for each row ', asked,
            'execute function rowsignal.capture_hint_v2(', arguments, ')');
        return next;
    end if;
    trigger := 'rowsignal_hint_truncate';
    definition := concat('after truncate on ', relation, ' for each statement ', asked,
        'execute function rowsignal.capture_hint_v2(', arguments, ')');
    return next;
end
$rowsignal$;

create or replace function rowsignal.literals_v2(parts text[]) returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select string_agg(quote_literal(part), ', ' order by place) from unnest(parts) with ordinality as p(part, place)
$rowsignal$;

-- :: log triggers
-- A statement on the root fires the root's, one on a partition the partition's: each has them all.
create or replace function rowsignal.log_triggers_v2(
    relation regclass, token text, settings jsonb, key_columns text[])
returns table (trigger text, definition text)
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    arguments constant text := rowsignal.literals_v2(array[token, '1000',
        (settings || jsonb_build_object('shape', rowsignal.shape_v2(relation)))::text] || key_columns);
    event record;
begin
    for event in select * from (values
        ('insert', 'referencing new table as new_rows'),
        ('update', 'referencing old table as old_rows new table as new_rows'),
        ('delete', 'referencing old table as old_rows')) as events(name, tables)
    loop
        trigger := concat('rowsignal_log_', event.name);
        definition := concat('after ', event.name, ' on ', relation, ' ', event.tables,
            ' for each statement execute function rowsignal.',
            quote_ident(rowsignal.make_log_function_v2(relation, event.name, settings, key_columns)),
            '(', arguments, ')');
        return next;
    end loop;
    trigger := 'rowsignal_log_truncate';
    definition := concat('after truncate on ', relation,
        ' for each statement execute function rowsignal.capture_log_truncate_v2(', arguments, ')');
    return next;
end
$rowsignal$;

-- :: triggers wanted
-- The triggers that a relation should carry, as text for CREATE TRIGGER.
create or replace function rowsignal.wanted_triggers_v2(
    relation regclass, is_partition boolean, token text, settings jsonb, key_columns text[])
returns table (trigger text, definition text)
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
begin
    if (settings ->> 'log')::boolean is true then
        return query select * from rowsignal.log_triggers_v2(relation, token, settings, key_columns);
    else
        return query select * from rowsignal.hint_triggers_v2(
            relation, is_partition, token, settings, key_columns);
    end if;
end
$rowsignal$;

-- :: drop
-- Drop our triggers of one relation but those to keep; clones go with the trigger of their root.
create or replace function rowsignal.drop_triggers_v2(relation regclass, keep text[]) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    name text;
    dropped bigint := 0;
begin
    for name in
        select t.tgname from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
        where t.tgrelid = relation and t.tgparentid = 0 and t.tgname <> all (keep)
          and p.pronamespace = 'rowsignal'::regnamespace
    loop
        execute concat('drop trigger ', quote_ident(name), ' on ', relation);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$rowsignal$;

-- :: sweep
-- Drop the generated functions, and those of earlier versions, that no table uses any more.
create or replace function rowsignal.sweep_v2() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    name text;
begin
    for name in
        select p.proname from pg_proc as p
        where p.pronamespace = 'rowsignal'::regnamespace
          and p.proname ~ '^capture_(log_[a-z]+_v[0-9]+_[0-9a-f]{12,32}|(hint|log_truncate)_v1)$'
          and not exists (select from pg_trigger as t where t.tgfoid = p.oid)
    loop
        execute concat('drop function rowsignal.', quote_ident(name), '()');
    end loop;
end
$rowsignal$;

-- :: install
-- Give one table and everything beneath it the triggers that its settings ask for, and take away
-- those of ours that they do not. Returns the table's token.
create or replace function rowsignal.install_v2(relation regclass, settings jsonb default '{}') returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    member record;
    wanted record;
    names text[];
    is_always boolean;
    token text := rowsignal.token_v2(relation);
    key_columns text[] := rowsignal.key_columns_v2(relation);
begin
    lock table rowsignal.migration in share row exclusive mode;
    perform rowsignal.check_table_v2(relation, settings);
    for member in select f.relation::regclass as name, f.is_partition from rowsignal.family_v2(relation) as f loop
        token := case when member.is_partition then token else rowsignal.token_v2(member.name) end;
        names := '{}';
        for wanted in
            select * from rowsignal.wanted_triggers_v2(
                member.name, member.is_partition, token, settings, key_columns)
        loop
            is_always := exists (select from pg_trigger as t where t.tgrelid = member.name
                                 and t.tgname = wanted.trigger and t.tgenabled = 'A');
            execute concat('create or replace trigger ', quote_ident(wanted.trigger), ' ', wanted.definition);
            if is_always then
                -- enabled for rows that replication applies; replacing the trigger forgets that
                execute concat('alter table ', member.name, ' enable always trigger ', quote_ident(wanted.trigger));
            end if;
            names := names || wanted.trigger;
        end loop;
        perform rowsignal.drop_triggers_v2(member.name, names);
    end loop;
    perform rowsignal.sweep_v2();
    return rowsignal.token_v2(relation);
end
$rowsignal$;

-- :: uninstall
-- Take our triggers from one table and everything beneath it; returns how many there were.
create or replace function rowsignal.uninstall_v2(relation regclass) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    dropped bigint;
begin
    lock table rowsignal.migration in share row exclusive mode;
    select coalesce(sum(rowsignal.drop_triggers_v2(f.relation, '{}')), 0) into dropped
    from rowsignal.family_v2(relation) as f;
    perform rowsignal.sweep_v2();
    return dropped;
end
$rowsignal$;

-- :: names of 0.1.0
-- Called by migrations that were written with it.
create or replace function rowsignal.install_v1(relation regclass, settings jsonb default '{}') returns text
language sql set search_path = pg_catalog, pg_temp
as $rowsignal$
    select rowsignal.install_v2(install_v1.relation, install_v1.settings)
$rowsignal$;

create or replace function rowsignal.uninstall_v1(relation regclass) returns bigint
language sql set search_path = pg_catalog, pg_temp
as $rowsignal$
    select rowsignal.uninstall_v2(uninstall_v1.relation)
$rowsignal$;
