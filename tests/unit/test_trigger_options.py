"""What options of triggers are refused, and in which words."""

from typing import Any

import pytest
from sqlalchemy.orm import Mapped, mapped_column

from rowsignal import Base, install_on_create, install_script, watched
from rowsignal.triggers.settings import SWITCHES


class Shelf(Base):
    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"colums": ["label"]}, "did you mean 'columns'?"),
        ({"row_value": True}, "did you mean 'row_values'?"),
        ({"zzz": 1}, "There are log, columns, exclude, row_values"),
    ],
)
def test_an_unknown_option_is_refused_with_those_there_are(
    options: dict[str, Any], meant: str
) -> None:
    for call in (lambda: watched(**options), lambda: install_script(Shelf, **options)):
        with pytest.raises(TypeError, match="is no option") as refusal:
            call()
        assert meant in str(refusal.value)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_is_true_or_false(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"{name}=.*True or False"):
        install_script(Shelf, **options)


def test_options_for_create_all_are_checked_at_the_call() -> None:
    options: dict[str, Any] = {"logged": True}
    with pytest.raises(TypeError, match="did you mean 'log'"):
        install_on_create(Shelf.metadata, **options)


def test_columns_are_named_either_way() -> None:
    either = install_script(Shelf, columns=[Shelf.label]), install_script(Shelf, columns=["label"])
    assert either[0] == either[1]
