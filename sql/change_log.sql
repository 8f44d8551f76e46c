-- The change log: every committed change of every logged table, and what says which part of it
-- a position may still be read from. Nobody but the owner has rights on any of it.

-- name: change_log
-- Columns go from wide to narrow so that no byte is lost to alignment. `xid` is the top-level
-- transaction even inside a savepoint. The identity must not be cached by sessions: the id is
-- drawn while the row's lock is held, which is what keeps the changes of a row in order.
create table if not exists rowsignal.change (
    id bigint generated always as identity (cache 1),
    xid xid8 not null default pg_catalog.pg_current_xact_id(),
    captured_at timestamptz not null default pg_catalog.clock_timestamp(),
    relation oid not null,       -- the table that was written; a partition is named itself
    operation "char" not null,   -- i, u, d or t
    key jsonb,                   -- {"column": value, ...}; null for a truncate
    changed text[],              -- the columns that an update gave another value; else null
    old_row jsonb,               -- values before, of the columns that were asked for
    new_row jsonb                -- values after, of the columns that were asked for
)
with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- The only index: each further one would be paid for by every writer.
create index if not exists change_xid on rowsignal.change (xid);

-- Unlogged on purpose: crash recovery and promotion empty it, a clean restart keeps it. Either of
-- the former can hand a transaction id out twice, so no position from before may be trusted.
-- `origin` tells a dump that was restored elsewhere from the log it was taken of.
create unlogged table if not exists rowsignal.incarnation (
    id uuid not null,
    origin text not null
);

-- What is visible in this snapshot may have been pruned.
create table if not exists rowsignal.horizon (
    snapshot pg_snapshot not null
);

-- A change can commit hours after it was captured, so its age is that of a snapshot that saw it.
create table if not exists rowsignal.tick (
    taken_at timestamptz not null default pg_catalog.clock_timestamp(),
    snapshot pg_snapshot not null,
    last_id bigint not null
);

-- Positions that are too long to be carried around by a browser.
create table if not exists rowsignal.stored_position (
    id uuid primary key default pg_catalog.gen_random_uuid(),
    stored_at timestamptz not null default pg_catalog.clock_timestamp(),
    before pg_snapshot not null,
    after pg_snapshot
);

revoke all on rowsignal.change, rowsignal.incarnation, rowsignal.horizon, rowsignal.tick,
    rowsignal.stored_position from public;
