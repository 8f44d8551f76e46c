"""Row triggers in Alembic's migrations; Alembic loads this through its entry point.

`op.install_row_triggers` and `op.uninstall_row_triggers` are there as soon as Alembic is. For
autogenerate, `env.py` names the plugin in its call of `context.configure`:
`autogenerate_plugins=["alembic.autogenerate.*", "rowsignal"]`.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: "Plugin") -> None:
    """Register the operations and the comparator.

    Alembic calls this during its own import, so modules that need Alembic are imported here.
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


class PluginModule(ModuleType):
    """The object of the entry point: a module for some versions of Alembic, a list for others.

    Alembic 1.18.0 to 1.20.0 iterate over it, 1.20.1 and newer take a module and warn of a list.
    """

    def __init__(self) -> None:
        super().__init__(__name__, __doc__)
        self.setup = setup

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


plugin = PluginModule()
