-- The change log and its capture.
\ir ../change_log.sql
INSERT INTO rowsignal.migration (version, name) VALUES (2, 'change_log') ON CONFLICT DO NOTHING;
