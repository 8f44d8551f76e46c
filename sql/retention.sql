-- How much of the change log is kept, stored where every process that prunes can read it.

-- :: retention
-- One row. What a call of prune_v3 names instead holds for that call.
create table if not exists rowsignal.retention (
    is_only boolean primary key default true check (is_only),
    max_age interval not null default '3 days' check (max_age >= '0 seconds'),
    max_bytes bigint not null default 1073741824 check (max_bytes >= 0)
);
insert into rowsignal.retention default values on conflict do nothing;

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
