"""Row triggers in Alembic's migrations: what Alembic loads through its entry point."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: "Plugin") -> None:
    """Register operations and the comparator; Alembic calls it while it is half imported."""
