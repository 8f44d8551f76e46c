-- Hints: the schema, hint capture, and the installation of triggers.
-- The schema that holds everything of rowsignal. Idempotent, but meant to run once: what is there is
-- brought up to date by migrations/.

-- :: schema
CREATE SCHEMA IF NOT EXISTS rowsignal;
COMMENT ON SCHEMA rowsignal IS 'Row changes for waiting programs and streams (rowsignal).';

-- Row readers call key_v1 in the role of the application, so everybody may look inside;
-- each function and table says for itself who may use it.
GRANT USAGE ON SCHEMA rowsignal TO PUBLIC;

-- :: migrations applied
CREATE TABLE IF NOT EXISTS rowsignal.migration (
    version integer PRIMARY KEY CHECK (version > 0),
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON rowsignal.migration TO PUBLIC;
-- Hint capture: say which rows changed with NOTIFY, while somebody listens. Nothing is stored.
--
-- Arguments of its triggers: token, bucket, settings (a JSON object), key column, key column ...

-- :: key of a row
-- The key by the names of its columns, as a JSON array; NULL when one of them is gone (dropped,
-- renamed). Nested values (keys of an array or jsonb type) become the string of their text.
CREATE OR REPLACE FUNCTION rowsignal.named_key_v1(image json, columns text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    name text;
    value json;
    parts text[];
BEGIN
    FOREACH name IN ARRAY columns LOOP
        value := image -> name;
        IF value IS NULL THEN
            RETURN NULL;
        END IF;
        parts := parts || CASE WHEN json_typeof(value) IN ('object', 'array', 'null')
                               THEN to_json(value::text)::text ELSE value::text END;
    END LOOP;
    RETURN concat('[', array_to_string(parts, ','), ']');
END
$rowsignal$;

-- :: key of a reader
-- The same array for row(t.a, t.b): how a waiter learns the key that triggers will send for a row
-- it has found. The settings that decide how a date, an interval, a float or a bytea is written are
-- pinned here and in hint_row_v1: two sessions must write one key the same way.
CREATE OR REPLACE FUNCTION rowsignal.key_v1(key record) RETURNS json
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C'
AS $rowsignal$
DECLARE
    image json := row_to_json(key);
BEGIN
    RETURN rowsignal.named_key_v1(image, ARRAY(SELECT json_object_keys(image)));
END
$rowsignal$;

-- :: changed columns
-- The columns whose stored values differ, of those that count. Their JSON text tells 1.0 from 1.00
-- and 'a' from 'A' where the types' own equality does not, and exists for every type. NULL: unknown,
-- because what differs has one text, or because a column that should count is gone.
CREATE OR REPLACE FUNCTION rowsignal.changed_columns_v1(before json, after json, settings json)
RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    differing text[];
    listed text[];
BEGIN
    SELECT array_agg(o.name ORDER BY o.place) INTO differing
    FROM json_each(before) WITH ORDINALITY AS o(name, value, place)
    JOIN json_each(after) WITH ORDINALITY AS n(name, value, place) USING (place)
    WHERE o.value::text <> n.value::text;
    IF differing IS NULL OR json_typeof(settings -> 'columns') IS NULL AND json_typeof(settings -> 'exclude') IS NULL THEN
        RETURN differing;
    END IF;
    SELECT array_agg(name) INTO listed
    FROM json_array_elements_text(coalesce(settings -> 'columns', settings -> 'exclude')) AS name;
    IF settings -> 'columns' IS NULL THEN
        RETURN ARRAY(SELECT name FROM unnest(differing) AS name WHERE name <> ALL (listed));
    END IF;
    IF EXISTS (SELECT FROM unnest(listed) AS name WHERE after -> name IS NULL) THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(SELECT name FROM unnest(differing) AS name WHERE name = ANY (listed));
END
$rowsignal$;

-- :: is somebody listening
-- The WHEN clauses of the triggers ask by trying the exclusive lock: the cheapest question there is,
-- but writers that ask at the same moment hold it against each other. Only a shared holder is a
-- listener. Not asked in a table of subscriptions: a REPEATABLE READ writer would not see a new row.
CREATE OR REPLACE FUNCTION rowsignal.is_awaited_v1(bucket integer) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND classid = 1919907699 AND objid::bigint = bucket AND objsubid = 2
          AND mode = 'ShareLock' AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
$rowsignal$;

-- :: are hints wanted
-- Whether to send at all: somebody listens, or the table is declared for listeners of other kinds.
-- A queue that is half full must not be filled by us: its end makes commits fail.
CREATE OR REPLACE FUNCTION rowsignal.is_wanted_v1(bucket integer, settings json) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT (coalesce((settings ->> 'always')::boolean, false) OR rowsignal.is_awaited_v1(bucket))
        AND pg_notification_queue_usage() <= 0.5
$rowsignal$;

-- :: say
-- Send one hint: as much of it as fits into the 7999 bytes of a payload, never an error.
CREATE OR REPLACE FUNCTION rowsignal.say_v1(head text, operation text, key text, columns text[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    base text := concat(head, ',"o":"', operation, '","x":"', pg_current_xact_id(), '"');
    k text := ',"k":' || key;
    c text := ',"c":' || to_json(columns)::text;
    payload text := concat(base, k, c, '}');
BEGIN
    IF octet_length(payload) > 7999 THEN
        payload := concat(base, k, '}');
    END IF;
    IF octet_length(payload) > 7999 THEN
        payload := concat(base, '}');
    END IF;
    PERFORM pg_notify('rowsignal', payload);
END
$rowsignal$;

-- :: hint of one row
-- Say what happened to a row. A changed key is a delete and an insert: somebody may wait for
-- either. Returns 'm' for that, and 'w' when the key can not be told, so that only a hint for the
-- whole table will do.
CREATE OR REPLACE FUNCTION rowsignal.hint_row_v1(
    head text, operation text, before record, after record, columns text[], settings json)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = 1 SET lc_monetary = 'C'
AS $rowsignal$
DECLARE
    old_image json; new_image json; old_key text; new_key text; changed text[];
BEGIN
    IF operation <> 'insert' THEN
        old_image := row_to_json(before);
        old_key := rowsignal.named_key_v1(old_image, columns);
    END IF;
    IF operation <> 'delete' THEN
        new_image := row_to_json(after);
        new_key := rowsignal.named_key_v1(new_image, columns);
    END IF;
    IF coalesce(old_key, new_key) IS NULL THEN
        RETURN 'w';
    ELSIF operation <> 'update' THEN
        PERFORM rowsignal.say_v1(head, operation, coalesce(old_key, new_key), NULL);
    ELSIF old_key <> new_key THEN
        PERFORM rowsignal.say_v1(head, 'delete', old_key, NULL);
        PERFORM rowsignal.say_v1(head, 'insert', new_key, NULL);
        RETURN 'm';
    ELSE
        changed := rowsignal.changed_columns_v1(old_image, new_image, settings);
        IF changed IS DISTINCT FROM '{}' THEN
            PERFORM rowsignal.say_v1(head, operation, new_key, changed);
        END IF;
    END IF;
    RETURN '';
END
$rowsignal$;

-- :: hint trigger
-- What a transaction has said about a table is remembered in a setting of that transaction, one for
-- each bucket: "-" nobody listens, else the number of rows and a letter for each operation that was
-- told for the whole table ("m": a key was changed). A savepoint that is rolled back takes its
-- memory with it, as it takes its notifications. Remembering the answer "nobody" is safe: whoever
-- comes to listen later looks again when this transaction is over.
CREATE OR REPLACE FUNCTION rowsignal.capture_hint_v1() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    memory text := 'rowsignal.hints_' || TG_ARGV[1];
    mine text := concat(' ', pg_current_xact_id(), ' ', TG_ARGV[0]);
    said text := current_setting(memory, true);
    state text;
    head text;
    operation text := lower(TG_OP);
    outcome text := 'w';
    told text[];
BEGIN
    IF substr(said, strpos(said, ' ')) = mine THEN
        state := split_part(said, ' ', 1);
        IF state = '-' OR strpos(state, left(operation, 1)) > 0 THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD *= NEW THEN
            RETURN NULL;
        END IF;
    END IF;
    BEGIN
        head := concat('{"t":', to_json(TG_ARGV[0]), ',"s":', to_json(TG_TABLE_SCHEMA::text),
                       ',"n":', to_json(TG_TABLE_NAME::text));
        IF state IS NULL AND NOT rowsignal.is_wanted_v1(TG_ARGV[1]::integer, TG_ARGV[2]::json) THEN
            PERFORM set_config(memory, '-' || mine, true);
            RETURN NULL;
        END IF;
        state := coalesce(state, '0');
        IF TG_OP <> 'TRUNCATE' AND rtrim(state, 'iudtm')::integer < 100 THEN
            outcome := rowsignal.hint_row_v1(head, operation, OLD, NEW, TG_ARGV[3:], TG_ARGV[2]::json);
        END IF;
        state := concat(rtrim(state, 'iudtm')::integer + 1, ltrim(state, '0123456789'));
        IF outcome = 'm' THEN
            state := state || outcome;
        ELSIF outcome = 'w' THEN
            -- where keys were changed before, rows that go unread may have theirs changed, too
            told := CASE WHEN strpos(state, 'm') > 0 THEN '{insert,update,delete}' ELSE ARRAY[operation] END;
            PERFORM rowsignal.say_v1(head, one, NULL, NULL) FROM unnest(told) AS one;
            state := state || (SELECT string_agg(left(one, 1), '') FROM unnest(told) AS one);
        END IF;
        PERFORM set_config(memory, state || mine, true);
    EXCEPTION WHEN OTHERS THEN
        -- the write must not fail: say that anything may have changed, and nothing more this time
        PERFORM pg_notify('rowsignal', concat(
            '{"t":', to_json(TG_ARGV[0]), ',"s":', to_json(TG_TABLE_SCHEMA::text), ',"n":',
            to_json(TG_TABLE_NAME::text), ',"o":"', operation, '","x":"', pg_current_xact_id(), '"}'));
        PERFORM set_config(memory, concat(coalesce(nullif(state, '-'), '0'), left(operation, 1), mine), true);
        RAISE WARNING 'rowsignal could not tell which row of %.% changed: %',
            quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME), SQLERRM;
    END;
    RETURN NULL;
END
$rowsignal$;
-- Installing and uninstalling the triggers of one table, from what the catalogue says.

-- :: arguments of a trigger
-- tgargs holds each argument followed by a zero byte.
CREATE OR REPLACE FUNCTION rowsignal.trigger_arguments_v1(tgargs bytea) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT (array_agg(convert_from(decode(replace(part, ' ', ''), 'hex'), getdatabaseencoding())
                      ORDER BY place))[: count(*) - 1]
    FROM unnest(string_to_array(regexp_replace(encode(tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 '))
        WITH ORDINALITY AS piece(part, place)
$rowsignal$;

-- :: tables of a table
-- The table with its partitions or its inheritance children, at every depth.
CREATE OR REPLACE FUNCTION rowsignal.family_v1(root oid) RETURNS TABLE (relation oid, is_partition boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    WITH RECURSIVE family(relation) AS (
        SELECT root
        UNION
        SELECT i.inhrelid FROM pg_inherits i JOIN family f ON i.inhparent = f.relation
    )
    SELECT c.oid, c.relispartition FROM family f JOIN pg_class c ON c.oid = f.relation
    WHERE c.relkind IN ('r', 'p') ORDER BY c.oid <> root, c.oid
$rowsignal$;

-- :: key columns
-- The names of the primary key, in key order.
CREATE OR REPLACE FUNCTION rowsignal.key_columns_v1(relation oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT array_agg(a.attname::text ORDER BY k.place)
    FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place), pg_attribute a
    WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts
      AND a.attrelid = relation AND a.attnum = k.number
$rowsignal$;

-- :: refusals
-- Raise a sentence where triggers can not be or would make writes fail.
CREATE OR REPLACE FUNCTION rowsignal.check_table_v1(relation regclass, settings jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    class pg_class;
    name text;
BEGIN
    SELECT * INTO class FROM pg_class WHERE oid = relation;
    IF class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = format(
            '%s is a %s: rowsignal watches tables only; install on the tables beneath it.', relation,
            CASE class.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                WHEN 'f' THEN 'foreign table' ELSE 'relation without rows of its own' END);
    ELSIF class.relispartition THEN
        RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = format(
            '%s is a partition: install on %s, which covers all its partitions.',
            relation, pg_partition_root(relation));
    ELSIF rowsignal.key_columns_v1(relation) IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = format(
            '%s has no primary key, so its rows can not be told apart: add one, then install.', relation);
    ELSIF (settings ->> 'log')::boolean IS NOT TRUE AND (settings ->> 'always')::boolean IS NOT TRUE
      AND NOT (has_function_privilege('public', 'pg_catalog.pg_try_advisory_lock(integer, integer)', 'EXECUTE')
          AND has_function_privilege('public', 'pg_catalog.pg_advisory_unlock(integer, integer)', 'EXECUTE')) THEN
        RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = format(
            'Writers of %s may not call pg_try_advisory_lock and pg_advisory_unlock, so every write would fail: '
            'GRANT EXECUTE on both (integer, integer) TO PUBLIC, then install.', relation);
    END IF;
    FOR name IN SELECT jsonb_array_elements_text(
        coalesce(settings -> 'columns', '[]') || coalesce(settings -> 'exclude', '[]') || coalesce(settings -> 'filter', '[]'))
    LOOP
        IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = relation AND a.attname = name
                       AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v') THEN
            RAISE EXCEPTION USING ERRCODE = 'RS001', MESSAGE = format(
                '%s stores no column %I, so it can not be watched for it.', relation, name);
        END IF;
    END LOOP;
END
$rowsignal$;

-- :: token
-- The name by which hints call a table: given once, kept by its triggers through renames, dumps and
-- re-installation.
CREATE OR REPLACE FUNCTION rowsignal.token_v1(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT coalesce(
        (SELECT min((rowsignal.trigger_arguments_v1(t.tgargs))[1])
         FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = relation AND p.pronamespace = 'rowsignal'::regnamespace),
        (SELECT format('%s.%s@%s', n.nspname, c.relname, c.oid)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation))
$rowsignal$;

-- :: shape
-- A digest of the columns that a function was made for.
CREATE OR REPLACE FUNCTION rowsignal.shape_v1(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT md5(string_agg(concat(a.attname, ' ', t.typname, a.atttypmod), ',' ORDER BY a.attnum))
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
$rowsignal$;

-- :: hint triggers
-- Partitions get the row trigger from their root, as clones; TRUNCATE's has to be made on each.
CREATE OR REPLACE FUNCTION rowsignal.hint_triggers_v1(
    relation regclass, is_partition boolean, token text, settings jsonb, key_columns text[])
RETURNS TABLE (trigger text, definition text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    bucket bigint := hashtextextended(token, 0) & 127;
    arguments text := rowsignal.literals_v1(ARRAY[token, bucket::text, settings::text] || key_columns);
    asked text := CASE WHEN (settings ->> 'always')::boolean IS TRUE THEN '' ELSE format('WHEN (NOT '
        '(pg_catalog.pg_try_advisory_lock(1919907699, %1$s) AND pg_catalog.pg_advisory_unlock(1919907699, %1$s))) ',
        bucket) END;
BEGIN
    IF NOT is_partition THEN
        RETURN QUERY SELECT 'rowsignal_hint', format(
            'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW %sEXECUTE FUNCTION rowsignal.capture_hint_v1(%s)',
            relation, asked, arguments);
    END IF;
    RETURN QUERY SELECT 'rowsignal_hint_truncate', format(
        'AFTER TRUNCATE ON %s FOR EACH STATEMENT %sEXECUTE FUNCTION rowsignal.capture_hint_v1(%s)',
        relation, asked, arguments);
END
$rowsignal$;

CREATE OR REPLACE FUNCTION rowsignal.literals_v1(parts text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $rowsignal$
    SELECT string_agg(quote_literal(part), ', ' ORDER BY place) FROM unnest(parts) WITH ORDINALITY AS p(part, place)
$rowsignal$;

-- :: log triggers
-- A statement on the root fires the root's, one on a partition the partition's: each has them all.
CREATE OR REPLACE FUNCTION rowsignal.log_triggers_v1(
    relation regclass, token text, settings jsonb, key_columns text[])
RETURNS TABLE (trigger text, definition text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    arguments text := rowsignal.literals_v1(ARRAY[token, '1000',
        (settings || jsonb_build_object('shape', rowsignal.shape_v1(relation)))::text] || key_columns);
    event record;
BEGIN
    FOR event IN SELECT * FROM (VALUES
        ('insert', 'REFERENCING NEW TABLE AS new_rows'),
        ('update', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
        ('delete', 'REFERENCING OLD TABLE AS old_rows')) AS events(name, tables)
    LOOP
        trigger := 'rowsignal_log_' || event.name;
        definition := format('AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION rowsignal.%I(%s)',
            upper(event.name), relation, event.tables,
            rowsignal.make_log_function_v1(relation, event.name, settings, key_columns), arguments);
        RETURN NEXT;
    END LOOP;
    trigger := 'rowsignal_log_truncate';
    definition := format('AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION '
        'rowsignal.capture_log_truncate_v1(%s)', relation, arguments);
    RETURN NEXT;
END
$rowsignal$;

-- :: triggers wanted
-- The triggers that a relation should carry, as text for CREATE TRIGGER.
CREATE OR REPLACE FUNCTION rowsignal.wanted_triggers_v1(
    relation regclass, is_partition boolean, token text, settings jsonb, key_columns text[])
RETURNS TABLE (trigger text, definition text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
BEGIN
    IF (settings ->> 'log')::boolean IS TRUE THEN
        RETURN QUERY SELECT * FROM rowsignal.log_triggers_v1(relation, token, settings, key_columns);
    ELSE
        RETURN QUERY SELECT * FROM rowsignal.hint_triggers_v1(
            relation, is_partition, token, settings, key_columns);
    END IF;
END
$rowsignal$;

-- :: drop
-- Drop our triggers of one relation but those to keep; clones go with the trigger of their root.
CREATE OR REPLACE FUNCTION rowsignal.drop_triggers_v1(relation regclass, keep text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    name text;
    dropped bigint := 0;
BEGIN
    FOR name IN
        SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = relation AND t.tgparentid = 0 AND t.tgname <> ALL (keep)
          AND p.pronamespace = 'rowsignal'::regnamespace
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', name, relation);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$rowsignal$;

-- :: sweep
-- Drop the functions that no table uses any more.
CREATE OR REPLACE FUNCTION rowsignal.sweep_v1() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT p.proname FROM pg_proc p
        WHERE p.pronamespace = 'rowsignal'::regnamespace AND p.proname ~ '^capture_log_[a-z]+_v\d+_[0-9a-f]{12}$'
          AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid)
    LOOP
        EXECUTE format('DROP FUNCTION rowsignal.%I()', name);
    END LOOP;
END
$rowsignal$;

-- :: install
-- Give one table and everything beneath it the triggers that its settings ask for, and take away
-- those of ours that they do not. Returns the table's token.
CREATE OR REPLACE FUNCTION rowsignal.install_v1(relation regclass, settings jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    member record;
    wanted record;
    names text[];
    is_always boolean;
    token text := rowsignal.token_v1(relation);
    key_columns text[] := rowsignal.key_columns_v1(relation);
BEGIN
    PERFORM pg_advisory_xact_lock(8246779703540740722);
    PERFORM rowsignal.check_table_v1(relation, settings);
    FOR member IN SELECT f.relation::regclass AS name, f.is_partition FROM rowsignal.family_v1(relation) f LOOP
        token := CASE WHEN member.is_partition THEN token ELSE rowsignal.token_v1(member.name) END;
        names := '{}';
        FOR wanted IN
            SELECT * FROM rowsignal.wanted_triggers_v1(
                member.name, member.is_partition, token, settings, key_columns)
        LOOP
            is_always := EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = member.name
                                 AND t.tgname = wanted.trigger AND t.tgenabled = 'A');
            EXECUTE format('CREATE OR REPLACE TRIGGER %I %s', wanted.trigger, wanted.definition);
            IF is_always THEN
                -- somebody wants it for rows that replication applies; replacing forgets that
                EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', member.name, wanted.trigger);
            END IF;
            names := names || wanted.trigger;
        END LOOP;
        PERFORM rowsignal.drop_triggers_v1(member.name, names);
    END LOOP;
    PERFORM rowsignal.sweep_v1();
    RETURN rowsignal.token_v1(relation);
END
$rowsignal$;

-- :: uninstall
-- Take our triggers from one table and everything beneath it; returns how many there were.
CREATE OR REPLACE FUNCTION rowsignal.uninstall_v1(relation regclass) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $rowsignal$
DECLARE
    dropped bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(8246779703540740722);
    SELECT coalesce(sum(rowsignal.drop_triggers_v1(f.relation, '{}')), 0) INTO dropped
    FROM rowsignal.family_v1(relation) f;
    PERFORM rowsignal.sweep_v1();
    RETURN dropped;
END
$rowsignal$;

-- :: closed to others
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA rowsignal FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rowsignal.key_v1(record), rowsignal.named_key_v1(json, text[]) TO PUBLIC;
INSERT INTO rowsignal.migration (version, name) VALUES (1, 'hints') ON CONFLICT DO NOTHING;
