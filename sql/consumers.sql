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
