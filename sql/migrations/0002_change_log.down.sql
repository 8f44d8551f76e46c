-- Back to hints alone: logged tables lose their triggers, the log its rows.

-- :: triggers and their functions
DO $rowsignal$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'rowsignal'::regnamespace AND proname ~ '^capture_log_'
    LOOP
        EXECUTE format('DROP FUNCTION %s CASCADE', name);
    END LOOP;
END
$rowsignal$;

-- :: what made them
DROP FUNCTION rowsignal.make_log_function_v1(regclass, text, jsonb, text[]);
DROP FUNCTION rowsignal.log_query_v1(text, jsonb, text, text, text, text);
DROP FUNCTION rowsignal.log_one_v1(text, jsonb, text, text, text);
DROP FUNCTION rowsignal.log_kept_v1(jsonb);
DROP FUNCTION rowsignal.log_fallback_v1(text);
DROP FUNCTION rowsignal.column_expressions_v1(oid);
DROP FUNCTION rowsignal.wake_v1();
DROP FUNCTION rowsignal.log_row_v1(json, json);
DROP FUNCTION rowsignal.log_key_v1(json, text[]);
DROP FUNCTION rowsignal.log_value_v1(json);

-- :: the log
DROP FUNCTION rowsignal.prune_v1(interval, bigint, integer, text);
DROP FUNCTION rowsignal.store_position_v1(pg_snapshot, pg_snapshot);
DROP FUNCTION rowsignal.start_incarnation_v1();
DROP FUNCTION rowsignal.log_origin_v1();
DROP TABLE rowsignal.change, rowsignal.incarnation, rowsignal.horizon, rowsignal.tick,
    rowsignal.stored_position;

DELETE FROM rowsignal.migration WHERE version = 2;
