-- The change log: every committed change of every logged table, and what says which part of it
-- a position may still be read from. Only the owner has rights on any of it.

-- :: change_log
-- Columns go from wide to narrow so that no byte is lost to alignment. `xid` is the top-level
-- transaction even inside a savepoint. The identity must not be cached by sessions: the id is
-- drawn while the row's lock is held, which is what keeps the changes of a row in order.
-- Defaults run with the rights of the schema's owner, inside the triggers: built-in code alone, by its
-- full name. That of `trace` cannot fail, whatever a writer has set: a setting of the startup packet, or
-- one of a role made in a database of another encoding, may have bytes that are no text. Stored as they
-- are, they would stop every reader, and functions of characters may refuse them. So the bytes are
-- escaped, which makes each that is not ASCII begin with a backslash, and then looked at.
create table if not exists rowsignal.change (
    id bigint generated always as identity (cache 1),
    xid xid8 not null default pg_catalog.pg_current_xact_id(),
    captured_at timestamptz not null default pg_catalog.clock_timestamp(),
    relation oid not null,       -- the table that was written; a partition is named itself
    operation "char" not null,   -- i, u, d or t
    key jsonb,                   -- {"column": value, ...}; null for a truncate
    changed text[],              -- the columns that an update gave another value; else null
    old_row jsonb,               -- values before, of the columns that were asked for
    new_row jsonb,               -- values after, of the columns that were asked for
    trace text default           -- the setting of the writer's session, printable ASCII without a backslash
        case when pg_catalog.octet_length(pg_catalog.current_setting('rowsignal.trace', true)) operator(pg_catalog.<=) 512
            and pg_catalog.encode(pg_catalog.replace(pg_catalog.current_setting('rowsignal.trace', true), E'\\', E'\\\\')::pg_catalog.bytea,
                'escape') operator(pg_catalog.~) '^[] -[^-~]+$'
        then pg_catalog.current_setting('rowsignal.trace', true) end
)
with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- The only index: each further one would be paid for by every writer. It has the relation, so that a
-- reader of other tables passes over a million changes of this one without a look at any of them.
create index if not exists change_xid_relation on rowsignal.change (xid, relation);

-- Unlogged on purpose: crash recovery and promotion empty it, a clean restart keeps it. Either of
-- the former can hand a transaction id out twice, so no position from before may be trusted.
-- `origin` tells a dump that was restored elsewhere from the log it was taken of.
create unlogged table if not exists rowsignal.incarnation (
    id uuid not null,
    origin text not null
);

-- What is visible in this snapshot may have been pruned.
create table if not exists rowsignal.horizon (
    snapshot pg_snapshot not null,
    last_id bigint not null default 0,
    origin text -- unlike that of the incarnation, it outlives a crash
);

-- A change can commit hours after it was captured, so its age is that of a snapshot that saw it.
create table if not exists rowsignal.tick (
    taken_at timestamptz not null default pg_catalog.clock_timestamp(),
    snapshot pg_snapshot not null,
    last_id bigint not null,
    changes bigint not null default 0 -- seen by this snapshot and not by the one before it
);

-- Positions that are too long to be carried around by a browser.
create table if not exists rowsignal.stored_position (
    id uuid primary key default pg_catalog.gen_random_uuid(),
    stored_at timestamptz not null default pg_catalog.clock_timestamp(),
    before pg_snapshot not null,
    after pg_snapshot
);

-- :: log_origin
-- Reads pg_control, which no dump carries: a dump that is restored elsewhere brings an incarnation
-- and future transaction ids along, and must not be taken for the log it was taken of.
create or replace function rowsignal.log_origin_v1() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $rowsignal$
    select c.system_identifier || ':' || d.oid || ':' || 'rowsignal.change'::regclass::oid
    from pg_control_system() as c, pg_database as d
    where d.datname = current_database()
$rowsignal$;

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
