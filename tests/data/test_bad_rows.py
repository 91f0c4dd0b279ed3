import json

import pytest

from lit_tr.data.bad_rows import BadRow, BadRows, write
from lit_tr.errors import BadRowError, UserError

EMPTY, EQUAL = BadRow("f, row 1", "empty", "x"), BadRow("f, row 2", "equal")


def test_a_share_is_one_of_all_rows():
    bad_rows = BadRows(0.01)
    bad_rows.add(200, [EMPTY, EQUAL])
    with pytest.raises(
        UserError, match=r"3 of 201 rows are bad \(2 x equal; 1 x empty\); the first is f, row 1: empty"
    ):
        bad_rows.add(1, [EQUAL])


def test_a_count_and_the_strict_way_end_at_once():
    bad_rows = BadRows(2)
    bad_rows.add(2, [EMPTY, EQUAL], judge=False)
    with pytest.raises(UserError, match="3 of 3 .*data.max_bad_rows, now 2 "):
        bad_rows.add(1, [EQUAL], judge=False)
    with pytest.raises(UserError, match="1 of 9 .*data.max_bad_rows, now 0 "):
        BadRows(0).add(9, [EMPTY], judge=False)


def test_a_share_waits_for_more_rows_unless_most_are_bad():
    BadRows(0.01).add(999, [EMPTY] * 999, judge=False)
    BadRows(0.01).add(1000, [EMPTY] * 500, judge=False)
    BadRows(0.8).add(1000, [EMPTY] * 799, judge=False)
    with pytest.raises(UserError, match="501 of 1000"):
        BadRows(0.01).add(1000, [EMPTY] * 501, judge=False)


def test_rows_are_listed(tmp_path):
    bad_rows = BadRows(1, found=[BadRow.of("f, row 3", BadRowError("empty", "why")), EQUAL])
    write(tmp_path / "run" / "bad.jsonl", bad_rows.found)
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert lines[0] == {"location": "f, row 3", "reason": "empty", "detail": "why", "tokens": None}
    assert str(bad_rows.found[0]) == "f, row 3: empty (why)"
    assert str(EQUAL) == "f, row 2: equal"
