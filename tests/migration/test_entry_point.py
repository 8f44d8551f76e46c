"""Alembic finds the plugin, in the versions that iterate over it and in those that do not."""

from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pytest
from alembic.runtime import plugins


@pytest.fixture
def loaded() -> Any:
    (entry_point,) = entry_points(group="alembic.plugins", name="rowsignal")
    return entry_point.load()


@pytest.mark.parametrize("is_iterated", [True, False])
def test_either_way_to_load_it_registers_the_plugin(
    loaded: Any, is_iterated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(loaded, ModuleType)
    monkeypatch.delitem(plugins._all_plugins, "rowsignal")
    for module in loaded if is_iterated else [loaded]:
        plugins.Plugin.setup_plugin_from_module(module, "rowsignal")
    assert "rowsignal" in plugins._all_plugins
