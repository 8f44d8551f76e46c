-- The schema that holds all objects of rowsignal, and the list of the migrations behind its version.
-- The owner is whichever role installs it; the installer refuses a schema of a role it does not trust.

-- :: schema
create schema if not exists rowsignal;
comment on schema rowsignal is 'Row changes for waiting programs and streams (rowsignal).';

-- :: migrations applied
-- Installing and uninstalling lock this table: a role without rights on it cannot take that lock.
create table if not exists rowsignal.migration (
    version integer primary key check (version > 0),
    name text not null,
    applied_at timestamptz not null default pg_catalog.clock_timestamp()
);
