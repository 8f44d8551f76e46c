"""Docstrings as the site shows them: interactive examples as blocks of code.

An extension of Griffe, which reads the sources for the pages of signatures.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def with_fences(text: str) -> str:
    """Return a docstring whose `>>>` examples are fenced; Markdown would take them for quotes."""
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)


class PublicDocstrings(griffe.Extension):
    """Fence the examples of everything that is loaded, and leave out internal attributes."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring:
            obj.docstring.value = with_fences(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out what a constructor keeps for itself: attributes without a docstring."""
        if "dataclass" in cls.labels:
            return
        for name in [name for name, member in cls.members.items() if is_internal(member)]:
            cls.del_member(name)


def is_internal(member: griffe.Object | griffe.Alias) -> bool:
    """Tell whether a member is an attribute that only `self.name = ...` makes."""
    return (
        member.is_attribute and member.labels == {"instance-attribute"} and not member.has_docstring
    )
