-- Everything goes, the triggers on the tables included: their functions are in the schema.
DROP SCHEMA IF EXISTS rowsignal CASCADE;
