"""Text for a terminal, without control characters from a database."""

import json
import re
import unicodedata
from typing import Any

JOINERS = {"\u200c", "\u200d"}  # parts of words and of emoji
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
UNSAFE_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return a text with its control characters as escapes.

    They could move the cursor, overwrite printed text or reverse the writing direction.

    >>> printable("paid\x1b[2J")
    'paid\\x1b[2J'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(it) if _is_unsafe(it) else it for it in text)


def json_line(document: Any, **options: Any) -> str:
    """Return a document as one line of JSON that is safe to print."""
    text = json.dumps(document, ensure_ascii=False, **options)
    return UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE and character not in JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
