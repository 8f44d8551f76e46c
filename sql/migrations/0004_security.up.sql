-- Capture that runs no code of a table's owner with other rights than the writer's, privileges that
-- default privileges cannot widen, locks that no stranger can take.

-- Without a default at first: a column of this row type in a table of any role would forbid it.
alter table rowsignal.tick add column if not exists changes bigint;
update rowsignal.tick as t
set changes = t.last_id - p.last_id
from (
    select s.taken_at, coalesce(lag(s.last_id) over (order by s.taken_at), h.last_id) as last_id
    from rowsignal.tick as s cross join rowsignal.horizon as h
) as p
where p.taken_at = t.taken_at;
update rowsignal.tick set changes = 0 where changes is null;
alter table rowsignal.tick alter column changes set default 0, alter column changes set not null;
alter table rowsignal.horizon add column if not exists origin text;
update rowsignal.horizon as h set origin = i.origin from rowsignal.incarnation as i;

-- Without a default at first, as above: no row is rewritten, and the lock is held for a moment.
alter table rowsignal.change add column if not exists trace text;
alter table rowsignal.change alter column trace set default
    case when pg_catalog.octet_length(pg_catalog.current_setting('rowsignal.trace', true)) operator(pg_catalog.<=) 512
        and pg_catalog.encode(pg_catalog.replace(pg_catalog.current_setting('rowsignal.trace', true), E'\\', E'\\\\')::pg_catalog.bytea,
            'escape') operator(pg_catalog.~) '^[] -[^-~]+$'
    then pg_catalog.current_setting('rowsignal.trace', true) end;

-- With the relation, so that a reader of other tables passes over a million changes of this one without
-- a look at any of them.
create index if not exists change_xid_relation on rowsignal.change (xid, relation);
drop index if exists rowsignal.change_xid;

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

-- The change log: every committed change of every logged table, and what says which part of it
-- a position may still be read from. Only the owner has rights on any of it.

-- :: start_incarnation
-- Begin a new log where this one has no incarnation: after installation, a crash, a promotion or a
-- restore. Takes no lock that a writer would wait for, and none at all where nothing is to be done.
-- After a crash or a promotion the log is the one it was, for consumers whose position is stored in
-- this database; no other positions count. After a restore, what was logged before is behind
-- the new horizon, and pruned like everything else there.
create or replace function rowsignal.start_incarnation_v2() returns uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    here constant text := rowsignal.log_origin_v1();
    found_id uuid;
begin
    select i.id into found_id from rowsignal.incarnation as i where i.origin = here;
    if found then
        return found_id;
    end if;
    lock table rowsignal.incarnation in share row exclusive mode;
    select i.id into found_id from rowsignal.incarnation as i where i.origin = here;
    if found then
        return found_id;
    end if;
    if not exists (select from rowsignal.horizon as h where h.origin = here) then
        -- Restored rows may be of transactions still to come, and would be delivered when their ids
        -- come round. Writers at work are safe: what they have not committed is not visible here.
        delete from rowsignal.change as c where c.xid >= pg_snapshot_xmax(pg_current_snapshot());
        delete from rowsignal.tick;
        delete from rowsignal.stored_position;
        delete from rowsignal.horizon;
        -- A log that has never begun has lost nothing: it can be read from its first change on.
        insert into rowsignal.horizon (snapshot, last_id, origin)
        select case when found then pg_current_snapshot() else '3:3:' end,
            case when found then coalesce(pg_sequence_last_value('rowsignal.change_id_seq'), 0) else 0 end,
            here;
    end if;
    delete from rowsignal.incarnation;
    insert into rowsignal.incarnation (id, origin) values (gen_random_uuid(), here)
    returning id into found_id;
    return found_id;
end
$rowsignal$;

-- :: store_position
-- Keep a position under the digest of its text, so that one position is one row however often it is
-- handed in; null for one of transactions that this server has not begun, or of more than can run at
-- once. Some 10,000 are kept:
-- positions can be made up, and the reader of one that has been dropped is told to begin anew.
create or replace function rowsignal.store_position_v2(before pg_snapshot, after pg_snapshot)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    digest constant uuid := md5(concat(before, ' ', after))::uuid;
    most_running constant integer := current_setting('max_connections')::integer
        + current_setting('max_prepared_transactions')::integer + 100;
begin
    if greatest(pg_snapshot_xmax(before), pg_snapshot_xmax(after)) > pg_snapshot_xmax(pg_current_snapshot())
        or greatest(pg_column_size(before), pg_column_size(after)) > 8 * most_running + 64
    then
        return null;
    end if;
    insert into rowsignal.stored_position (id, before, after) values (digest, before, after)
    on conflict do nothing;
    if found and random() < 0.01 then
        delete from rowsignal.stored_position as p
        where p.id in (select s.id from rowsignal.stored_position as s order by s.stored_at desc offset 10000);
    end if;
    return digest;
end
$rowsignal$;

-- :: changes between snapshots
create or replace function rowsignal.count_changes_v1(seen pg_snapshot, now pg_snapshot) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select count(*) from rowsignal.change as c
    where c.xid >= pg_snapshot_xmin(seen)
        and not pg_visible_in_snapshot(c.xid, seen) and pg_visible_in_snapshot(c.xid, now)
$rowsignal$;

-- :: prune
-- Remembers now and then what is visible (a tick); moves the horizon up to the newest tick that is
-- older than `max_age`, or further while the log is larger than `max_bytes`; then deletes up to
-- `batch_size` changes behind it, from transaction `start` on. Null for `max_age` or `max_bytes`
-- stands for the stored retention. A reader that finds rows gone finds the horizon moved as well,
-- since both are written in one transaction.
-- The size is estimated from the changes that are there: ids are drawn by rolled-back writes, too.
create or replace function rowsignal.prune_v3(
    max_age interval default null,
    max_bytes bigint default null,
    batch_size integer default 10000,
    start text default '0',
    out is_ours boolean,    -- false: another session is pruning, nothing was done
    out deleted bigint,
    out reached text,       -- where to start the next batch; null when there is nothing left
    out bytes bigint        -- estimated size of what is in front of the horizon
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off -- before 18 a plan without its seqscan costs enough to be compiled, for 0.1 s
set plan_cache_mode = force_custom_plan
as $rowsignal$
declare
    visible_now constant pg_snapshot := pg_current_snapshot();
    newest_id constant bigint := coalesce(pg_sequence_last_value('rowsignal.change_id_seq'), 0);
    width bigint;
    last rowsignal.tick;
    target rowsignal.tick;
begin
    -- What this transaction had written would count as seen by the tick, and is not yet committed.
    if pg_current_xact_id_if_assigned() is not null then
        raise exception 'rowsignal.prune_v3 must be called in a transaction that has written nothing'
            using errcode = 'active_sql_transaction';
    end if;
    -- A row lock: a role without rights on the table cannot take it and so cannot stop pruning.
    select coalesce(prune_v3.max_age, r.max_age), coalesce(prune_v3.max_bytes, r.max_bytes)
    into max_age, max_bytes
    from rowsignal.retention as r for update skip locked;
    is_ours := found;
    if not is_ours then
        return;
    end if;
    perform rowsignal.start_incarnation_v2();

    -- A change costs its values, a header, a line pointer and an entry in the index.
    select coalesce(avg(pg_column_size(c.*)), 100)::bigint + 48 into width
    from (select * from rowsignal.change order by xid desc limit 200) as c;

    select * into last from rowsignal.tick as t order by t.taken_at desc limit 1;
    if not found then
        select '-infinity', h.snapshot, h.last_id, 0 into last from rowsignal.horizon as h;
    end if;
    if last.taken_at <= clock_timestamp() - max_age / 1000
        or (newest_id - last.last_id) * width >= max_bytes / 50
    then
        insert into rowsignal.tick (snapshot, last_id, changes)
        values (visible_now, newest_id, rowsignal.count_changes_v1(last.snapshot, visible_now))
        returning * into last;
    end if;

    -- `since`: the changes of each tick and of those after it.
    select t.taken_at, t.snapshot, t.last_id, t.changes into target
    from (
        select s.*, sum(s.changes) over (order by s.taken_at desc) + newest_id - last.last_id as since
        from rowsignal.tick as s
    ) as t
    where t.taken_at <= clock_timestamp() - max_age or t.since * width > max_bytes
    order by t.taken_at desc
    limit 1;
    if found then
        update rowsignal.horizon set snapshot = target.snapshot, last_id = target.last_id;
        perform rowsignal.overtake_consumers_v1(target.snapshot);
        delete from rowsignal.tick as t where t.taken_at <= target.taken_at;
        delete from rowsignal.stored_position as p where p.stored_at < target.taken_at;
    end if;
    select (coalesce(sum(t.changes), 0) + newest_id - last.last_id) * width into bytes
    from rowsignal.tick as t;

    with behind as materialized (
        select c.ctid, c.xid
        from rowsignal.change as c, rowsignal.horizon as h
        where c.xid >= start::xid8
            and c.xid < pg_snapshot_xmax(h.snapshot)
            and pg_visible_in_snapshot(c.xid, h.snapshot)
        order by c.xid
        limit batch_size
    ),
    gone as (
        delete from rowsignal.change as c where c.ctid = any (array(select b.ctid from behind as b))
    )
    select count(*), (array_agg(b.xid order by b.xid desc))[1]::text into deleted, reached
    from behind as b;
    if deleted < batch_size then
        reached := null;
    end if;
end
$rowsignal$;

-- How much of the change log is kept, stored where every process that prunes can read it.

-- :: prune by the stored retention
-- For schedulers inside the database, such as pg_cron: `select rowsignal.prune_v2()`.
create or replace function rowsignal.prune_v2(
    batch_size integer default 10000,
    start text default '0',
    out is_ours boolean,
    out deleted bigint,
    out reached text,
    out bytes bigint
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select p.is_ours, p.deleted, p.reached, p.bytes
    from rowsignal.prune_v3(null, null, prune_v2.batch_size, prune_v2.start) as p
$rowsignal$;

-- :: name of 0.1.0
-- Called by schedulers that were set up with it.
create or replace function rowsignal.prune_v1(
    max_age interval default '3 days',
    max_bytes bigint default 1073741824,
    batch_size integer default 10000,
    start text default '0',
    out is_ours boolean,
    out deleted bigint,
    out reached text,
    out bytes bigint
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select p.is_ours, p.deleted, p.reached, p.bytes
    from rowsignal.prune_v3(prune_v1.max_age, prune_v1.max_bytes, prune_v1.batch_size, prune_v1.start) as p
$rowsignal$;

-- Named consumers of the change log: handlers whose position is stored in the database and moved in
-- the transaction that has the effect of the change. The position is a snapshot (the log's
-- transactions that were handled), and is written to the WAL after them: whatever part of the WAL a
-- crash, a promotion or a recovery to a point in time keeps, position and log belong together.

-- :: consumers
create table if not exists rowsignal.consumer (
    name text primary key check (length(name) between 1 and 100),
    partitions integer not null check (partitions between 1 and 1000),
    tables text[] not null,      -- quoted and qualified
    created_at timestamptz not null default pg_catalog.clock_timestamp()
);

-- A place among the changes of a consumer, whose rows are spread over its partitions by their keys.
-- `generation` is drawn anew by each worker that takes the partition, and compared by every
-- statement that moves it: a worker that has lost its lease can commit nothing.
create table if not exists rowsignal.consumer_partition (
    consumer text not null references rowsignal.consumer on delete cascade,
    number integer not null check (number >= 0),
    generation bigint not null default 0,
    origin text not null,        -- the log that the position is of: rowsignal.log_origin_v1()
    seen pg_snapshot not null,   -- everything visible in it is done
    upto pg_snapshot,            -- and of what is visible in this, changes up to `last_id`
    last_id bigint not null default 0,
    moved_at timestamptz not null default pg_catalog.clock_timestamp(),
    handled bigint not null default 0,
    attempts integer not null default 0, -- that have failed, of the change that is next
    error text,
    failing jsonb,               -- that change, and the position after it
    holder uuid,                 -- a worker, whose lease is in force as long as it is alive
    backend integer,             -- its connection, which is ended when the lease is over
    backend_start timestamptz,
    overtaken_at timestamptz,    -- when retention deleted changes that were not handled
    resets bigint not null default 0,
    reset_at timestamptz,
    reset_reason text,
    primary key (consumer, number)
)
with (fillfactor = 50);

-- The processes that are alive, which share the partitions of a consumer among them. Renewing a lease
-- writes here and leaves the partitions alone: a handler's transaction of any isolation level moves
-- those, and must not meet with a concurrent update.
create table if not exists rowsignal.worker (
    id uuid not null,
    consumer text not null references rowsignal.consumer on delete cascade,
    label text not null,
    alive_until timestamptz not null,
    primary key (id, consumer)
);

-- Changes whose handler has failed as often as it may.
create table if not exists rowsignal.dead_letter (
    id bigint generated always as identity primary key,
    consumer text not null references rowsignal.consumer on delete cascade,
    partition integer not null,
    change jsonb not null,
    error text not null,
    attempts integer not null,
    failed_at timestamptz not null default pg_catalog.clock_timestamp(),
    is_due boolean not null default false -- to be handled once more
);
create index if not exists dead_letter_consumer on rowsignal.dead_letter (consumer, partition, id);

-- :: comparing snapshots
-- Whether everything that was visible in the older one is visible in the other.
create or replace function rowsignal.snapshot_includes_v1(later pg_snapshot, older pg_snapshot)
returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select pg_snapshot_xmax(older) <= pg_snapshot_xmax(later) and not exists (
        select from pg_snapshot_xip(later) as running where pg_visible_in_snapshot(running, older))
$rowsignal$;

-- :: lost positions
-- Why the log no longer has all that comes after a position; null when it has.
create or replace function rowsignal.position_problem_v1(origin text, seen pg_snapshot) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select case
        when origin is distinct from rowsignal.log_origin_v1()
        then 'the log was made anew or restored from a dump'
        when pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot())
        then 'the position is ahead of the log'
        when exists (select from rowsignal.horizon as h
                     where not rowsignal.snapshot_includes_v1(position_problem_v1.seen, h.snapshot))
        then 'retention has deleted changes that were not handled' end
$rowsignal$;

-- :: relations of a consumer
create or replace function rowsignal.consumer_relations_v1(tables text[]) returns oid[]
language sql stable
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select array(
        select to_regclass(name)::oid from unnest(tables) as name
        union
        select part.relid::oid from unnest(tables) as name, pg_partition_tree(to_regclass(name)) as part)
$rowsignal$;

-- :: record what retention overtakes
-- Called by the pruning that moves the horizon, in its transaction and before it deletes. Where
-- changes that were not handled are about to go, that is recorded. Where there are none, a position
-- that the horizon passes moves along with it: what lies between is wanted no more.
create or replace function rowsignal.overtake_consumers_v1(horizon pg_snapshot) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $rowsignal$
    update rowsignal.consumer_partition as p set overtaken_at = clock_timestamp()
    from rowsignal.consumer as c
    where c.name = p.consumer and p.overtaken_at is null
        and not rowsignal.snapshot_includes_v1(p.seen, horizon)
        and exists (
            select from (
                select * from rowsignal.change as a where a.xid >= pg_snapshot_xmax(p.seen)
                union all
                select * from rowsignal.change as b where b.xid = any (array(select pg_snapshot_xip(p.seen)))
            ) as l
            where l.relation = any (rowsignal.consumer_relations_v1(c.tables))
                and pg_visible_in_snapshot(l.xid, horizon)
                and (p.upto is null or l.id > p.last_id or not pg_visible_in_snapshot(l.xid, p.upto)));
    update rowsignal.consumer_partition as p
    set seen = horizon,
        upto = case when not rowsignal.snapshot_includes_v1(horizon, p.upto) then p.upto end,
        last_id = case when not rowsignal.snapshot_includes_v1(horizon, p.upto) then p.last_id else 0 end
    where p.overtaken_at is null and not rowsignal.snapshot_includes_v1(p.seen, horizon)
$rowsignal$;

-- :: create a consumer
-- Make it known, or widen it: when its number of partitions is multiplied, each new partition goes on
-- from the position of the one that its rows were in before. Null for `seen` is the log's beginning.
create or replace function rowsignal.create_consumer_v1(
    name text, partitions integer, tables text[], seen pg_snapshot) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $rowsignal$
#variable_conflict use_variable
declare
    old rowsignal.consumer;
begin
    insert into rowsignal.consumer as c (name, partitions, tables) values (name, partitions, tables)
    on conflict do nothing;
    if found then
        insert into rowsignal.consumer_partition (consumer, number, origin, seen)
        select name, n, rowsignal.log_origin_v1(), coalesce(seen, h.snapshot)
        from generate_series(0, partitions - 1) as n cross join rowsignal.horizon as h;
        return;
    end if;
    select * into old from rowsignal.consumer as c where c.name = name;
    if old.partitions = partitions and old.tables = tables then
        return;
    end if;
    select * into old from rowsignal.consumer as c where c.name = name for update;
    if partitions % old.partitions <> 0 then
        raise exception using errcode = 'RS003', message = format(
            'Consumer %L has %s partitions in the database, and %s is not a multiple of it.',
            name, old.partitions, partitions);
    end if;
    update rowsignal.consumer as c set partitions = partitions, tables = tables where c.name = name;
    if old.partitions < partitions then
        perform from rowsignal.consumer_partition as p where p.consumer = name order by p.number for update;
        insert into rowsignal.consumer_partition
            (consumer, number, origin, seen, upto, last_id, overtaken_at)
        select name, p.number + step * old.partitions, p.origin, p.seen, p.upto, p.last_id, p.overtaken_at
        from rowsignal.consumer_partition as p
        cross join generate_series(1, partitions / old.partitions - 1) as step
        where p.consumer = name;
        -- Workers that know of fewer partitions must not move these any more.
        update rowsignal.consumer_partition as p
        set generation = p.generation + 1, holder = null
        where p.consumer = name;
    end if;
end
$rowsignal$;

-- :: shares
-- How many partitions of a consumer each of its live workers may hold.
create or replace function rowsignal.worker_shares_v1(names text[])
returns table (consumer text, share bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select c.name, ceil(c.partitions::numeric / greatest(1, count(w.id)))::bigint
    from rowsignal.consumer as c
    left join rowsignal.worker as w on w.consumer = c.name and w.alive_until >= clock_timestamp()
    where c.name = any (names)
    group by c.name
$rowsignal$;

-- :: lease in force
-- Whether the worker that holds a partition is alive.
create or replace function rowsignal.is_leased_v1(holder uuid, consumer text) returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select exists (
        select from rowsignal.worker as w
        where w.id = is_leased_v1.holder and w.consumer = is_leased_v1.consumer
            and w.alive_until >= clock_timestamp())
$rowsignal$;

-- :: leases
-- Renew a worker's leases, take partitions that are free or whose worker is not alive, and return
-- what it holds now: {"held": [...], "wait": seconds until the next lease of another worker is over}.
-- Rows that are locked belong to a transaction that is about to commit, and are left for the next
-- call. A worker that was stopped in the middle of a transaction holds locks, possibly on what its
-- successor needs: its connection is ended, for which one role is enough.
create or replace function rowsignal.lease_consumers_v1(
    worker uuid, label text, names text[], lease interval) returns json
language plpgsql
set search_path = pg_catalog, pg_temp
as $rowsignal$
#variable_conflict use_variable
declare
    until constant timestamptz := clock_timestamp() + lease;
begin
    insert into rowsignal.worker as w (id, consumer, label, alive_until)
    select worker, c.name, label, until from rowsignal.consumer as c where c.name = any (names)
    on conflict (id, consumer) do update set alive_until = excluded.alive_until;
    delete from rowsignal.worker as w where w.ctid = any (array(
        select d.ctid from rowsignal.worker as d where d.alive_until < clock_timestamp() - lease
        for update skip locked));

    perform pg_terminate_backend(a.pid)
    from rowsignal.consumer_partition as p
    join pg_stat_activity as a
        on a.pid = p.backend and a.backend_start = p.backend_start and a.usename = current_user
    where p.consumer = any (names) and p.holder <> worker and not rowsignal.is_leased_v1(p.holder, p.consumer);

    -- The generation is compared once more when the row is locked: a worker that was faster has
    -- drawn another one.
    with free as (
        select q.consumer, q.number, q.generation,
            row_number() over (partition by q.consumer order by q.number) as place
        from rowsignal.consumer_partition as q
        where q.consumer = any (names)
            and (q.holder is null or not rowsignal.is_leased_v1(q.holder, q.consumer))
    ),
    mine as (
        select q.consumer, count(*) as held from rowsignal.consumer_partition as q
        where q.holder = worker group by q.consumer
    ),
    taken as (
        select q.consumer, q.number
        from free as f
        join rowsignal.worker_shares_v1(names) as s using (consumer)
        left join mine as m using (consumer)
        join rowsignal.consumer_partition as q using (consumer, number, generation)
        where f.place <= s.share - coalesce(m.held, 0)
        for no key update of q skip locked
    )
    update rowsignal.consumer_partition as p
    set holder = worker, generation = p.generation + 1, backend = null, backend_start = null
    from taken as t where p.consumer = t.consumer and p.number = t.number;

    return json_build_object(
        'held', coalesce((
            select json_agg(json_build_object(
                'consumer', p.consumer, 'number', p.number, 'generation', p.generation,
                'is_surplus', p.place > p.share,
                'is_due', exists (select from rowsignal.dead_letter as d
                    where d.consumer = p.consumer and d.partition = p.number and d.is_due)))
            from (
                select q.consumer, q.number, q.generation, s.share,
                    row_number() over (partition by q.consumer order by q.number) as place
                from rowsignal.consumer_partition as q
                join rowsignal.worker_shares_v1(names) as s using (consumer)
                where q.holder = worker
            ) as p), '[]'),
        'wait', (
            select extract(epoch from min(w.alive_until) - clock_timestamp())
            from rowsignal.worker as w
            join rowsignal.consumer_partition as q on q.holder = w.id and q.consumer = w.consumer
            where w.consumer = any (names) and w.id <> worker));
end
$rowsignal$;

-- :: reset a consumer
-- Put all partitions at a position; null is the log's beginning. Whatever is being handled is undone.
create or replace function rowsignal.reset_consumer_v1(
    name text, seen pg_snapshot, upto pg_snapshot, last_id bigint, reason text) returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $rowsignal$
    with moved as (
        update rowsignal.consumer_partition as p
        set seen = coalesce(reset_consumer_v1.seen, h.snapshot), upto = reset_consumer_v1.upto,
            last_id = reset_consumer_v1.last_id, origin = rowsignal.log_origin_v1(),
            generation = p.generation + 1, holder = null, attempts = 0, error = null, failing = null,
            overtaken_at = null, resets = p.resets + 1, reset_at = clock_timestamp(),
            reset_reason = reason, moved_at = clock_timestamp()
        from rowsignal.horizon as h
        where p.consumer = name
        returning 1
    )
    select count(*) from moved
$rowsignal$;

-- :: skip a change
-- Make dead letters of the changes that partitions are failing at, and go on after them.
create or replace function rowsignal.skip_failing_v1(name text, only_number integer default null)
returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $rowsignal$
    with failing as (
        select p.* from rowsignal.consumer_partition as p
        where p.consumer = name and p.failing is not null
            and (only_number is null or p.number = only_number)
        for update
    ),
    moved as (
        update rowsignal.consumer_partition as p
        set seen = (f.failing ->> 'seen')::pg_snapshot, upto = (f.failing ->> 'upto')::pg_snapshot,
            last_id = (f.failing ->> 'last_id')::bigint, generation = p.generation + 1, holder = null,
            attempts = 0, error = null, failing = null, moved_at = clock_timestamp()
        from failing as f
        where p.consumer = f.consumer and p.number = f.number
    ),
    kept as (
        insert into rowsignal.dead_letter (consumer, partition, change, error, attempts)
        select f.consumer, f.number, c.value, coalesce(f.error, 'skipped'), f.attempts
        from failing as f cross join lateral jsonb_array_elements(f.failing -> 'changes') as c
        returning 1
    )
    select count(*) from kept
$rowsignal$;

-- :: lag
-- Each partition, and what it has yet to handle: `lag_changes` counts the changes of the consumer's
-- tables after its position (of all its partitions, up to 100,000), `lag_seconds` is the age of the
-- first. `retention_used` says how much of what the retention keeps lies between the position and
-- now: at 1 the next pruning deletes changes that were not handled.
create or replace function rowsignal.consumer_lag_v1()
returns table (
    consumer text, number integer, partitions integer, tables text[], position_seen pg_snapshot,
    handled bigint, lag_changes bigint, lag_seconds float8, retention_used float8, problem text,
    holder text, lease_seconds float8, attempts integer, error text, resets bigint, reset_at timestamptz,
    reset_reason text, dead_letters bigint)
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_custom_plan
as $rowsignal$
    select p.consumer, p.number, c.partitions, c.tables, p.seen, p.handled, lag.changes,
        coalesce(extract(epoch from clock_timestamp() - lag.since), 0)::float8,
        greatest(
            extract(epoch from clock_timestamp() - t.since) / nullif(extract(epoch from r.max_age), 0),
            t.changes * width.bytes / nullif(r.max_bytes, 0), 0)::float8,
        rowsignal.position_problem_v1(p.origin, p.seen),
        case when w.alive_until >= clock_timestamp() then w.label end,
        extract(epoch from w.alive_until - clock_timestamp())::float8,
        p.attempts, p.error, p.resets, p.reset_at, p.reset_reason,
        (select count(*) from rowsignal.dead_letter as d where d.consumer = p.consumer and d.partition = p.number)
    from rowsignal.consumer_partition as p
    join rowsignal.consumer as c on c.name = p.consumer
    left join rowsignal.worker as w on w.id = p.holder and w.consumer = p.consumer
    cross join rowsignal.retention as r
    cross join lateral (
        select rowsignal.consumer_relations_v1(c.tables) as relations
    ) as own
    cross join lateral (
        select count(*) as changes, min(u.captured_at) as since
        from (
            select l.captured_at
            from (
                select * from rowsignal.change as a where a.xid >= pg_snapshot_xmax(p.seen)
                union all
                select * from rowsignal.change as b where b.xid = any (array(select pg_snapshot_xip(p.seen)))
            ) as l
            where l.relation = any (own.relations) and pg_visible_in_snapshot(l.xid, pg_current_snapshot())
                and (p.upto is null or l.id > p.last_id or not pg_visible_in_snapshot(l.xid, p.upto))
            limit 100000
        ) as u
    ) as lag
    cross join lateral (
        select min(s.taken_at) as since, coalesce(sum(s.changes), 0) as changes
        from rowsignal.tick as s where not rowsignal.snapshot_includes_v1(p.seen, s.snapshot)
    ) as t
    cross join (
        select coalesce(avg(pg_column_size(l.*)), 100)::bigint + 48 as bytes
        from (select * from rowsignal.change order by xid desc limit 200) as l
    ) as width
    order by p.consumer, p.number
$rowsignal$;

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

-- Which role may do what in schema rowsignal. An object begins with the rights that PostgreSQL's
-- defaults and ALTER DEFAULT PRIVILEGES give away; they are taken back when the object is made.

-- :: grantees by default
-- Of those with rights on an object: PUBLIC (0), and the roles that default privileges of its owner
-- name.
create or replace function rowsignal.default_grantees_v1(owner oid, rights aclitem[]) returns setof oid
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select r.grantee from aclexplode(rights) as r where r.grantee = 0
    union
    select d.grantee
    from aclexplode(rights) as r
    join (select a.defaclrole, (aclexplode(a.defaclacl)).grantee from pg_default_acl as a
          where a.defaclnamespace in (0, 'rowsignal'::regnamespace)) as d using (grantee)
    where d.defaclrole = owner and d.grantee <> owner
$rowsignal$;

create or replace function rowsignal.grantee_name_v1(grantee oid) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
$rowsignal$;

-- :: close a function
create or replace function rowsignal.close_function_v1(function regprocedure) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    grantee oid;
begin
    for grantee in
        select rowsignal.default_grantees_v1(p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)))
        from pg_proc as p where p.oid = function
    loop
        execute concat('revoke all on function ', function, ' from ', rowsignal.grantee_name_v1(grantee));
    end loop;
end
$rowsignal$;

-- :: close a table
-- Tables, sequences and the rights on single columns.
create or replace function rowsignal.close_table_v1(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    kind constant text := case c.relkind when 'S' then 'sequence ' else 'table ' end
        from pg_class as c where c.oid = relation;
    grantee oid;
begin
    for grantee in
        select rowsignal.default_grantees_v1(c.relowner, c.relacl) from pg_class as c where c.oid = relation
    loop
        execute concat('revoke all on ', kind, relation, ' from ', rowsignal.grantee_name_v1(grantee));
    end loop;
end
$rowsignal$;

-- :: functions for everybody
-- What the role of a writer or a reader calls: nothing here has more rights than its caller. The
-- owner of a partitioned table needs the hint trigger's function to make a partition, which gets a
-- copy of the trigger; with it a role can send hints, as it can with NOTIFY.
create or replace function rowsignal.open_functions_v1() returns setof regprocedure
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select unnest(array[
        'rowsignal.is_plain_v1(oid)', 'rowsignal.value_v1(anyelement)', 'rowsignal.key_value_v1(anyelement)',
        'rowsignal.key_v1(record)', 'rowsignal.named_key_v2(json, text[])', 'rowsignal.changed_columns_v2(json, json, json)',
        'rowsignal.is_awaited_v2(integer)', 'rowsignal.is_wanted_v2(integer, json)',
        'rowsignal.queue_share_v1()', 'rowsignal.hint_payload_v1(text, text, text, text[])',
        'rowsignal.row_hints_v1(text, text, record, record, text[], json)',
        'rowsignal.capture_hint_v2()']::regprocedure[])
$rowsignal$;

-- :: close
-- Take every right on every object of the schema from PUBLIC and from the roles of default
-- privileges, then give PUBLIC what capturing and waiting need. Rights that were granted to other
-- roles stay. A row type that others may use could be made the type of their columns, and our
-- tables could then not be altered.
create or replace function rowsignal.close_v1() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    closing record;
    function regprocedure;
begin
    perform rowsignal.close_function_v1(p.oid) from pg_proc as p
    where p.pronamespace = 'rowsignal'::regnamespace;
    perform rowsignal.close_table_v1(c.oid) from pg_class as c
    where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S');
    for closing in
        select concat('schema rowsignal from ', rowsignal.grantee_name_v1(g.grantee)) as text
        from pg_namespace as n, rowsignal.default_grantees_v1(n.nspowner, n.nspacl) as g(grantee)
        where n.nspname = 'rowsignal'
        union all
        select concat('type ', format_type(t.oid, null), ' from ', rowsignal.grantee_name_v1(g.grantee))
        from pg_type as t,
            rowsignal.default_grantees_v1(t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))) as g(grantee)
        where t.typnamespace = 'rowsignal'::regnamespace and t.typtype = 'c'
    loop
        execute concat('revoke all on ', closing.text);
    end loop;
    grant usage on schema rowsignal to public;
    grant select on rowsignal.migration to public;
    for function in select rowsignal.open_functions_v1() loop
        execute concat('grant execute on function ', function, ' to public');
    end loop;
end
$rowsignal$;

-- :: rights of a reader
-- What a role needs to watch, to serve and to work, as text for GRANT and REVOKE. To watch is to
-- read the log: keys, and values where they are logged, of every captured table. To serve is to watch
-- and to prune. To work is to watch and to keep positions: handlers run so. Capturing and waiting
-- need nothing beyond PUBLIC's rights.
create or replace function rowsignal.reader_rights_v1(may_serve boolean, may_work boolean) returns setof text
language sql stable set search_path = pg_catalog, pg_temp
as $rowsignal$
    select unnest(array[
        'select on table rowsignal.change', 'select on table rowsignal.incarnation',
        'select on table rowsignal.horizon', 'select on table rowsignal.stored_position',
        'select on table rowsignal.retention',
        'execute on function rowsignal.log_origin_v1()',
        'execute on function rowsignal.start_incarnation_v2()',
        'execute on function rowsignal.store_position_v2(pg_snapshot, pg_snapshot)'])
    union all
    select unnest(array[
        'execute on function rowsignal.prune_v2(integer, text)',
        'execute on function rowsignal.prune_v3(interval, bigint, integer, text)']) where may_serve
    union all
    select unnest(array[
        'select on table rowsignal.tick', 'select on table rowsignal.consumer',
        'select on table rowsignal.consumer_partition', 'select on table rowsignal.worker',
        'select on table rowsignal.dead_letter',
        'execute on function rowsignal.snapshot_includes_v1(pg_snapshot, pg_snapshot)',
        'execute on function rowsignal.position_problem_v1(text, pg_snapshot)',
        'execute on function rowsignal.consumer_relations_v1(text[])',
        'execute on function rowsignal.consumer_lag_v1()']) where may_serve or may_work
    union all
    select unnest(array[
        'insert, update, delete on table rowsignal.consumer',
        'insert, update, delete on table rowsignal.consumer_partition',
        'insert, update, delete on table rowsignal.worker',
        'insert, update, delete on table rowsignal.dead_letter',
        'execute on function rowsignal.create_consumer_v1(text, integer, text[], pg_snapshot)',
        'execute on function rowsignal.worker_shares_v1(text[])',
        'execute on function rowsignal.is_leased_v1(uuid, text)',
        'execute on function rowsignal.lease_consumers_v1(uuid, text, text[], interval)',
        'execute on function rowsignal.reset_consumer_v1(text, pg_snapshot, pg_snapshot, bigint, text)',
        'execute on function rowsignal.skip_failing_v1(text, integer)']) where may_work
$rowsignal$;

-- :: grant
create or replace function rowsignal.grant_v1(
    role regrole, may_watch boolean, may_serve boolean, may_work boolean default false)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    privilege text;
begin
    execute concat('grant usage on schema rowsignal to ', role);
    for privilege in select rowsignal.reader_rights_v1(may_serve, may_work) where may_watch or may_serve or may_work
    loop
        execute concat('grant ', privilege, ' to ', role);
    end loop;
end
$rowsignal$;

-- :: revoke
create or replace function rowsignal.revoke_v1(role regrole) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $rowsignal$
declare
    privilege text;
begin
    execute concat('revoke usage on schema rowsignal from ', role);
    for privilege in select rowsignal.reader_rights_v1(true, true) loop
        execute concat('revoke ', privilege, ' from ', role);
    end loop;
end
$rowsignal$;

-- :: triggers of 0.1.0
-- Their functions get the text of today under their old names: that takes no lock on a table, and no
-- trigger runs the old text any more. Installing the triggers of a table anew gives it today's names.
do $rowsignal$
declare
    old record;
    parts record;
begin
    execute (select concat('create or replace function rowsignal.capture_hint_v1() returns trigger '
        'language plpgsql set search_path = pg_catalog, pg_temp as ', quote_literal(p.prosrc))
        from pg_proc as p where p.oid = 'rowsignal.capture_hint_v2()'::regprocedure);
    execute (select concat('create or replace function rowsignal.capture_log_truncate_v1() returns trigger '
        'language plpgsql security definer set search_path = pg_catalog, pg_temp as ', quote_literal(p.prosrc))
        from pg_proc as p where p.oid = 'rowsignal.capture_log_truncate_v2()'::regprocedure);
    perform rowsignal.sweep_v2();
    for old in
        select distinct on (p.oid) p.proname as function, split_part(p.proname, '_', 3) as event,
            t.tgrelid::regclass as relation, a.arguments[3]::jsonb - 'shape' as settings, a.arguments[4:] as key_columns
        from pg_proc as p
        join pg_trigger as t on t.tgfoid = p.oid
        cross join lateral (select rowsignal.trigger_arguments_v2(t.tgargs) as arguments) as a
        where p.pronamespace = 'rowsignal'::regnamespace and p.proname ~ '^capture_log_[a-z]+_v1_[0-9a-f]{12}$'
    loop
        select * into strict parts
        from rowsignal.log_parts_v1(old.relation, old.event, old.settings, old.key_columns);
        perform rowsignal.define_log_function_v1(old.function,
            rowsignal.log_function_text_v1(old.relation, old.event, old.settings, parts), parts.needs_pins);
    end loop;
end
$rowsignal$;

-- :: functions of 0.1.0
-- Every role could execute most of them: what depends on one, say a view, keeps it.
do $rowsignal$
declare
    name text;
begin
    for name in select unnest(array[
        'rowsignal.named_key_v1(json, text[])',
        'rowsignal.changed_columns_v1(json, json, json)',
        'rowsignal.is_awaited_v1(integer)',
        'rowsignal.is_wanted_v1(integer, json)',
        'rowsignal.say_v1(text, text, text, text[])',
        'rowsignal.hint_row_v1(text, text, record, record, text[], json)',
        'rowsignal.trigger_arguments_v1(bytea)',
        'rowsignal.family_v1(oid)',
        'rowsignal.key_columns_v1(oid)',
        'rowsignal.check_table_v1(regclass, jsonb)',
        'rowsignal.token_v1(oid)',
        'rowsignal.shape_v1(oid)',
        'rowsignal.hint_triggers_v1(regclass, boolean, text, jsonb, text[])',
        'rowsignal.literals_v1(text[])',
        'rowsignal.log_triggers_v1(regclass, text, jsonb, text[])',
        'rowsignal.wanted_triggers_v1(regclass, boolean, text, jsonb, text[])',
        'rowsignal.drop_triggers_v1(regclass, text[])',
        'rowsignal.sweep_v1()',
        'rowsignal.log_key_v1(json, text[])',
        'rowsignal.log_value_v1(json)',
        'rowsignal.log_row_v1(json, json)',
        'rowsignal.wake_v1()',
        'rowsignal.column_expressions_v1(oid)',
        'rowsignal.make_log_function_v1(regclass, text, jsonb, text[])',
        'rowsignal.log_one_v1(text, jsonb, text, text, text)',
        'rowsignal.log_kept_v1(jsonb)',
        'rowsignal.log_query_v1(text, jsonb, text, text, text, text)',
        'rowsignal.log_fallback_v1(text)',
        'rowsignal.start_incarnation_v1()',
        'rowsignal.store_position_v1(pg_snapshot, pg_snapshot)'])
    loop
        begin
            execute concat('drop function if exists ', name);
        exception when dependent_objects_still_exist then
            raise notice 'rowsignal: another object depends on function %, which stays', name;
        end;
    end loop;
end
$rowsignal$;

select rowsignal.close_v1();
insert into rowsignal.migration (version, name) values (4, 'security') on conflict do nothing;
