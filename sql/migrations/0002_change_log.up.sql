-- The change log and what writes it.
\ir ../change_log.sql
\ir ../log_capture.sql
INSERT INTO rowsignal.migration (version, name) VALUES (2, 'change_log') ON CONFLICT DO NOTHING;
