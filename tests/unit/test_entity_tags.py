"""`If-None-Match` as RFC 9110 has it: lists, weak tags, `*`."""

import pytest

from rowsignal.sse.http.entity_tags import KnownTags

TAG = '"abc"'


@pytest.mark.parametrize(
    "lines",
    [
        ['"abc"'],
        ['W/"abc"'],
        ['"x", "abc"'],
        ['"x",W/"abc" , "y,z"'],
        ['"x"', '"abc"'],
        [',, "abc",'],
        ["*"],
        [" * "],
    ],
)
def test_a_known_tag_is_found_in_every_form(lines):
    assert TAG in KnownTags(lines)


@pytest.mark.parametrize(
    "lines", [None, [], [""], ['"x"'], ["abc"], ['"abc'], ['w/"abc"'], ['"x" "abc"']]
)
def test_what_is_not_the_tag_is_not_found(lines):
    assert TAG not in KnownTags(lines)


def test_a_tag_with_a_comma_is_one_tag():
    known = KnownTags(['"a,b"'])
    assert '"a,b"' in known
    assert '"a' not in known
