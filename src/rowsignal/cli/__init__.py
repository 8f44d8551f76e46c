"""The command line: one command, one call of the library."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence on standard error."""
    try:
        from rowsignal.cli.app import main as run  # noqa: PLC0415 -- an optional extra
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"rowsignal: the command line needs {error.name}: pip install 'rowsignal[cli]'\n"
        )
        return 1
    return run(arguments)


__all__ = ["main"]
