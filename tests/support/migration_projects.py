"""Small projects with migrations, written into a folder of the test's own."""

from pathlib import Path
from textwrap import dedent, indent

from rowsignal.orm.manager.migration_environment import create_migration_environment

NOTHING = "pass"


class Project:
    """A folder with a migration environment, and revisions as they are added."""

    def __init__(self, folder: Path, *, metadata: str | None = None) -> None:
        self.folder = folder
        self.location = folder / "migrations"
        create_migration_environment(self.location, metadata=metadata)

    def add(self, revision: str, after: str | None, upgrade: str, downgrade: str = NOTHING) -> None:
        """Write one revision; both bodies are indented for their function."""
        bodies = [indent(dedent(body).strip("\n"), "    ") for body in (upgrade, downgrade)]
        (self.location / "versions" / f"{revision}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = {revision!r}\ndown_revision = {after!r}\n"
            "branch_labels = depends_on = None\n\n\n"
            f"def upgrade():\n{bodies[0]}\n\n\ndef downgrade():\n{bodies[1]}\n"
        )
