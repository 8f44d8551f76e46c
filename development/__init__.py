"""Programs for the development of rowsignal: the site and the release; not shipped in the wheel."""
