import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr import PreferenceDataModule
from lit_tr.data import Rows, Without
from lit_tr.errors import UserError
from tests.data.rows.stops import assert_goes_on

ROWS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(9)]


@pytest.fixture
def rows(write_rows):
    return Rows(write_rows(ROWS), chat=False)


@pytest.fixture
def listed(tmp_path, rows):
    """A list of the rows 1, 4 and 5."""
    places = [place for place, _ in rows.rows()]
    path = tmp_path / "listed.jsonl"
    path.write_text("".join(json.dumps({"location": places[i], "margins": [-1, -2]}) + "\n" for i in (1, 4, 5)))
    return str(path)


def test_what_is_listed_is_no_row(rows, listed):
    left = Without(rows, listed)
    assert [row["prompt"] for _, row in left.rows()] == ["p0", "p2", "p3", "p6", "p7", "p8"]
    assert (left.conversion, left.streams) == (rows.conversion, True)
    assert str(left) == f"{rows} without {listed}"


def test_it_is_trained_on_without_a_bad_row(rows, listed, llama_dir, tmp_path):
    data = PreferenceDataModule(llama_dir, Without(rows, listed), max_bad_rows=0, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    assert len(data.examples["train"]) == 6
    assert data.examples["train"].bad_rows.rows == 6


def test_a_cache_is_found_again_for_the_same_list_alone(rows, listed, tmp_path):
    first = Without(rows, listed).fingerprint()
    assert first == Without(rows, listed).fingerprint()
    other = tmp_path / "other.jsonl"
    other.write_text("")
    assert Without(rows, str(other)).fingerprint() not in (first, rows.fingerprint())
    assert Without(ROWS, listed).source.fingerprint() is not None  # whatever `as_source` takes


@settings(max_examples=15, deadline=None)
@given(stops=st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=4), order=st.none() | st.integers(0, 3))
def test_a_cursor_goes_on_from_its_state(tmp_path_factory, stops, order):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = Rows(str(folder / "rows.jsonl"))
    place = [place for place, _ in rows.rows()][3]
    (folder / "listed").write_text(json.dumps({"location": place}))
    left = Without(rows, str(folder / "listed"))
    whole = assert_goes_on(left, stops, order, lambda record: (record.location, record.row), goes_on_at_end=True)
    assert [row for at, row in whole if at == place] == [None]
    assert len(whole) == len(ROWS)


@pytest.mark.parametrize("text", [None, "{", '{"place": 1}', "3"])
def test_a_file_that_lists_nothing_is_a_mistake(rows, tmp_path, text):
    path = tmp_path / "listed.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"Without: .*listed.jsonl is no file of JSON lines with a location each"):
        list(Without(rows, str(path)).rows())
