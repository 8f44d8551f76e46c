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
