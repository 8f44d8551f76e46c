"""Public errors end in Error, have a family where one fits, and are of the builtin that fits."""

import builtins
import inspect
from pathlib import Path

import pytest

import rowsignal
from rowsignal import exceptions
from rowsignal.exceptions import RowSignalError

ERRORS = [
    it
    for _, it in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(it, RowSignalError)
]
FAMILIES = [it for it in ERRORS if it.__bases__ == (RowSignalError,)]
API = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


def builtin_of(error: type[Exception]) -> str:
    """Return the builtin that an error is an instance of, besides Exception."""
    names = [it.__name__ for it in error.__mro__ if vars(builtins).get(it.__name__) is it]
    return names[0]


def tree(error: type[RowSignalError], indent: str = "") -> list[str]:
    """Return the errors below one, as the reference draws them."""
    builtin = "" if error in (RowSignalError, *FAMILIES) else f"  ({builtin_of(error)})"
    lines = [f"{indent}{error.__name__}{builtin}"]
    for child in sorted(ERRORS, key=lambda it: (it not in FAMILIES, it.__name__)):
        if child.__bases__[0] is error:
            lines += tree(child, indent + "    ")
    return lines


@pytest.mark.parametrize("error", ERRORS, ids=lambda it: it.__name__)
def test_an_error_is_public_and_named_as_one(error: type[RowSignalError]) -> None:
    assert error.__name__.endswith("Error")
    assert error.__name__ in rowsignal.__all__


@pytest.mark.parametrize(
    "error",
    [it for it in ERRORS if it not in (RowSignalError, *FAMILIES)],
    ids=lambda it: it.__name__,
)
def test_an_error_is_of_the_builtin_that_fits(error: type[RowSignalError]) -> None:
    assert builtin_of(error) not in {"Exception", "BaseException"}


def test_families_can_be_caught() -> None:
    names = {it.__name__ for it in FAMILIES}
    assert names == {"LockError", "SchemaError", "SessionError", "StreamError"}
    for family in FAMILIES:
        assert len([it for it in ERRORS if issubclass(it, family)]) > 3


def test_every_error_of_the_library_is_a_public_one_or_stays_inside() -> None:
    source = Path(rowsignal.__file__).parent
    public = {it.__name__ for it in ERRORS}
    raised = "".join(file.read_text() for file in source.rglob("*.py"))
    assert [name for name in public if raised.count(name) < 3] == [], "never raised"


def test_the_reference_draws_the_tree() -> None:
    assert "\n".join(tree(RowSignalError)) in API.read_text()
