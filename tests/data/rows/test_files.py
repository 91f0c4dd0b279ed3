import csv
import gzip
import json

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from lit_tr.data.rows.files import LONGEST, open_file
from lit_tr.errors import BadRowError, UserError

ROWS = [{"n": str(n), "text": f"é{n}\n" * (n % 4)} for n in range(100)]


def lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def zipped(path):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


def listed(path):
    path.write_text("\n " + json.dumps(ROWS))


def table(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)


def columns(path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=17)


def arrow(path, new=ipc.new_stream):
    whole = pyarrow.Table.from_pylist(ROWS)
    with new(str(path), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=13)


KINDS = {
    "lines.jsonl": lines,
    "lines.json": lines,
    "lines.jsonl.gz": zipped,
    "list.json": listed,
    "table.csv": table,
    "columns.parquet": columns,
    "stream.arrow": arrow,
    "file.arrow": lambda path: arrow(path, ipc.new_file),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, write in KINDS.items():
        write(folder / name)
    return folder


def number(row):
    return None if row is None else int(row["n"])


@pytest.mark.parametrize("name", KINDS)
def test_the_rows_are_all_there(folder, name):
    file = open_file(str(folder / name))
    found = list(iter(lambda: next(file, None), None))
    assert found == [
        {key: value or (None if name == "table.csv" else "") for key, value in row.items()} for row in ROWS
    ]
    file.close()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    moves=st.lists(st.tuples(st.sampled_from(["read", "skip", "reopen"]), st.integers(1, 40)), max_size=12),
)
def test_any_way_through_a_file_finds_the_rows_in_order(folder, name, moves):
    file, at = open_file(str(folder / name)), 0
    for move, count in moves:
        if move == "skip":
            passed = file.skip(count)
            assert passed == min(count, 100 - at)
            at += passed
        elif move == "reopen":
            state = json.loads(json.dumps(file.state))
            file.close()
            file = open_file(str(folder / name), state)
        else:
            for _ in range(count):
                assert number(next(file, None)) == (at if at < 100 else None)
                at = min(at + 1, 100)
    file.close()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"n": 1', "invalid JSON"),
        (b'{"n": "\xff"}', "invalid JSON"),
        (b"[1]", "the row is no JSON object"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"n": "' + b"x" * LONGEST + b'"}', f"the line is longer than {LONGEST} bytes"),
    ],
    ids=["half", "bytes", "list", "deep", "long"],
)
def test_a_bad_line_is_named_and_the_next_one_is_read(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n' + line + b'\n\n{"n": 2}')
    file = open_file(str(tmp_path / "a.jsonl"))
    assert next(file) == {"n": 0}
    with pytest.raises(BadRowError) as error:
        next(file)
    assert error.value.reason == reason
    assert next(file) is None  # an empty line is no row
    assert next(file) == {"n": 2}
    assert next(file, None) is None
    assert open_file(str(tmp_path / "a.jsonl")).skip(9) == 4


def test_a_zipped_file_cut_short_is_named_where_it_breaks(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    zipped(path)
    path.write_bytes(path.read_bytes()[:-200])
    rows = []
    with pytest.raises(UserError, match="a.jsonl.gz, row [0-9]+: the file is broken or cut short from here on"):
        rows += Rows(path).rows()


def read_all(file, rows):
    for _ in range(101):
        rows.append(next(file))


def test_a_parquet_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    columns(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="a.parquet: cannot be read"):
        open_file(str(path))


def test_a_parquet_file_with_broken_pages_is_named_where_it_breaks(tmp_path):
    path = tmp_path / "a.parquet"
    columns(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 200] = bytes(200)
    path.write_bytes(data)
    file = open_file(str(path))
    with pytest.raises(BadRowError, match="broken or cut short from here on"):
        read_all(file, [])
    assert next(file, None) is None


@pytest.mark.parametrize("text", ["a,b\n1,2,3\n4,5\n", "a,b\n1\n4,5\n"])
def test_a_row_of_csv_with_other_fields_than_the_head(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    file = open_file(str(tmp_path / "a.csv"))
    with pytest.raises(BadRowError, match="another number of fields"):
        next(file)
    assert next(file) == {"a": "4", "b": "5"}


def test_broken_quotes_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n"x"y,2\n')
    with pytest.raises(BadRowError, match="invalid CSV"):
        next(open_file(str(tmp_path / "a.csv")))
