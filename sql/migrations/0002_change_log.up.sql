-- The change log and what writes it.
-- The change log: every committed change of every logged table, and what says which part of it
-- a position may still be read from. Nobody but the owner has rights on any of it.

-- :: change_log
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
    snapshot pg_snapshot not null,
    last_id bigint not null default 0
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

-- :: log_origin
-- Reads pg_control, which no dump carries: a dump that is restored elsewhere brings an incarnation
-- and future transaction ids along, and must not be taken for the log it was taken of.
create or replace function rowsignal.log_origin_v1() returns text
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $origin$
    select c.system_identifier || ':' || d.oid || ':' || 'rowsignal.change'::regclass::oid
    from pg_control_system() as c, pg_database as d
    where d.datname = current_database()
$origin$;

-- :: start_incarnation
-- Called by whoever finds no incarnation of this log: after installation, after a crash or a
-- promotion, after a restore. Takes no lock that a writer would wait for: what was logged before is
-- behind the new horizon, and pruned like everything else there.
create or replace function rowsignal.start_incarnation_v1() returns uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $incarnation$
declare
    here constant text := rowsignal.log_origin_v1();
    found_id uuid;
begin
    lock table rowsignal.incarnation in share row exclusive mode;
    select i.id into found_id from rowsignal.incarnation as i where i.origin = here;
    if found then
        return found_id;
    end if;
    -- Restored rows may be of transactions still to come, and would be delivered when their ids
    -- come round. Writers at work are safe: what they have not committed is not visible here.
    delete from rowsignal.change as c where c.xid >= pg_snapshot_xmax(pg_current_snapshot());
    delete from rowsignal.tick;
    delete from rowsignal.stored_position;
    delete from rowsignal.horizon;
    insert into rowsignal.horizon (snapshot, last_id)
    values (
        pg_current_snapshot(),
        coalesce(pg_sequence_last_value('rowsignal.change_id_seq'), 0)
    );
    delete from rowsignal.incarnation;
    insert into rowsignal.incarnation (id, origin) values (gen_random_uuid(), here)
    returning id into found_id;
    return found_id;
end
$incarnation$;

-- :: store_position
create or replace function rowsignal.store_position_v1(before pg_snapshot, after pg_snapshot)
returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $store$
    insert into rowsignal.stored_position (before, after) values ($1, $2) returning id
$store$;

-- :: prune
-- Remembers now and then what is visible; moves the horizon up to the newest such tick that is
-- older than `max_age`, or further while the log is larger than `max_bytes`; then deletes up to
-- `batch_size` changes behind it, from transaction `start` on. A reader that finds rows gone finds
-- the horizon moved as well, since both are written in one transaction.
create or replace function rowsignal.prune_v1(
    max_age interval default '3 days',
    max_bytes bigint default 1073741824,
    batch_size integer default 10000,
    start text default '0',
    out is_ours boolean,    -- false: somebody else is pruning, nothing was done
    out deleted bigint,
    out reached text,       -- where to start the next batch; null when there is nothing left
    out bytes bigint        -- estimated size of what is in front of the horizon
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off -- before 18 a plan without its seqscan costs enough to be compiled, for 0.1 s
set plan_cache_mode = force_custom_plan
as $prune$
declare
    visible_now constant pg_snapshot := pg_current_snapshot();
    newest_id constant bigint := coalesce(pg_sequence_last_value('rowsignal.change_id_seq'), 0);
    width bigint;
    target rowsignal.tick;
begin
    -- What this transaction had written would count as seen by the tick, and is not yet committed.
    if pg_current_xact_id_if_assigned() is not null then
        raise exception 'rowsignal.prune_v1 must be called in a transaction that has written nothing'
            using errcode = 'active_sql_transaction';
    end if;
    is_ours := pg_try_advisory_xact_lock(1919907699, 1001);
    if not is_ours then
        return;
    end if;
    perform rowsignal.start_incarnation_v1();

    -- A change costs its values, a header, a line pointer and an entry in the index.
    select coalesce(avg(pg_column_size(c.*)), 100)::bigint + 48 into width
    from (select * from rowsignal.change order by xid desc limit 200) as c;

    insert into rowsignal.tick (snapshot, last_id)
    select visible_now, newest_id
    where not exists (
        select from rowsignal.tick as t
        where t.taken_at > clock_timestamp() - max_age / 1000
            and (newest_id - t.last_id) * width < max_bytes / 50
    );

    select (newest_id - h.last_id) * width into bytes from rowsignal.horizon as h;
    select * into target from rowsignal.tick as t
    where t.taken_at <= clock_timestamp() - max_age
        or (bytes > max_bytes and t.taken_at <= (
            select min(s.taken_at) from rowsignal.tick as s
            where (newest_id - s.last_id) * width <= max_bytes
        ))
    order by t.taken_at desc
    limit 1;
    if found then
        update rowsignal.horizon set snapshot = target.snapshot, last_id = target.last_id;
        delete from rowsignal.tick as t where t.taken_at <= target.taken_at;
        delete from rowsignal.stored_position as p where p.stored_at < target.taken_at;
        bytes := (newest_id - target.last_id) * width;
    end if;

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
$prune$;

revoke all on function rowsignal.start_incarnation_v1(),
    rowsignal.store_position_v1(pg_snapshot, pg_snapshot),
    rowsignal.prune_v1(interval, bigint, integer, text) from public;
-- Log capture: write every change of a row into rowsignal.change, in the transaction that makes it.
--
-- The triggers are statement-level with transition tables, one for each event. Their functions are
-- made for the columns of a table: half the cost of going through JSON. A function that no longer
-- fits its table (ALTER TABLE) notices, and goes the slow way until it is installed anew.

-- :: key of a logged row
-- {"column": value}: integers and booleans as such, everything else as its text. NULL when one of
-- the columns is not there.
CREATE OR REPLACE FUNCTION rowsignal.log_key_v1(image json, columns text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    name text;
    value json;
    key jsonb := '{}';
BEGIN
    FOREACH name IN ARRAY coalesce(columns, '{}') LOOP
        value := image -> name;
        IF value IS NULL THEN
            RETURN NULL;
        END IF;
        key := key || jsonb_build_object(name, rowsignal.log_value_v1(value));
    END LOOP;
    RETURN nullif(key, '{}');
END
$rowsignal$;

CREATE OR REPLACE FUNCTION rowsignal.log_value_v1(value json) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT CASE WHEN json_typeof(value) IN ('boolean', 'string') OR value::text ~ '^-?\d+$' THEN value::jsonb
                ELSE to_jsonb(value::text) END
$rowsignal$;

-- :: values of a logged row
-- What is kept of a row: all but the excluded columns, or those that readers filter by.
CREATE OR REPLACE FUNCTION rowsignal.log_row_v1(image json, settings json) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT CASE WHEN image IS NULL THEN NULL
        WHEN (settings ->> 'row_values')::boolean THEN image::jsonb - ARRAY(
            SELECT json_array_elements_text(coalesce(settings -> 'exclude', '[]')))
        WHEN settings -> 'filter' IS NOT NULL THEN (
            SELECT jsonb_object_agg(name, image -> name)
            FROM json_array_elements_text(settings -> 'filter') AS name) END
$rowsignal$;

-- :: wake
-- Readers sleep while there is nothing to read. Called after the insert: a reader that is about to
-- sleep looks first who is writing to the log. One notification is enough for a transaction.
CREATE OR REPLACE FUNCTION rowsignal.wake_v1() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
BEGIN
    IF current_setting('rowsignal.woken', true) = pg_current_xact_id()::text THEN
        RETURN;
    END IF;
    IF rowsignal.is_wanted_v1(1000, '{}') THEN
        PERFORM pg_notify('rowsignal_log', '');
        PERFORM set_config('rowsignal.woken', pg_current_xact_id()::text, true);
    END IF;
END
$rowsignal$;

-- :: TRUNCATE
CREATE OR REPLACE FUNCTION rowsignal.capture_log_truncate_v1() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $rowsignal$
BEGIN
    INSERT INTO rowsignal.change (relation, operation) VALUES (TG_RELID, 't');
    BEGIN
        IF (TG_ARGV[2]::json ->> 'notify')::boolean IS NOT FALSE THEN
            PERFORM rowsignal.wake_v1();
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'rowsignal could not wake the readers of the change log: %', SQLERRM;
    END;
    RETURN NULL;
EXCEPTION WHEN undefined_table THEN -- as when rows are logged: without a log there is nothing to lose
    RAISE WARNING 'rowsignal.change is missing: the truncation of % is not logged', TG_RELID::regclass;
    RETURN NULL;
END
$rowsignal$;

-- :: expressions for a column
-- How to compare and write a column. For the types listed, equality is equality of what is stored;
-- for others (1.0 and 1.00, citext, json, which has no equality) the stored image is compared, and a
-- key is joined by its text. A collation may call different texts equal: "C" does not.
CREATE OR REPLACE FUNCTION rowsignal.column_expressions_v1(relation oid)
RETURNS TABLE (name text, place integer, differs text, same text, value text, is_plain boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT a.attname, a.attnum,
        CASE WHEN is_exact THEN format('o.%1$I IS DISTINCT FROM n.%1$I%2$s', a.attname, binary_collation)
             ELSE format('ROW(o.%1$I)::record *<> ROW(n.%1$I)::record', a.attname) END,
        CASE WHEN is_exact THEN format('o.%1$I = n.%1$I%2$s', a.attname, binary_collation)
             ELSE format('to_json(o.%1$I)::text = to_json(n.%1$I)::text', a.attname) END,
        CASE WHEN is_exact THEN format('%%1$s.%I', a.attname)
             ELSE format('rowsignal.log_value_v1(to_json(%%1$s.%I))', a.attname) END,
        is_exact AND t.typname NOT IN ('date', 'timestamp', 'timestamptz', 'time', 'bytea')
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (SELECT
        t.typnamespace = 'pg_catalog'::regnamespace AND t.typname IN ('int2', 'int4', 'int8', 'bool', 'oid',
            'text', 'varchar', 'uuid', 'date', 'timestamp', 'timestamptz', 'time', 'bytea') AS is_exact,
        CASE WHEN t.typname IN ('text', 'varchar') THEN ' COLLATE "C"' ELSE '' END AS binary_collation) AS kind
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$rowsignal$;

-- :: function of a table
-- Make the trigger function for one event of tables with such columns, and return its name, which
-- ends in the digest of its text: whoever looks can tell whether somebody has changed it. In the
-- text, o and n are rows before and after. The first query fails when the columns are no longer
-- these. It only reads: a guard around the insert would cost a transaction id for each statement.
-- Most updates change one row: then that query has found it, and no join is needed.
CREATE OR REPLACE FUNCTION rowsignal.make_log_function_v1(
    relation regclass, event text, settings jsonb, key_columns text[])
RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    body text := $body$
DECLARE
    is_stale boolean := false;
    is_one boolean := false;
    one_key jsonb;
    one_changed text[];
    one_old jsonb;
    one_new jsonb;
    keys text[];
BEGIN
    BEGIN
        {first}
        WHERE true OR EXISTS (SELECT {one}.* UNION ALL SELECT {columns} FROM rowsignal.change);
    EXCEPTION
    WHEN no_data_found THEN
        RETURN NULL;
    WHEN too_many_rows THEN
        is_one := false;
    WHEN OTHERS THEN
        is_stale := true;
    END;
    IF is_one THEN
        IF one_changed = '{}' THEN
            RETURN NULL;
        END IF;
        INSERT INTO rowsignal.change (relation, operation, key, changed, old_row, new_row)
        VALUES (TG_RELID, {letter}, one_key, one_changed, one_old, one_new);
    ELSIF is_stale THEN
        IF to_regclass('rowsignal.change') IS NULL THEN
            RAISE WARNING 'rowsignal.change is missing: changes of % are not logged', TG_RELID::regclass;
            RETURN NULL;
        END IF;
        keys := rowsignal.key_columns_v1(TG_RELID);
        INSERT INTO rowsignal.change (relation, operation, key, changed, old_row, new_row)
        SELECT TG_RELID, r.operation, rowsignal.log_key_v1(coalesce(r.after, r.before), keys), r.changed,
            rowsignal.log_row_v1(r.before, {settings}), rowsignal.log_row_v1(r.after, {settings})
        FROM ({generic} OFFSET 0) AS r
        WHERE r.changed IS DISTINCT FROM '{}'
        ORDER BY r.operation = 'd' DESC;
    ELSE
        INSERT INTO rowsignal.change (relation, operation, key, changed, old_row, new_row)
        {static};
    END IF;
    {wake}
    RETURN NULL;
END
$body$;
    wake text := CASE WHEN (settings ->> 'notify')::boolean IS FALSE THEN '' ELSE
    'BEGIN
        IF NOT (pg_try_advisory_lock(1919907699, 1000) AND pg_advisory_unlock(1919907699, 1000)) THEN
            PERFORM rowsignal.wake_v1();
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING ''rowsignal could not wake the readers of the change log: %'', SQLERRM;
    END;' END;
    one text := CASE event WHEN 'delete' THEN 'o' ELSE 'n' END;
    counted text[];
    changed text;
    columns text;
    same text;
    key text;
    needs_pins boolean;
    name text;
BEGIN
    SELECT array_agg(c.name) INTO counted FROM rowsignal.column_expressions_v1(relation) c
    WHERE coalesce(settings -> 'columns' ? c.name, true) AND coalesce(NOT settings -> 'exclude' ? c.name, true);
    SELECT string_agg(format('%s.%I', one, c.name), ', ' ORDER BY c.place),
        string_agg(format('CASE WHEN %s THEN %L END', c.differs, c.name), ', ' ORDER BY c.place)
            FILTER (WHERE c.name = ANY (counted)),
        string_agg(c.same, ' AND ') FILTER (WHERE c.name = ANY (key_columns)),
        concat('jsonb_build_object(', string_agg(format('%L, %s', c.name, c.value), ', '
            ORDER BY array_position(key_columns, c.name)) FILTER (WHERE c.name = ANY (key_columns)), ')'),
        bool_or(NOT c.is_plain) FILTER (WHERE c.name = ANY (key_columns))
            OR settings ?| '{row_values,filter}'
    INTO columns, changed, same, key, needs_pins
    FROM rowsignal.column_expressions_v1(relation) c;

    body := replace(body, '{first}', rowsignal.log_one_v1(event, settings, key, changed, same));
    body := replace(body, '{letter}', quote_literal(left(event, 1)));
    body := replace(body, '{static}', rowsignal.log_query_v1(event, settings, key, changed, same, key_columns[1]));
    body := replace(body, '{generic}', rowsignal.log_fallback_v1(event));
    body := replace(replace(replace(body, '{one}', one), '{columns}', columns), '{wake}', wake);
    body := replace(body, '{settings}', quote_literal(settings) || '::json');
    name := concat('capture_log_', event, '_v1_', left(md5(body), 12));
    EXECUTE format('CREATE OR REPLACE FUNCTION rowsignal.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
        'SET search_path = pg_catalog, pg_temp %s AS %L', name, CASE WHEN needs_pins THEN
        'SET "TimeZone" = ''UTC'' SET "DateStyle" = ''ISO, YMD'' SET "IntervalStyle" = ''postgres'' '
        'SET bytea_output = ''hex'' SET extra_float_digits = 1 SET lc_monetary = ''C''' END, body);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION rowsignal.%I() FROM PUBLIC', name);
    RETURN name;
END
$rowsignal$;

-- :: the only row of a statement
-- STRICT stops at a second row, so the product of the two tables is never formed.
CREATE OR REPLACE FUNCTION rowsignal.log_one_v1(
    event text, settings jsonb, key text, changed text, same text)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    kept text := rowsignal.log_kept_v1(settings);
    wanted text := 'SELECT %s, %s, %s, %s, %s INTO STRICT is_one, one_key, one_changed, one_old, one_new FROM %s';
BEGIN
    RETURN CASE event
    WHEN 'insert' THEN format(wanted, 'true', format(key, 'n'), 'NULL', 'NULL', format(kept, 'n'), 'new_rows AS n')
    WHEN 'delete' THEN format(wanted, 'true', format(key, 'o'), 'NULL', format(kept, 'o'), 'NULL', 'old_rows AS o')
    ELSE format(wanted, same, format(key, 'n'), format('array_remove(ARRAY[%s]::text[], NULL)', changed),
        format(kept, 'o'), format(kept, 'n'), 'old_rows AS o, new_rows AS n') END;
END
$rowsignal$;

-- The expression for the values that are kept of a row.
CREATE OR REPLACE FUNCTION rowsignal.log_kept_v1(settings jsonb) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT CASE WHEN (settings ->> 'row_values')::boolean OR settings -> 'filter' IS NOT NULL
        THEN 'rowsignal.log_row_v1(row_to_json(%s.*), {settings})' ELSE 'NULL::jsonb' END
$rowsignal$;

-- :: rows of a statement
-- The query from the transition tables to the columns of the log. OFFSET 0 keeps the planner from
-- turning the FULL JOIN, which is never a nested loop, into an inner join, which is one for all
-- later statements when the first had a single row.
CREATE OR REPLACE FUNCTION rowsignal.log_query_v1(
    event text, settings jsonb, key text, changed text, same text, first_key text)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    kept text := rowsignal.log_kept_v1(settings);
    old_row text := format(kept, 'o');
    new_row text := format(kept, 'n');
BEGIN
    IF event = 'insert' THEN
        RETURN format('SELECT TG_RELID, ''i'', %s, NULL, NULL, %s FROM new_rows AS n', format(key, 'n'), new_row);
    ELSIF event = 'delete' THEN
        RETURN format('SELECT TG_RELID, ''d'', %s, NULL, %s, NULL FROM old_rows AS o', format(key, 'o'), old_row);
    END IF;
    RETURN format(
        'SELECT TG_RELID, r.operation, r.key, r.changed, r.old_row, r.new_row FROM (
            SELECT CASE WHEN n.%1$I IS NULL THEN ''d'' WHEN o.%1$I IS NULL THEN ''i'' ELSE ''u'' END::"char" AS operation,
                CASE WHEN n.%1$I IS NULL THEN %2$s ELSE %3$s END AS key,
                CASE WHEN n.%1$I IS NOT NULL AND o.%1$I IS NOT NULL THEN
                    array_remove(ARRAY[%4$s]::text[], NULL) END AS changed,
                CASE WHEN o.%1$I IS NOT NULL THEN %5$s END AS old_row,
                CASE WHEN n.%1$I IS NOT NULL THEN %6$s END AS new_row
            FROM old_rows AS o FULL JOIN new_rows AS n ON %7$s OFFSET 0) AS r
        WHERE r.changed IS DISTINCT FROM ''{}''
        ORDER BY r.operation = ''d'' DESC',
        first_key, format(key, 'o'), format(key, 'n'), changed, old_row, new_row, same);
END
$rowsignal$;

-- :: rows of a statement, whatever the columns
CREATE OR REPLACE FUNCTION rowsignal.log_fallback_v1(event text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT CASE event
    WHEN 'insert' THEN 'SELECT ''i''::"char" AS operation, NULL::json AS before, row_to_json(n.*) AS after,
            NULL::text[] AS changed FROM new_rows AS n'
    WHEN 'delete' THEN 'SELECT ''d''::"char" AS operation, row_to_json(o.*) AS before, NULL::json AS after,
            NULL::text[] AS changed FROM old_rows AS o'
    ELSE 'SELECT CASE WHEN after IS NULL THEN ''d'' WHEN before IS NULL THEN ''i'' ELSE ''u'' END::"char" AS operation,
            before, after, CASE WHEN before IS NOT NULL AND after IS NOT NULL AND image <> new_image THEN
                rowsignal.changed_columns_v1(before, after, {settings})
                WHEN image = new_image THEN ''{}'' END AS changed
        FROM (SELECT row_to_json(o.*) AS before, (o.*)::text AS image,
                rowsignal.log_key_v1(row_to_json(o.*), keys) AS key FROM old_rows AS o) AS b
        FULL JOIN (SELECT row_to_json(n.*) AS after, (n.*)::text AS new_image,
                rowsignal.log_key_v1(row_to_json(n.*), keys) AS key FROM new_rows AS n) AS a USING (key)'
    END
$rowsignal$;

-- :: closed to others
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA rowsignal FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rowsignal.key_v1(record), rowsignal.named_key_v1(json, text[]) TO PUBLIC;
INSERT INTO rowsignal.migration (version, name) VALUES (2, 'change_log') ON CONFLICT DO NOTHING;
