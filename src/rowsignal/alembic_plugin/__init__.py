"""Row triggers in Alembic's migrations: what Alembic loads through its entry point.

`op.install_row_triggers` and `op.uninstall_row_triggers` are there as soon as Alembic is. For
autogenerate, `env.py` names the plugin in its call of `context.configure`:
`autogenerate_plugins=["alembic.autogenerate.*", "rowsignal"]`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: "Plugin") -> None:
    """Register the operations and the comparator.

    Alembic calls this while it is half imported, so what needs Alembic is imported only here.
    """
    from alembic.util import DispatchPriority  # noqa: PLC0415 -- see above

    from rowsignal.alembic_plugin import operations  # noqa: F401, PLC0415 -- registers

    # before and after the comparison of tables: see the two functions
    for compare, priority in (
        (_hide_own_schema, DispatchPriority.FIRST),
        (_compare, DispatchPriority.LAST),
    ):
        plugin.add_autogenerate_comparator(
            compare, "schema", "rowsignal", qualifier="postgresql", priority=priority
        )


def _hide_own_schema(*arguments: Any) -> Any:
    from rowsignal.alembic_plugin import comparator  # noqa: PLC0415 -- see setup

    return comparator.hide_own_schema(*arguments)


def _compare(*arguments: Any) -> Any:
    from rowsignal.alembic_plugin import comparator  # noqa: PLC0415 -- see setup

    return comparator.compare(*arguments)
