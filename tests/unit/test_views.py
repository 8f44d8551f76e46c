"""What a view shows of a change: nothing that it should not, and no less than it must."""

import json

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from rowsignal.changes import Operation
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.filters import parse_where
from rowsignal.sse.access.row_keys import key_writer
from rowsignal.sse.access.views import RowFilter, Seen, TableView, UnknownHistoryError

TABLE = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("status", sa.Text),
    sa.Column("customer", sa.Integer),
    sa.Column("total", sa.Numeric),
)
EXPOSURES = exposures_of({TABLE: ["id", "status", "total"]})
(EXPOSURE,) = EXPOSURES.values()
MINE = parse_where(["customer.eq.7"], TABLE, TABLE.c.keys())
PAID = parse_where(["status.eq.paid"], TABLE, TABLE.c.keys())


def row(**values):
    return {"id": 1, "status": "paid", "customer": 7, "total": "1.50", **values}


def event(operation, new=None, old=None, changed=None):
    return Event(Operation(operation), EXPOSURE, {"id": 1}, changed, new, old, position="p")


def shown(row_filter, told):
    chunk = row_filter.show(told, with_id=True)
    if chunk is None:
        return None
    fields = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n"))
    return fields["event"], json.loads(fields["data"])


def lens_of(*, known=True, tracked=10, **view):
    return RowFilter(TableView(name=EXPOSURE.name, **view), EXPOSURE, known=known, tracked=tracked)


def name_of(row_filter, told):
    found = shown(row_filter, told)
    return found and found[0]


def test_without_filters_each_change_is_told_once_as_the_table_has_it():
    row_filter = lens_of()
    assert name_of(row_filter, event("insert", row())) == "insert"
    assert name_of(row_filter, event("insert")) == "delete"
    assert name_of(row_filter, event("update", row(), changed=("status",))) == "update"
    assert name_of(row_filter, event("delete")) == "delete"
    assert name_of(row_filter, event("delete", row())) == "update"


def test_old_values_in_the_log_decide_whether_a_row_has_left():
    row_filter = lens_of(known=False, permission=MINE)
    assert name_of(row_filter, event("update", row(customer=8), row())) == "delete"
    assert name_of(row_filter, event("update", row(customer=8), row(customer=9))) is None
    assert name_of(row_filter, event("delete", None, row(customer=8))) is None
    assert name_of(row_filter, event("delete", None, row())) == "delete"
    entered = shown(row_filter, event("update", row(), row(customer=8), ("customer",)))
    assert entered[0] == "insert"
    assert "old" not in entered[1]


def test_old_values_are_shown_only_as_far_as_the_row_was_in_sight():
    old = row(status="open")
    _, data = shown(lens_of(), event("update", row(), old, ("status", "customer")))
    assert data["old"] == {"id": 1, "status": "open", "total": "1.50"}
    assert data["changed"] == ["status"]
    _, narrow = shown(lens_of(columns=frozenset({"id"})), event("update", row(), old))
    assert narrow["old"] == narrow["row"] == {"id": 1}


def test_without_old_values_memory_decides():
    row_filter = lens_of(permission=MINE)
    assert name_of(row_filter, event("delete")) is None
    assert name_of(row_filter, event("update", row())) == "update"
    assert name_of(row_filter, event("update", row(customer=8))) == "delete"
    assert name_of(row_filter, event("update", row(customer=8))) is None


def test_without_memory_a_permission_can_not_be_kept_but_a_wish_can():
    gone = event("update", row(customer=8, status="open"), changed=("customer", "status"))
    with pytest.raises(UnknownHistoryError):
        lens_of(known=False, permission=MINE).show(gone, with_id=True)
    assert name_of(lens_of(known=False, asked=PAID), gone) == "delete"
    same = event("update", row(customer=8), changed=("total",))
    assert name_of(lens_of(known=False, permission=MINE), same) is None


def test_memory_is_bounded_and_knows_when_it_has_forgotten():
    seen = Seen(known=True, limit=2)
    seen.add([(1,), (2,)])
    assert seen.keys == {(1,), (2,)}
    seen.add([(3,)])
    assert seen.keys is None
    seen.clear()
    assert seen.keys == set()


def test_a_frame_is_made_once_for_all_who_see_the_same():
    told = event("update", row(), changed=("status",))
    first, second = lens_of(), lens_of(asked=PAID)
    assert first.show(told, with_id=True) is second.show(told, with_id=True)
    assert first.show(told, with_id=False) is not first.show(told, with_id=True)


def test_a_schema_shapes_old_values_as_well():
    class Masked(BaseModel):
        id: int
        status: str

        def model_post_init(self, context):
            self.status = self.status[:1] + "..."

    class Mapped:
        pass

    from sqlalchemy.orm import registry

    registry().map_imperatively(Mapped, TABLE.to_metadata(sa.MetaData()))
    (exposure,) = exposures_of({Mapped: Masked}).values()
    row_filter = RowFilter(TableView(name=exposure.name), exposure, known=True)
    told = Event(Operation.UPDATE, exposure, {"id": 1}, None, row(), row(status="open"))
    _, data = shown(row_filter, told)
    assert data["row"]["status"] == "p..."
    assert data["old"]["status"] == "o..."


def test_columns_and_tables_that_can_not_be_offered_are_refused():
    with pytest.raises(ValueError, match="no column 'nothing'"):
        exposures_of({TABLE: ["nothing"]})
    with pytest.raises(ValueError, match="no primary key"):
        exposures_of([sa.Table("loose", sa.MetaData(), sa.Column("a", sa.Integer))])


HIDDEN = ("customer",)


def test_an_update_of_hidden_columns_is_not_told_even_if_they_decide_on_the_permission():
    row_filter = lens_of(permission=MINE)
    row_filter.snapshot(row())
    assert name_of(row_filter, event("update", row(), changed=HIDDEN)) is None
    assert name_of(row_filter, event("update", row(), row(customer=7), changed=HIDDEN)) is None
    assert name_of(row_filter, event("update", row(status="open"), changed=("status",))) == "update"


def test_a_row_that_comes_into_sight_by_a_hidden_column_is_an_insert():
    row_filter = lens_of(permission=MINE)
    assert name_of(row_filter, event("update", row(), row(customer=8), changed=HIDDEN)) == "insert"
    assert name_of(lens_of(permission=MINE), event("update", row(), changed=HIDDEN)) == "insert"
    with pytest.raises(UnknownHistoryError):
        lens_of(known=False, permission=MINE).show(
            event("update", row(), changed=HIDDEN), with_id=True
        )


def truncated():
    return Event(Operation.TRUNCATE, EXPOSURE, None)


def test_a_truncate_is_told_to_readers_with_rows_in_sight():
    assert name_of(lens_of(), truncated()) == "truncate"
    lens = lens_of(permission=MINE)
    assert name_of(lens, truncated()) is None
    lens.snapshot(row())
    assert name_of(lens, truncated()) == "truncate"
    assert name_of(lens, truncated()) is None
    assert name_of(lens_of(known=False, asked=PAID), truncated()) == "truncate"
    with pytest.raises(UnknownHistoryError):
        lens_of(known=False, permission=MINE).show(truncated(), with_id=True)


def test_a_key_column_that_is_not_shown_leaves_as_a_digest_only():
    narrow = lens_of(columns=frozenset({"status"}))
    _, one = shown(narrow, event("update", row(id=1)))
    _, same = shown(narrow, event("delete"))
    other = Event(Operation.DELETE, EXPOSURE, {"id": 2})
    assert one["key"] == same["key"]
    assert list(one["key"]) == [""]
    assert one["row"] == {"status": "paid"}
    assert shown(narrow, other)[1]["key"] != one["key"]
    frame = narrow.snapshot(row())
    assert json.dumps(one["key"], separators=(",", ":")) in frame.decode()
    assert '"id"' not in frame.decode()


def test_digests_depend_on_the_secret_and_the_table():
    def digest(table, secret):
        return key_writer(table, ("id",), frozenset(), secret)({"id": 1})

    made = {str(digest(table, secret)) for table in ("a", "b") for secret in (b"x", b"y")}
    assert len(made) == 4
    assert digest("a", b"x") == digest("a", b"x")
    mixed = key_writer("a", ("tenant", "id"), frozenset({"id"}), b"x")({"tenant": 7, "id": 1})
    assert mixed.keys() == {"id", ""}
