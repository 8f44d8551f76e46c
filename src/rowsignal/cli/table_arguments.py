"""The table arguments of commands: models by import path, tables by name."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rowsignal.cli.errors import CommandError


def find_subjects(
    models: Sequence[str] | None, *tables: Sequence[str] | None, is_needed: bool = False
) -> Any:
    """Return the named models and tables for `install_triggers`; None if there are none."""
    names = [name for given in tables for name in given or ()]
    found = [load(place) for place in models or ()]
    if not found and not names:
        if is_needed:
            raise CommandError(
                "No tables were named: pass them as schema.name, or --models package.module:Base."
            )
        return None
    # a base on its own, so that tables which no longer belong to it can be told
    return found[0] if len(found) == 1 and not names else [*found, *names]


def load(place: str, option: str = "--models") -> Any:
    """Import the object `module:name`, also from the current folder."""
    module, colon, path = place.partition(":")
    if not (module and colon and path):
        raise CommandError(f"{option} {place!r}: write module:name, as in shop.models:Base.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"{option} {place!r}: there is no module {error.name!r} here or among what is"
            " installed; run the command in the project's folder."
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise CommandError(f"{option} {place!r}: {module} has no {path!r}.")
        found = getattr(found, name)
    return found
