import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from rowsignal.cli.app import app
from support.doc_pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "cli.md").read_text()
HEADING = re.compile(r"^## (?P<name>rowsignal .+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
BEFORE_THE_COMMAND = {"--traceback", "--help"}


def commands(command: Any, name: str = "rowsignal") -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    own = options(command).difference(*map(options, inner.values()))
    if command.invoke_without_command and own:  # the group does what no command of it does
        yield name, command
    for key, child in inner.items():
        yield from commands(child, f"{name} {key}")


def sections() -> dict[str, str]:
    """What the page says about each command."""
    parts = HEADING.split(PAGE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options(command: Any) -> set[str]:
    """Long names of a command's options."""
    found = {name for parameter in command.params for name in parameter.opts}
    return {name for name in found if name.startswith("--")} - BEFORE_THE_COMMAND


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_page_has_the_commands_there_are() -> None:
    assert sections().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_no_other(name: str) -> None:
    assert set(OPTION.findall(sections()[name])) == options(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_explains_itself(name: str) -> None:
    command = COMMANDS[name]

    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"
