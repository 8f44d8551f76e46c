"""Options whose keywords had other names in an earlier release."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar


class RenamedOptions:
    """Base of frozen dataclasses that accept the former names of their fields, too.

    `RENAMED` maps a former name to the present one. Both work as a keyword and as an attribute.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}
    KIND: ClassVar[str] = "option"

    def __init__(self, **given: Any) -> None:
        known: dict[str, Any] = {}
        if is_dataclass(self):
            known = {field.name: field.default for field in fields(self)}
        for name, value in given.items():
            present = self.RENAMED.get(name, name)
            if present not in known:
                raise TypeError(f"There is no {self.KIND} {name!r}; there are {', '.join(known)}.")
            known[present] = value
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Return an option by its former name."""
        if name in self.RENAMED:
            return getattr(self, self.RENAMED[name])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
