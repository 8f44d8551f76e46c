"""Entity tags in requests: `If-None-Match` (RFC 9110, 8.8.3 and 13.1.2)."""

import re
from collections.abc import Sequence

ANY = "*"
ONE = re.compile(r'[ \t]*(?:(?:W/)?("[\x21\x23-\x7e\x80-\xff]*"))?[ \t]*(?:,|$)')


class KnownTags:
    """The tags that a client already has, compared weakly: `W/"a"` equals `"a"`."""

    def __init__(self, lines: Sequence[str] | None) -> None:
        text = ", ".join(lines or ())
        self.is_any = text.strip() == ANY
        self._tags = frozenset(() if self.is_any else _tags(text))

    def __contains__(self, tag: str) -> bool:
        return self.is_any or tag in self._tags


def _tags(text: str) -> list[str]:
    """Return the tags of a list; none if any part of it is malformed."""
    tags, place = [], 0
    while place < len(text):
        found = ONE.match(text, place)
        if found is None or not found[0]:
            return []
        if found[1] is not None:
            tags.append(found[1])
        place = found.end()
    return tags
