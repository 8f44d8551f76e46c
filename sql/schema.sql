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
