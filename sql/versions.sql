-- The migrations that were applied, of which the newest is the schema's version.

-- :: migration
-- Installing and uninstalling lock this table: a role without rights on it cannot take that lock.
comment on schema rowsignal is 'Row changes for waiting programs and streams (rowsignal).';
create table if not exists rowsignal.migration (
    version integer primary key check (version > 0),
    name text not null,
    applied_at timestamptz not null default clock_timestamp()
);
