"""The filter grammar: what it takes, what it refuses, and that nothing else gets through."""

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from rowsignal.exceptions import FilterError
from rowsignal.sse.access.filters import all_hold, parse_condition, parse_where, where_clause

TABLE = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("status", sa.Text),
    sa.Column("total", sa.Numeric(12, 2)),
    sa.Column("small", sa.SmallInteger),
    sa.Column("ratio", sa.Double),
    sa.Column("rough", sa.REAL),
    sa.Column("paid", sa.Boolean),
    sa.Column("owner", sa.Uuid),
    sa.Column("day", sa.Date),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("clock", sa.Time),
    sa.Column("zoned", sa.Time(timezone=True)),
    sa.Column("kind", sa.Enum("a", "b", name="kind")),
    sa.Column("code", sa.CHAR(3)),
    sa.Column("data", postgresql.JSONB),
    sa.Column("secret", sa.Text),
)
ALLOWED = frozenset(TABLE.c.keys()) - {"secret"}


def condition(text):
    return parse_condition(text, TABLE, ALLOWED)


@pytest.mark.parametrize(
    ("text", "row", "holds"),
    [
        ("status.eq.paid", {"status": "paid"}, True),
        ("status.eq.paid", {"status": "open"}, False),
        ("status.eq.a.b", {"status": "a.b"}, True),
        ("status.eq.", {"status": ""}, True),
        ("status.neq.paid", {"status": None}, False),
        ("status.is.null", {"status": None}, True),
        ("status.is.null", {"status": "null"}, False),
        ("status.lt.b", {"status": "B"}, True),
        ("status.in.(paid,open)", {"status": "open"}, True),
        ('status.in.("a,b",c)', {"status": "a,b"}, True),
        (r'status.in.("say \"hi\"","\\")', {"status": 'say "hi"'}, True),
        (r'status.in.("say \"hi\"","\\")', {"status": "\\"}, True),
        ("status.in.()", {"status": ""}, True),
        ("zoned.eq.12:00:00+00", {"zoned": "12:00:00+00"}, True),
        ("zoned.eq.12:00Z", {"zoned": "12:00:00+00"}, True),
        ("zoned.eq.13:00+01", {"zoned": "12:00:00+00"}, False),
        ("zoned.lt.13:00+01", {"zoned": "12:00:00+00"}, False),
        ("zoned.gt.13:00+01", {"zoned": "12:00:00+00"}, True),
        ("zoned.lt.12:00-01:30", {"zoned": "12:00:00+00"}, True),
        ("clock.eq.24:00", {"clock": "24:00:00"}, True),
        ("clock.gt.23:59:59.999999", {"clock": "24:00:00"}, True),
        ("id.gt.9", {"id": 10}, True),
        ("total.eq.1.0", {"total": "1.00"}, True),
        ("total.gt.9", {"total": "10.5"}, True),
        ("total.eq.NaN", {"total": "NaN"}, True),
        ("total.gt.9", {"total": "NaN"}, True),
        ("ratio.lt.nan", {"ratio": "Infinity"}, True),
        ("rough.eq.1.1", {"rough": 1.1}, True),
        ("paid.eq.true", {"paid": True}, True),
        (
            "owner.eq.0B2D1C6E-8E0B-4D3A-9C93-1A2B3C4D5E6F",
            {"owner": "0b2d1c6e8e0b4d3a9c931a2b3c4d5e6f"},
            True,
        ),
        ("day.gte.2026-01-01", {"day": "infinity"}, True),
        ("at.eq.2026-01-01T00:00:00Z", {"at": "2026-01-01T01:00:00+01:00"}, True),
        ("at.lt.2026-01-01T00:00:00Z", {"at": "0044-03-15T00:00:00+00:00 BC"}, True),
        ("clock.lt.12:00", {"clock": "11:59:59"}, True),
        ("kind.eq.a", {"kind": "a"}, True),
        ("id.gt.9", {}, False),
        ("id.gt.9", {"id": "not a number"}, False),
    ],
)
def test_a_condition_holds_as_in_sql(text, row, holds):
    assert condition(text).holds(row) is holds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("status", "not a condition"),
        ("status.eq", "not a condition"),
        ("status.like.p%", "not a condition"),
        ("nothing.eq.1", "not a column"),
        ("secret.eq.1", "not a column"),
        ("id.eq.one", "type integer"),
        ("id.eq.9223372036854775808", "out of the range"),
        ("small.eq.32768", "out of the range"),
        ("id.eq.1;drop table orders", "type integer"),
        ("total.eq.sNaN", "out of the range"),
        ("total.eq.1e99999", "out of the range"),
        ("total.eq.Infinity", "out of the range"),
        ("paid.gt.true", "has no order"),
        ("paid.eq.1", "type boolean"),
        ("kind.eq.c", "out of the range"),
        ("kind.lt.b", "has no order"),
        ("at.eq.2026-01-01T00:00:00", "type timestamp"),
        ("at.eq.infinity", "out of the range"),
        ("clock.eq.12:00+01:00", "type time"),
        ("clock.eq.24:00:01", "type time"),
        ("clock.eq.noon", "type time"),
        ("zoned.eq.12:00", "type timetz"),
        ("zoned.eq.12:00+17", "type timetz"),
        ("status.is.true", "only is.null"),
        ("status.in.paid", "parentheses"),
        ("status.in.(a", "parentheses"),
        ('status.in.("a)', "Quote an item"),
        ("status.in.(a(b)", "Quote an item"),
        (f"status.in.({','.join('a' * 101)})", "at most 100"),
        ("status.eq.\0", "NUL"),
        ("status.eq.\udcff", "type text"),
        ("status.eq." + "x" * 4000, "at most 4000"),
        ("data.eq.{}", "cannot be filtered by"),
        ("code.eq.a", "cannot be filtered by"),
    ],
)
def test_what_is_not_a_condition_is_refused_in_a_sentence(text, complaint):
    with pytest.raises(FilterError, match=complaint):
        condition(text)


def test_a_filter_has_a_bounded_number_of_conditions():
    with pytest.raises(FilterError, match="at most 20"):
        parse_where(["id.gt.1"] * 21, TABLE, ALLOWED)


def test_equal_filters_are_equal_however_often_they_are_read():
    texts = ["id.gt.1", "total.in.(1,2.50)", "status.is.null"]
    first, second = (parse_where(texts, TABLE, ALLOWED) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_all_conditions_must_hold():
    conditions = parse_where(["id.gt.1", "status.eq.paid"], TABLE, ALLOWED)
    assert all_hold(conditions, {"id": 2, "status": "paid"})
    assert not all_hold(conditions, {"id": 1, "status": "paid"})


columns = st.sampled_from(sorted([*ALLOWED, "nothing"]))
verbs = st.sampled_from(["eq", "neq", "lt", "lte", "gt", "gte", "in", "is", "like", ""])
values = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.datetimes().map(str),
    st.lists(st.text(max_size=5), max_size=4).map(lambda items: f"({','.join(items)})"),
    st.sampled_from(["null", "' or 1=1 --", '");drop table orders;--', "(a,b)", "$1", ":x"]),
)
structured = st.builds("{}.{}.{}".format, columns, verbs, values)


@given(st.one_of(st.text(max_size=60), structured))
@example("day.eq.0001-01-01")
@example("at.eq.0001-01-01T00:00:00+14:00")
@example("rough.eq.1e300")
def test_whatever_comes_in_is_a_bound_condition_or_a_refusal(text):
    """Neither another exception nor a character of the filter's value in the SQL text."""
    try:
        parsed = condition(text)
    except FilterError:
        return
    clause = where_clause([parsed], TABLE).compile(dialect=postgresql.asyncpg.dialect())
    assert len(clause.params) <= 101
    for value in map(str, clause.params.values()):
        assert len(value) < 4 or value not in str(clause)
    assert parsed.holds({parsed.column: None}) is (parsed.operator == "is")
