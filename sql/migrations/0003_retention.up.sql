-- What all who prune the change log agree on.
\ir ../retention.sql
INSERT INTO rowsignal.migration (version, name) VALUES (3, 'retention') ON CONFLICT DO NOTHING;
