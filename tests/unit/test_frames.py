"""Frames: what is written, and what a reader makes of it however it was cut."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rowsignal.sse import FrameParser
from rowsignal.sse.frames import bye, frame, heartbeat, jittered, reset, retry

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
events = st.lists(
    st.tuples(
        st.sampled_from(["insert", "update", "heartbeat"]),
        st.dictionaries(texts, st.one_of(texts, st.integers(), st.floats(), st.none())),
        st.one_of(st.none(), st.sampled_from(["p1", "p2", "AWMJ3uA-_.77"])),
    ),
    max_size=6,
)


@given(events, st.data())
def test_frames_survive_being_cut_anywhere(wanted, data):
    """Also inside a character: a cut is made between bytes."""
    stream = retry(2.0) + b"".join(frame(*event) for event in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, read = FrameParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += parser.feed(stream[start:end])
    assert [name for name, _ in read] == [name for name, _, _ in wanted]
    assert [list(json.loads(text)) for _, text in read] == [list(told) for _, told, _ in wanted]
    places = [place for _, _, place in wanted if place is not None]
    assert parser.last_id == (places[-1] if places else "")


def test_an_event_that_was_cut_off_does_not_count():
    parser = FrameParser()
    assert parser.feed(frame("insert", {}, "p1")[:-1]) == []
    assert parser.last_id == ""


def test_what_json_has_no_word_for_is_text():
    ((_, text),) = FrameParser().feed(frame("insert", {"a": float("nan"), "b": [float("inf")]}))
    assert json.loads(text) == {"a": "NaN", "b": ["Infinity"]}


def test_a_reset_makes_a_reader_forget_its_place():
    parser = FrameParser()
    parser.feed(frame("insert", {}, "p1") + reset("why"))
    assert parser.last_id == ""


def test_readers_are_sent_away_for_different_times():
    retries = []
    parser = FrameParser(retries.append)
    ((name, text),) = parser.feed(bye("shutdown", 2.0))
    assert name == "bye"
    assert retries == [json.loads(text)["retry"]]
    assert len({jittered(2.0) for _ in range(50)}) > 25
    assert all(1.0 <= jittered(2.0) <= 3.0 for _ in range(50))


def test_a_heartbeat_without_a_place_leaves_the_last_one():
    parser = FrameParser()
    parser.feed(heartbeat(1.0, "p1") + heartbeat(1.0))
    assert parser.last_id == "p1"
