"""A migration environment: the files that Alembic needs, for async engines."""

import re
from importlib.resources import files
from pathlib import Path
from string import Template

TEMPLATES = files("rowsignal.orm.manager") / "templates"
METADATA = re.compile(r"(?P<module>[^\W\d][\w.]*):(?P<name>[^\W\d]\w*)(?P<attributes>(\.\w+)*)")


def create_migration_environment(
    directory: str | Path, *, metadata: str | None = None
) -> list[Path]:
    """Write `env.py`, `script.py.mako` and `versions` into a directory, `alembic.ini` beside it.

    `metadata` names the metadata for autogenerate: "shop.models:Base.metadata". Returns the files.
    If one of them exists already, writes none and raises `FileExistsError`.
    """
    target = Path(directory)
    models, expression = _imported(metadata)
    contents = {
        target / "env.py": _filled("env.py.template", models=models, metadata=expression),
        target / "script.py.mako": (TEMPLATES / "script.py.mako").read_text(),
        target.parent / "alembic.ini": _filled("alembic.ini.template", directory=target.name),
    }
    # All are checked before the first is written.
    if present := [str(path) for path in contents if path.exists()]:
        raise FileExistsError(
            f"{', '.join(present)} would be overwritten: choose another directory, or move it away."
        )
    (target / "versions").mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        path.write_text(content)
    return list(contents)


def _imported(metadata: str | None) -> tuple[str, str]:
    """Return the import line and the expression for it."""
    if metadata is None:
        return "# from shop.models import Base", "None  # Base.metadata"
    parts = METADATA.fullmatch(metadata)
    if parts is None:
        raise ValueError(
            f"metadata={metadata!r} is not of the form module:name, as in shop.models:Base.metadata"
        )
    return f"from {parts['module']} import {parts['name']}", metadata.partition(":")[2]


def _filled(name: str, **values: str) -> str:
    return Template((TEMPLATES / name).read_text()).substitute(values)
