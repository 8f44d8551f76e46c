-- What all who prune the change log agree on.
-- How much of the change log is kept, stored where all who prune can read it.

-- :: retention
-- One row: what differs from it is said in a call of prune_v1, and holds for that call.
create table if not exists rowsignal.retention (
    is_only boolean primary key default true check (is_only),
    max_age interval not null default '3 days' check (max_age >= '0 seconds'),
    max_bytes bigint not null default 1073741824 check (max_bytes >= 0)
);
insert into rowsignal.retention default values on conflict do nothing;

revoke all on rowsignal.retention from public;

-- :: prune by the stored retention
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
as $prune$
    select p.is_ours, p.deleted, p.reached, p.bytes
    from rowsignal.retention as r
    cross join lateral rowsignal.prune_v1(r.max_age, r.max_bytes, batch_size, start) as p
$prune$;

revoke all on function rowsignal.prune_v2(integer, text) from public;
INSERT INTO rowsignal.migration (version, name) VALUES (3, 'retention') ON CONFLICT DO NOTHING;
