-- Hint capture: tell by NOTIFY which rows changed, while a session listens. Nothing is stored.
--
-- All of it runs with the rights of the role that writes: it needs none but those of PUBLIC.
-- Arguments of its triggers: token, bucket, settings (a JSON object), key column, key column ...

-- :: key of a row
-- The key by the names of its columns, as a JSON array; null when one of them is gone (dropped,
-- renamed). Nested values (keys of an array or jsonb type) become the string of their text.
create or replace function rowsignal.named_key_v2(image json, columns text[]) returns text
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    name text;
    value json;
    parts text[];
begin
    foreach name in array columns loop
        value := image -> name;
        if value is null then
            return null;
        end if;
        parts := parts || case when json_typeof(value) in ('object', 'array', 'null')
                               then to_json(value::text)::text else value::text end;
    end loop;
    return concat('[', array_to_string(parts, ','), ']');
end
$rowsignal$;

-- :: key of a row, by the name of 0.1.0
-- For programs that compare rows with hints. Nothing of rowsignal calls it.
create or replace function rowsignal.key_v1(key record) returns json
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
set "TimeZone" = 'UTC' set "DateStyle" = 'ISO, YMD' set "IntervalStyle" = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 set lc_monetary = 'C'
as $rowsignal$
declare
    image constant json := row_to_json(key);
begin
    return rowsignal.named_key_v2(image, array(select json_object_keys(image)));
end
$rowsignal$;

-- :: changed columns
-- The columns whose stored values differ, of those that count. Their JSON text tells 1.0 from 1.00
-- and 'a' from 'A' where the types' own equality does not, and exists for every type. Null: unknown,
-- because what differs has one text, or because a column that should count is gone.
create or replace function rowsignal.changed_columns_v2(before json, after json, settings json)
returns text[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    differing text[];
    listed text[];
begin
    select array_agg(o.name order by o.place) into differing
    from json_each(before) with ordinality as o(name, value, place)
    join json_each(after) with ordinality as n(name, value, place) using (place)
    where o.value::text <> n.value::text;
    if differing is null or json_typeof(settings -> 'columns') is null and json_typeof(settings -> 'exclude') is null then
        return differing;
    end if;
    select array_agg(name) into listed
    from json_array_elements_text(coalesce(settings -> 'columns', settings -> 'exclude')) as name;
    if settings -> 'columns' is null then
        return array(select name from unnest(differing) as name where name <> all (listed));
    end if;
    if exists (select from unnest(listed) as name where after -> name is null) then
        return null;
    end if;
    return array(select name from unnest(differing) as name where name = any (listed));
end
$rowsignal$;

-- :: is a session listening
-- The WHEN clauses of the triggers ask by trying the exclusive lock: the cheapest question there is,
-- but writers that ask at the same moment hold it against each other. Only a shared holder is a
-- listener. Not asked in a table of subscriptions: a REPEATABLE READ writer would not see a new row.
create or replace function rowsignal.is_awaited_v2(bucket integer) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp
as $rowsignal$
    select exists (
        select from pg_locks
        where locktype = 'advisory' and classid = 1919907699 and objid::bigint = bucket and objsubid = 2
          and mode = 'ShareLock' and granted
          and database = (select oid from pg_database where datname = current_database()))
$rowsignal$;

-- :: are hints wanted
-- Whether to notify at all: a session listens, or the table is declared for listeners of other kinds.
create or replace function rowsignal.is_wanted_v2(bucket integer, settings json) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp
as $rowsignal$
    select (coalesce((settings ->> 'always')::boolean, false) or rowsignal.is_awaited_v2(bucket))
        and pg_notification_queue_usage() <= 0.5
$rowsignal$;

-- :: queue share
-- The bytes that one transaction may add to the notification queue for one table: 64 kB, less where
-- the queue is small. The queue's usage does not show what open transactions will add to it, so each
-- must stay small: a full queue makes commits fail (PostgreSQL manual, NOTIFY).
create or replace function rowsignal.queue_share_v1() returns integer
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select least(65536, coalesce(current_setting('max_notify_queue_pages', true), '1048576')::bigint
        * current_setting('block_size')::bigint / 128)::integer
$rowsignal$;

-- :: hint payload
-- The payload of one hint: as much of it as fits into the 7999 bytes of a notification.
create or replace function rowsignal.hint_payload_v1(head text, operation text, key text, columns text[])
returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    base text := concat(head, ',"o":"', operation, '","x":"', pg_current_xact_id(), '"');
    k text := ',"k":' || key;
    c text := ',"c":' || to_json(columns)::text;
    payload text := concat(base, k, c, '}');
begin
    if octet_length(payload) > 7999 then
        payload := concat(base, k, '}');
    end if;
    if octet_length(payload) > 7999 then
        payload := concat(base, '}');
    end if;
    return payload;
end
$rowsignal$;

-- :: hints of one row
-- The payloads that tell what happened to a row: none for an update that changed nothing that
-- counts, two for a changed key, which is a delete and an insert, since either key may be awaited.
-- Null when the key cannot be told, so that only a hint for the whole table will do.
create or replace function rowsignal.row_hints_v1(
    head text, operation text, before record, after record, columns text[], settings json)
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set "TimeZone" = 'UTC' set "DateStyle" = 'ISO, YMD' set "IntervalStyle" = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1 set lc_monetary = 'C'
as $rowsignal$
declare
    old_image json; new_image json; old_key text; new_key text; changed text[];
begin
    if operation <> 'insert' then
        old_image := row_to_json(before);
        old_key := rowsignal.named_key_v2(old_image, columns);
    end if;
    if operation <> 'delete' then
        new_image := row_to_json(after);
        new_key := rowsignal.named_key_v2(new_image, columns);
    end if;
    if coalesce(old_key, new_key) is null then
        return null;
    elsif operation <> 'update' then
        return array[rowsignal.hint_payload_v1(head, operation, coalesce(old_key, new_key), null)];
    elsif old_key <> new_key then
        return array[rowsignal.hint_payload_v1(head, 'delete', old_key, null),
                     rowsignal.hint_payload_v1(head, 'insert', new_key, null)];
    end if;
    changed := rowsignal.changed_columns_v2(old_image, new_image, settings);
    if changed = '{}' then
        return '{}';
    end if;
    return array[rowsignal.hint_payload_v1(head, operation, new_key, changed)];
end
$rowsignal$;

-- :: hint trigger
-- What a transaction has told about a table is remembered in a setting of that transaction, one for
-- each table: "-" when nothing more is to be told, else the rows told so far, the bytes of their
-- hints, and a letter for each operation that was told for the whole table ("m": a key was changed).
-- A savepoint that is rolled back takes its memory with it, as it takes its notifications.
-- Remembering "-" is safe: a listener that arms later reads the rows again when this transaction is
-- over, and listeners poll when the queue is near half full.
-- After 100 rows, or its share of the queue, a transaction tells of the table as a whole.
create or replace function rowsignal.capture_hint_v2() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    memory text := concat('rowsignal.hints_', hashtextextended(TG_ARGV[0], 0) & 9223372036854775807);
    mine text := concat(' ', pg_current_xact_id(), ' ', TG_ARGV[0]);
    said text := current_setting(memory, true);
    head text;
    operation text := lower(TG_OP);
    told integer := 0;
    bytes integer := 0;
    letters text := '';
    hints text[];
begin
    if substr(said, strpos(said, ' ')) = mine then
        said := split_part(said, ' ', 1);
        if said = '-' or strpos(said, left(operation, 1)) > 0 then
            return null;
        end if;
        told := split_part(said, ':', 1)::integer;
        bytes := split_part(said, ':', 2)::integer;
        letters := split_part(said, ':', 3);
    else
        said := null;
    end if;
    if TG_OP = 'UPDATE' then
        if OLD *= NEW then
            return null;
        end if;
    end if;
    begin
        if said is null and not rowsignal.is_wanted_v2(TG_ARGV[1]::integer, TG_ARGV[2]::json)
                or said is not null and pg_notification_queue_usage() > 0.5 then
            perform set_config(memory, '-' || mine, true);
            return null;
        end if;
        head := concat('{"t":', to_json(TG_ARGV[0]), ',"s":', to_json(TG_TABLE_SCHEMA::text),
                       ',"n":', to_json(TG_TABLE_NAME::text));
        if TG_OP <> 'TRUNCATE' and told < 100 and bytes < rowsignal.queue_share_v1() then
            hints := rowsignal.row_hints_v1(head, operation, OLD, NEW, TG_ARGV[3:], TG_ARGV[2]::json);
        end if;
        if cardinality(hints) = 2 then
            letters := letters || 'm';
        elsif hints is null then
            -- rows after a changed key go untold, too, and may have theirs changed
            letters := letters || case when strpos(letters, 'm') > 0 then 'iud' else left(operation, 1) end;
            hints := array(
                select rowsignal.hint_payload_v1(head, one, null, null)
                from unnest(case when strpos(letters, 'm') > 0 then '{insert,update,delete}'
                                 else array[operation] end) as one);
        end if;
        perform pg_notify('rowsignal', hint) from unnest(hints) as hint;
        bytes := bytes + coalesce((select sum(octet_length(hint)) from unnest(hints) as hint), 0);
        perform set_config(memory, concat(told + 1, ':', bytes, ':', letters, mine), true);
    exception when others then
        -- the write must not fail: tell that any row may have changed, and nothing more this time
        perform pg_notify('rowsignal', concat(
            '{"t":', to_json(TG_ARGV[0]), ',"s":', to_json(TG_TABLE_SCHEMA::text), ',"n":',
            to_json(TG_TABLE_NAME::text), ',"o":"', operation, '","x":"', pg_current_xact_id(), '"}'));
        perform set_config(memory, concat(told, ':', bytes, ':', letters, left(operation, 1), mine), true);
        raise warning 'rowsignal could not tell which row of %.% changed: %',
            quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME), SQLERRM;
    end;
    return null;
end
$rowsignal$;
