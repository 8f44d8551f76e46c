"""SQLSTATE and message of what a driver raised, whichever driver it was."""


def sqlstate_of(error: BaseException) -> str | None:
    """Return the five characters of an error (PostgreSQL manual, appendix A); None without one."""
    source = getattr(error, "orig", None) or error
    return getattr(source, "sqlstate", None) or getattr(source, "pgcode", None)


def message_of(error: BaseException) -> str:
    """Return the server's primary message, without statement and parameters."""
    source = getattr(error, "orig", None) or error
    if (diagnostics := getattr(source, "diag", None)) is not None:
        return str(diagnostics.message_primary)
    return str(getattr(source.__cause__, "message", None) or source)
