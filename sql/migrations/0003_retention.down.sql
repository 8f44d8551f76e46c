-- Whoever prunes says again how much is kept.
DROP FUNCTION rowsignal.prune_v2(integer, text);
DROP TABLE rowsignal.retention;

DELETE FROM rowsignal.migration WHERE version = 3;
