-- Hints: the schema, hint capture, and the installation of triggers.
\ir ../schema.sql
\ir ../hint_capture.sql
\ir ../triggers.sql
INSERT INTO rowsignal.migration (version, name) VALUES (1, 'hints') ON CONFLICT DO NOTHING;
